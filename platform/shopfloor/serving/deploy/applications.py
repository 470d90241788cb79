"""What Ray Serve is asked to run: the declaration of a use case's application, and Serve's REST API.

Serve takes the list of all applications at once and removes what it lacks, so a deployer that had read the list before
somebody else wrote it would take theirs away. What is to run therefore stands in the registry, with the assignment:
whoever writes the list writes what the registry says for all of them, looks again, and repeats it until it holds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shopfloor.errors import ConflictError, ServiceError, UsageError
from shopfloor.runs.mlflow import Mlflow
from shopfloor.serving import assignment as assignments
from shopfloor.serving.assignment import Entry
from shopfloor.serving.contract import DEPLOYMENT, IMPORT_PATH, Config, OnlineConfig, log_root
from shopfloor.settings import NO_TOKENS, Settings
from shopfloor.use_case import ServedCase, ServingSection, UseCase

SPARE_REQUESTS = 1000
"""Requests that Serve lets into a replica beyond those that it answers: it waits for their bodies, or refuses them."""
SERVE = "/api/serve/applications/"
FRESH_S = 5.0
"""How old may be what was read of Serve and of the registry when the list is written."""
_NO_PLACE = re.compile(r"required for each replica: (\{.*?\}), total resources available: (\{.*?\})\.")
_TRIES = 10
_FIELDS = {"name", "route_prefix", "import_path", "args", "deployments"}
_IMPORT = re.compile(r"^[ \t]*(?:from\s+([.\w]+)\s+import\s+(\([^)]*\)|[^\n]+)|import\s+([^\n#]+))", re.MULTILINE)
_PROCESSES = (
    IMPORT_PATH.partition(":")[0],
    "shopfloor.serving.beside.reader_process",
    "shopfloor.serving.beside.rehearsal",
    "shopfloor.serving.beside.shadow_process",
)
"""Modules that a replica runs, here and in processes beside it."""


LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def place(settings: Settings) -> str:
    """Return the name of the Ray cluster: this machine for one that listens on loopback, whatever port it has now."""
    address = urlsplit(settings.ray_dashboard_url)
    return socket.gethostname() if is_loopback(address.hostname) else f"{address.hostname}:{address.port}"


def build(settings: Settings, case: ServedCase, entry: Entry) -> dict[str, Any]:
    """Return the declaration of a use case's application.

    Args:
        settings: Say what a replica needs to find.
        case: Its `serving` says how it answers.
        entry: What stands in the registry now.

    Raises:
        ServiceError: Ray's dashboard does not answer, or Serve refuses.
    """
    present = running(settings).get(case.name)
    before, serving = entry.application, case.serving
    config = Config(
        use_case=case.name,
        tracking_uri=settings.tracking_uri,
        log_root=log_root(settings) if serving.log else None,
        s3_endpoint_url=settings.s3_endpoint_url,
        log_days=serving.log_days,
        log_max_bytes=int(serving.log_max_gb * 1024**3),
        hosts=_hosts(settings),
        description=case.description,
        target=case.target,
        max_in_flight=serving.max_in_flight,
        timeout_s=serving.timeout_s,
        batch_rows=serving.batching.max_rows if serving.batching else 0,
        batch_wait_ms=serving.batching.wait_ms if serving.batching else 0,
        max_rows=serving.max_rows,
        max_body_bytes=serving.max_body_bytes,
        tokens_file=_tokens_file(settings, entry, _config(present)),
        online=online_config(settings, case),
    )
    failed = present is not None and present["status"] == "DEPLOY_FAILED"
    attempt = uuid.uuid4().hex[:8] if failed or before is None else before["args"]["attempt"]
    application: dict[str, Any] = {
        "name": case.name,
        "route_prefix": f"/{case.name}",
        "import_path": IMPORT_PATH,
        # Serve builds an application anew when these differ: for new code, and to try again what failed to start.
        "args": {"code": _code_hash(settings, case), "attempt": attempt},
        "deployments": [
            {
                "name": DEPLOYMENT,
                **_replicas(serving),
                "max_ongoing_requests": serving.max_in_flight + SPARE_REQUESTS,
                "max_surge_percent": 100,  # new code starts beside the old one
                "ray_actor_options": {"num_cpus": serving.cpus} | ({"num_gpus": serving.gpus} if serving.gpus else {}),
                # Serve puts a log record together for each request even where it is not to be written.
                "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
                "user_config": config.model_dump(mode="json"),
            }
        ],
    }
    return _sealed(application)


def readdressed(settings: Settings, application: dict[str, Any]) -> dict[str, Any]:
    """Return a declaration with the registry's present address: the embedded one may have got another port."""
    copy: dict[str, Any] = json.loads(json.dumps(application))
    copy["deployments"][0]["user_config"] |= {"tracking_uri": settings.tracking_uri, "declaration": ""}
    return _sealed(copy)


def replicas(application: Mapping[str, Any]) -> int:
    """Return how many replicas a declaration has at least."""
    deployment = application["deployments"][0]
    scaling = deployment.get("autoscaling_config")
    return int(scaling["min_replicas"] if scaling else deployment["num_replicas"])


def _sealed(application: dict[str, Any]) -> dict[str, Any]:
    """Return a declaration with its own hash, by which it is known again."""
    digest = hashlib.sha256(json.dumps(application, sort_keys=True).encode()).hexdigest()[:16]
    application["deployments"][0]["user_config"]["declaration"] = digest
    return application


def _tokens_file(settings: Settings, entry: Entry, live: dict[str, Any]) -> str | None:
    """Return where the tokens are: a deployer that knows no such file leaves the endpoint with the one that it has.

    Args:
        settings: May name the file, or say that everybody may ask.
        entry: Names the one that the endpoint has, or had before it was removed.
        live: What Serve runs, which counts where the registry declares nothing; empty where it runs nothing.
    """
    if settings.serve_tokens_file == NO_TOKENS:
        return None
    endpoint_file = entry.tokens_file if entry.application else entry.tokens_file or assignments.tokens_file_of(live)
    return settings.serve_tokens_file or endpoint_file


def _hosts(settings: Settings) -> tuple[str, ...] | None:
    """Return the names under which an endpoint answers: those of this machine alone, where it is on no other address.

    A page in somebody's browser may give its own name the address 127.0.0.1, and read what answers there.
    """
    own = settings.serve_hosts.replace(",", " ").split()
    address = urlsplit(settings.serve_url).hostname or ""
    return tuple(sorted({*LOOPBACK, *own})) if address in LOOPBACK else None


def _replicas(serving: ServingSection) -> dict[str, Any]:
    scaling = serving.autoscaling
    if scaling is None:
        return {"num_replicas": serving.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": serving.replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_in_flight,
        }
    }


def _code_hash(settings: Settings, case: ServedCase) -> str:
    digest = hashlib.sha256()
    for _, file in sorted(replica_code(settings, case).items()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def replica_code(settings: Settings, case: ServedCase) -> dict[str, Path]:
    """Return what a replica imports of this repository, module to file; new code needs new replicas.

    Args:
        settings: Say where the project is.
        case: Has a part in it where its replicas look features up, and where its models hold types of its own.
    """
    roots = {"shopfloor": Path(__file__).parents[2], "pipelines": settings.project_root / "pipelines"}
    modules = [*_PROCESSES, *([f"pipelines.{case.name}.features"] if case.serving.online else [])]
    if isinstance(case, UseCase):
        modules += [name.rpartition(".")[0] for name in case.model.trusted]
    files: dict[str, Path] = {}
    while modules:
        module = modules.pop()
        package, *rest = module.split(".")
        if package not in roots or module in files:
            continue
        base = roots[package].joinpath(*rest)
        file = next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)
        if file is not None:
            files[module] = file
            modules += _imports(file, module if file.name == "__init__.py" else module.rpartition(".")[0])
    return files


@functools.lru_cache(maxsize=1024)
def _imports(file: Path, package: str) -> list[str]:
    """Return the modules that a file may import, wherever it does; without parsing it, which takes 20 times as long."""
    modules: list[str] = []
    for source, names, plain in _IMPORT.findall(file.read_text(encoding="utf-8")):
        if plain:
            modules += [name.split()[0] for name in plain.split(",") if name.strip()]
            continue
        level = len(source) - len(source.lstrip("."))
        parts = package.split(".")
        above = ".".join(parts[: len(parts) - level + 1]) if level else ""
        module = ".".join(filter(None, (above, source.lstrip("."))))
        imported = (name.split()[0] for name in re.sub(r"#.*", "", names).strip("()").split(",") if name.strip())
        modules += [module, *(f"{module}.{name}" for name in imported)]
    return modules


def _config(application: Any) -> dict[str, Any]:
    config: dict[str, Any] = (application or {}).get("deployed_app_config") or {}
    return config


def online_config(settings: Settings, case: ServedCase) -> OnlineConfig | None:
    """Return what a replica needs to read features; `None` for a use case whose requests send them all."""
    online = case.serving.online
    if online is None or not isinstance(case, UseCase):
        return None
    return OnlineConfig(
        use_case=case.name,
        code_root=str(settings.project_root.resolve()),
        service=str(case.features.service),
        entities=dict(online.entities),
        deadline_ms=online.deadline_ms,
        fallback=online.fallback,
        feature_registry=settings.feature_registry,
        online_store=settings.online_store,
        s3_endpoint_url=settings.s3_endpoint_url,
    )


def running(settings: Settings) -> dict[str, Any]:
    """Return Serve's applications by name, without those that are being removed.

    Raises:
        ServiceError: Ray's dashboard does not answer, or Serve refuses.
    """
    details = ask_ray(settings, "GET", SERVE).json()
    return {name: item for name, item in details["applications"].items() if item["status"] != "DELETING"}


def lacks_room(present: Mapping[str, Any], use_case: str) -> str:
    """Return what a replica waits for, as Serve says after half a minute, and which endpoints hold CPUs; or nothing.

    Args:
        present: Serve's applications, as `running` returns them.
        use_case: Name of the application.
    """
    deployments = {name: item["deployments"].get(DEPLOYMENT) or {} for name, item in present.items()}
    match = _NO_PLACE.search(deployments[use_case].get("message", ""))
    if match is None:
        return ""
    needs, free = (json.loads(text) for text in match.groups())
    short = {resource: amount for resource, amount in needs.items() if free.get(resource, 0) < amount}
    held = {
        name: deployment["required_resources"].get("CPU", 0) * sum("pid" in one for one in deployment["replicas"])
        for name, deployment in deployments.items()
        if deployment and name != use_case
    }
    if not short:
        return ""
    words = " and ".join(
        f"{amount:g} {resource} ({free.get(resource, 0):g} free)" for resource, amount in short.items()
    )
    endpoints = ", ".join(f"{name} {amount:g}" for name, amount in sorted(held.items()) if amount) or "none"
    return (
        f"waiting for {words} for a replica of {use_case}; CPUs of other endpoints: {endpoints}. "
        "`shopfloor undeploy NAME` or a smaller serving.cpus frees some"
    )


def declare(settings: Settings, *use_cases: str) -> None:
    """Make Serve run what the registry declares for these, and lose nothing that it declares for others.

    Args:
        settings: Say where Serve and the registry are.
        *use_cases: Use cases whose declaration has changed; one of which the registry declares nothing is removed.

    Raises:
        ServiceError: MLflow, Ray's dashboard or Serve does not answer, or refuses.
        ConflictError: The list never held, because others write it all the time.
    """
    mlflow, here = Mlflow(settings.tracking_uri, settings.request_timeout_s), place(settings)
    for attempt in range(_TRIES):
        start_s = time.monotonic()
        entries = assignments.read_all(mlflow)
        targets: dict[str, Any] = dict.fromkeys(use_cases)
        targets |= {
            name: entry.application
            for name, entry in entries.items()
            if name in targets or (entry.place == here and _is_ours(name, entry.application))
        }
        present = {name: _config(item) for name, item in running(settings).items()}
        if all(declaration(present.get(name)) == declaration(targets[name]) for name in targets):
            return
        if time.monotonic() - start_s < FRESH_S:  # whoever was paused in between looks again
            _put(settings, [item for item in (present | targets).values() if item])
        time.sleep(0.05 * attempt)
    raise ConflictError("What Ray Serve runs is being changed by too many at once.", "Try again.")


def _is_ours(name: str, application: Mapping[str, Any] | None) -> bool:
    """Tell whether a declaration is one that `build` makes: who may write to the registry may not run code by it."""
    own = {"name": name, "route_prefix": f"/{name}", "import_path": IMPORT_PATH}
    return application is not None and dict(application) | own == application and set(application) == _FIELDS


def declaration(application: Mapping[str, Any] | None) -> str | None:
    """Return the hash of a declaration; `None` where there is none."""
    deployments = (application or {}).get("deployments") or [{}]
    return (deployments[0].get("user_config") or {}).get("declaration")


def _put(settings: Settings, applications: list[dict[str, Any]]) -> None:
    if settings.in_containers:
        # A declaration holds addresses, and those of this machine are not the replicas'.
        raise UsageError(
            "The endpoints run in containers, and are changed from there.",
            "Put `docker compose exec ray-head` before the command, and leave --profile out.",
        )
    address = urlsplit(settings.serve_url)
    # Serve reads the HTTP options when it starts, with the first application; a running one keeps its own.
    host = "127.0.0.1" if is_loopback(address.hostname) else "0.0.0.0"  # noqa: S104
    http_options = {"host": host, "port": address.port or 8000}
    ask_ray(settings, "PUT", SERVE, {"http_options": http_options, "applications": applications})


def is_loopback(host: str | None) -> bool:
    """Tell whether a host is this machine's own."""
    return host in LOOPBACK


def ask_ray(settings: Settings, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """Return the answer of Ray's dashboard.

    Raises:
        ServiceError: It does not answer, or refuses.
    """
    import requests

    # The first call starts Serve's own processes, and takes as long as they do.
    timeout_s = max(settings.request_timeout_s, 60.0)
    url = f"{settings.ray_dashboard_url.rstrip('/')}{path}"
    try:
        answer = requests.request(method, url, json=content, timeout=timeout_s, headers=settings.ray_headers())
    except requests.RequestException as error:
        raise ServiceError(
            f"Ray's dashboard at {settings.ray_dashboard_url} does not answer: {type(error).__name__}.",
            "Start the stack: `shopfloor up`.",
        ) from error
    if not answer.ok:
        raise ServiceError(
            f"Ray answers {answer.status_code}: {answer.text.strip()[-500:]}",
            f"{settings.ray_dashboard_url} shows its state; `shopfloor down` and `shopfloor up` start it anew.",
        )
    return answer

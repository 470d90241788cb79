"""What Ray Serve is asked to run: the declaration of a use case's application, and Serve's REST API.

Serve takes the list of all applications at once. Who changes one reads, changes and writes under `rollout.py`'s lock.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shopfloor.errors import ServiceError
from shopfloor.serving.contract import DEPLOYMENT, IMPORT_PATH, Config, OnlineConfig
from shopfloor.settings import NO_TOKENS, Settings
from shopfloor.storage import is_remote, join
from shopfloor.use_case import ServingSection, UseCase

SPARE_REQUESTS = 1000
"""Requests that Serve lets into a replica beyond those that it answers: it waits for their bodies, or refuses them."""


LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def log_root(settings: Settings) -> str:
    """Return the URI under which every endpoint logs its predictions."""
    root = settings.artifact_root
    return join(root if is_remote(root) else str((settings.project_root / root).resolve()), "predictions")


def build(settings: Settings, case: UseCase, present: Any) -> dict[str, Any]:
    """Return the declaration of a use case's application.

    Args:
        settings: Say what a replica needs to find.
        case: Its `serving` says how it answers.
        present: What `running` says of it; `None` where it does not run.
    """
    serving = case.serving
    config = Config(
        use_case=case.name,
        tracking_uri=settings.tracking_uri,
        log_root=log_root(settings) if serving.log else None,
        s3_endpoint_url=settings.s3_endpoint_url,
        log_days=serving.log_days,
        log_max_bytes=int(serving.log_max_gb * 1024**3),
        hosts=_hosts(settings),
        description=case.description,
        target=case.features.target,
        max_in_flight=serving.max_in_flight,
        timeout_s=serving.timeout_s,
        batch_rows=serving.batching.max_rows if serving.batching else 0,
        batch_wait_ms=serving.batching.wait_ms if serving.batching else 0,
        max_rows=serving.max_rows,
        max_body_bytes=serving.max_body_bytes,
        tokens_file=_tokens_file(settings, _config(present)),
        online=online_config(settings, case),
    )
    failed = present is not None and present["status"] == "DEPLOY_FAILED"
    attempt = _config(present).get("args", {}).get("attempt", "") if present and not failed else uuid.uuid4().hex[:8]
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
                "user_config": config.model_dump(),
            }
        ],
    }
    fingerprint = hashlib.sha256(json.dumps(application, sort_keys=True).encode()).hexdigest()[:16]
    application["deployments"][0]["user_config"]["declaration"] = fingerprint
    return application


def _tokens_file(settings: Settings, declared: dict[str, Any]) -> str | None:
    """Return where the tokens are: a deployer that knows no such file leaves the endpoint with the one that it has.

    Args:
        settings: May name the file, or say that everybody may ask.
        declared: The application as it is declared now; empty where it is not.
    """
    if settings.serve_tokens_file == NO_TOKENS:
        return None
    deployments = declared.get("deployments") or [{}]
    kept = (deployments[0].get("user_config") or {}).get("tokens_file")
    return settings.serve_tokens_file or kept


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


def _code_hash(settings: Settings, case: UseCase) -> str:
    """Return a hash of what a replica has imported, of which the use case has a part where it looks features up."""
    digest = hashlib.sha256()
    own = settings.project_root / "pipelines" / case.name / "features.py"
    for file in [*sorted(Path(__file__).parents[1].rglob("*.py")), *([own] if case.serving.online else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _config(application: Any) -> dict[str, Any]:
    config: dict[str, Any] = (application or {}).get("deployed_app_config") or {}
    return config


def online_config(settings: Settings, case: UseCase) -> OnlineConfig | None:
    """Return what a replica needs to read features; `None` for a use case whose requests send them all."""
    online = case.serving.online
    if online is None:
        return None
    return OnlineConfig(
        use_case=case.name,
        code_root=str(settings.project_root.resolve()),
        service=case.features.service,
        entities=dict(online.entities),
        deadline_ms=online.deadline_ms,
        fallback=online.fallback,
        feature_registry=settings.feature_registry,
        online_store=settings.online_store,
        s3_endpoint_url=settings.s3_endpoint_url,
    )


def fingerprint(application: Any) -> str | None:
    """Return the hash of what was declared to Serve; `None` where nothing was, or it failed to start."""
    if application is None or application.get("status") == "DEPLOY_FAILED":
        return None
    deployments = _config(application).get("deployments") or [{}]
    declaration = (deployments[0].get("user_config") or {}).get("declaration")
    return str(declaration) if declaration else None


def running(settings: Settings) -> dict[str, Any]:
    """Return Serve's applications by name, without those that are being removed.

    Raises:
        ServiceError: Ray's dashboard does not answer, or Serve refuses.
    """
    details = _dashboard(settings, "GET").json()
    return {name: item for name, item in details["applications"].items() if item["status"] != "DELETING"}


def declare(settings: Settings, applications: dict[str, Any], *changed: dict[str, Any]) -> None:
    """Make Serve run these applications: all of them as they are, but for those that `changed` brings.

    Raises:
        ServiceError: Ray's dashboard does not answer, or Serve refuses.
    """
    declared = {name: _config(item) for name, item in applications.items() if _config(item)}
    declared |= {item["name"]: item for item in changed}
    address = urlsplit(settings.serve_url)
    local = address.hostname in LOOPBACK
    # Serve reads the HTTP options when it starts, with the first application; a running one keeps its own.
    http_options = {"host": "127.0.0.1" if local else "0.0.0.0", "port": address.port or 8000}  # noqa: S104
    _dashboard(settings, "PUT", {"http_options": http_options, "applications": list(declared.values())})


def _dashboard(settings: Settings, method: str, content: dict[str, Any] | None = None) -> Any:
    import requests

    # The first call starts Serve's own processes, and takes as long as they do.
    timeout_s = max(settings.request_timeout_s, 60.0)
    url = f"{settings.ray_dashboard_url.rstrip('/')}/api/serve/applications/"
    try:
        answer = requests.request(method, url, json=content, timeout=timeout_s, headers=settings.ray_headers())
    except requests.RequestException as error:
        raise ServiceError(
            f"Ray's dashboard at {settings.ray_dashboard_url} does not answer: {type(error).__name__}.",
            "Start the stack: `shopfloor up`.",
        ) from error
    if not answer.ok:
        raise ServiceError(
            f"Ray Serve answers {answer.status_code}: {answer.text.strip()[-500:]}",
            f"{settings.ray_dashboard_url} shows its state; `shopfloor down` and `shopfloor up` start it anew.",
        )
    return answer

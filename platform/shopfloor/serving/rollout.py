"""Puts model versions on Ray Serve and says which ones answer: the assignment, Serve's REST API, the endpoint's status.

Serve takes the list of all applications at once, so reading, changing and writing it happens under one lock: two
deployers never lose each other's application. It is asked only where an application is new or its settings changed;
versions come and go by the assignment. One that does not load is taken back, and the live one answers on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shopfloor.errors import ConflictError, ServiceError, ShopfloorError
from shopfloor.results import EFFECT
from shopfloor.serving import assignment as assignments
from shopfloor.serving.app import DEPLOYMENT
from shopfloor.serving.assignment import Assignment
from shopfloor.serving.config import Config
from shopfloor.serving.online_features import online_config
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, is_remote, join, publish
from shopfloor.use_case import ServingSection, UseCase, load_use_case

logger = logging.getLogger(__name__)

IMPORT_PATH = "shopfloor.serving.app:build"
DEPLOY_TIMEOUT_S = 180.0
STATUS_TIMEOUT_S = 2.0
POLL_S = 0.2
SPARE_REQUESTS = 1000
"""Requests that Serve lets into a replica beyond those that it answers: it waits for their bodies, or refuses them."""

Versions = dict[str, str | None]
"""`champion` and `challenger` to a version."""


@dataclass(frozen=True)
class Traffic:
    """What the challenger gets of the requests that ask for no version."""

    canary_percent: float = 0
    """Share that it answers, 0 to 100."""
    shadow: bool = False
    """It answers a copy of what the champion answers, for nobody."""


NO_TRAFFIC = Traffic()


class Keep(Enum):
    """The type of `KEEP`."""

    KEEP = "keep"


KEEP = Keep.KEEP
"""Leave what is deployed under this alias."""


def endpoint(settings: Settings, use_case: str) -> str:
    """Return the address of a use case's endpoint."""
    return f"{settings.serve_url.rstrip('/')}/{use_case}"


def log_root(settings: Settings) -> str:
    """Return the URI under which every endpoint logs its predictions."""
    root = settings.artifact_root
    return join(root if is_remote(root) else str((settings.project_root / root).resolve()), "predictions")


def declared_traffic(settings: Settings, use_case: str) -> Traffic:
    """Return what the challenger of a use case is to get of the requests.

    Raises:
        ServiceError: MLflow does not answer.
    """
    assigned = _assigned(settings, use_case)
    return Traffic(assigned.canary_percent, assigned.shadow)


def live_versions(settings: Settings, use_case: str) -> Versions:
    """Return the champion and the challenger as the endpoint itself reports them; nothing where it does not answer."""
    status = _endpoint_status(settings, use_case)
    return {alias: status[alias] for alias in ("champion", "challenger")} if status else {}


def deploy(
    settings: Settings,
    use_case: str,
    champion: str | Keep | None = KEEP,
    challenger: str | Keep | None = KEEP,
    traffic: Traffic | Keep = NO_TRAFFIC,
    timeout_s: float = DEPLOY_TIMEOUT_S,
) -> Versions:
    """Make the endpoint of `use_case` hold these versions, and wait until it does.

    Args:
        settings: Say where Ray's dashboard, Serve and MLflow are.
        use_case: Its name.
        champion: Version that answers; `None` for none, `KEEP` for the one deployed now.
        challenger: Version that answers whoever asks for it; the same.
        traffic: What the challenger gets of the other requests.
        timeout_s: How long to wait for all of it, the start of a replica included.

    Returns:
        The versions deployed.

    Raises:
        ServiceError: Ray or the endpoint does not answer, or not in time.
        ShopfloorError: A version does not load; what was deployed before is deployed again.
        ConflictError: Another deployment of the same use case came in between.
    """
    case = load_use_case(settings, use_case)
    deadline = time.monotonic() + timeout_s
    with _locked(settings):
        applications = _applications(settings)
        before = _assigned(settings, use_case)
        wanted = Assignment(
            champion=before.champion if isinstance(champion, Keep) else champion,
            challenger=before.challenger if isinstance(challenger, Keep) else challenger,
            canary_percent=before.canary_percent if isinstance(traffic, Keep) else traffic.canary_percent,
            shadow=before.shadow if isinstance(traffic, Keep) else traffic.shadow,
        )
        present = applications.get(use_case)
        application = _application(settings, case, present)
        _assign(settings, use_case, wanted)
        if _declaration(present) != _declaration({"deployed_app_config": application}):
            _declare(settings, applications, application)
    try:
        _wait_until_loaded(settings, case, wanted, _digest(application, wanted), deadline)
    except _DoesNotLoadError as error:
        _take_back(settings, use_case, wanted, before)
        raise ShopfloorError(
            f"Version {error.version} of {use_case} does not load: {error.reason}",
            "What answered before still answers.",
        ) from error
    return {"champion": wanted.champion, "challenger": wanted.challenger}


def undeploy(settings: Settings, use_case: str) -> None:
    """Remove the endpoint of `use_case` and return when it is gone; nothing happens where there is none.

    Raises:
        ServiceError: Ray does not answer, or the endpoint still does after all.
    """
    with _locked(settings):
        applications = _applications(settings)
        if applications.pop(use_case, None) is None:
            return
        _declare(settings, applications)
        _assign(settings, use_case, Assignment())
    deadline = time.monotonic() + settings.request_timeout_s
    while _endpoint_status(settings, use_case):
        if time.monotonic() > deadline:
            raise ServiceError(
                f"{endpoint(settings, use_case)} still answers.", f"Look at {settings.ray_dashboard_url}."
            )
        time.sleep(POLL_S)


def introduce(settings: Settings, use_case: str, version: str, deployment: Artifact) -> None:
    """Deploy `version` beside the live champion, as the challenger; the step `deploy`.

    Args:
        settings: Say where to.
        use_case: Its name.
        version: A version in the registry.
        deployment: Gets `deployment.json`, and an id of this deployment, so that what depends on it runs again.
    """
    live = live_versions(settings, use_case)
    if live.get("champion") != version:
        live = deploy(settings, use_case, challenger=version)
    record = {
        "use_case": use_case,
        "version": version,
        "deployment_id": uuid.uuid4().hex,
        "endpoint": endpoint(settings, use_case),
        "champion": live.get("champion") or "",
    }
    with publish(settings, deployment, "deploy") as directory:
        (directory / "deployment.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    deployment.metadata["version"] = version
    deployment.metadata["deployment_id"] = record["deployment_id"]
    deployment.metadata[EFFECT] = {"kind": "deployment", "use_case": use_case, "version": version}


class _DoesNotLoadError(Exception):
    def __init__(self, version: str, reason: str) -> None:
        super().__init__(version, reason)
        self.version = version
        self.reason = reason


def _assigned(settings: Settings, use_case: str) -> Assignment:
    import requests

    return assignments.read(requests, settings.tracking_uri, use_case, settings.request_timeout_s)


def _assign(settings: Settings, use_case: str, assignment: Assignment) -> None:
    import requests

    assignments.write(requests, settings.tracking_uri, use_case, assignment, settings.request_timeout_s)


def _application(settings: Settings, case: UseCase, present: Any) -> dict[str, Any]:
    """Return the declaration of a use case's application."""
    serving = case.serving
    config = Config(
        use_case=case.name,
        tracking_uri=settings.tracking_uri,
        log_root=log_root(settings) if serving.log else None,
        s3_endpoint_url=settings.s3_endpoint_url,
        max_in_flight=serving.max_in_flight,
        timeout_s=serving.timeout_s,
        batch_rows=serving.batching.max_rows if serving.batching else 0,
        batch_wait_ms=serving.batching.wait_ms if serving.batching else 0,
        max_rows=serving.max_rows,
        max_body_bytes=serving.max_body_bytes,
        tokens_file=settings.serve_tokens_file,
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
    declaration = hashlib.sha256(json.dumps(application, sort_keys=True).encode()).hexdigest()[:16]
    application["deployments"][0]["user_config"]["declaration"] = declaration
    return application


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
    for file in [*sorted(Path(__file__).parent.glob("*.py")), *([own] if case.serving.online else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _digest(application: dict[str, Any], assignment: Assignment) -> str:
    return Config.model_validate(application["deployments"][0]["user_config"]).digest(assignment)


def _wait_until_loaded(settings: Settings, case: UseCase, wanted: Assignment, digest: str, deadline: float) -> None:
    """Return when as many replicas as configured have the configuration of that digest and hold `wanted`."""
    ready: set[str] = set()
    seen = "it never answered"
    while time.monotonic() < deadline:
        status = _endpoint_status(settings, case.name)
        if status and status.get("digest") == digest:
            for version in wanted.versions():
                if version in status["errors"]:
                    raise _DoesNotLoadError(version, status["errors"][version])
            seen = f"it is loading {', '.join(status['loading'])}"
            holds = {"champion": status["champion"], "challenger": status["challenger"]}
            if not status["loading"] and holds == {"champion": wanted.champion, "challenger": wanted.challenger}:
                ready.add(status["replica"])
                if len(ready) >= case.serving.replicas:
                    return
        else:
            seen = _check_progress(settings, case.name, wanted)
        time.sleep(POLL_S)
    raise ServiceError(
        f"The endpoint {endpoint(settings, case.name)} did not load {', '.join(wanted.versions())} in time: {seen}.",
        f"Look at its logs in {settings.ray_dashboard_url}, then deploy again.",
    )


def _check_progress(settings: Settings, use_case: str, wanted: Assignment) -> str:
    """Return what Serve says about an application that does not hold `wanted` yet.

    Raises:
        ServiceError: It failed to start.
        ConflictError: It is not to hold `wanted` any more.
    """
    application = _applications(settings).get(use_case)
    if application is None or _assigned(settings, use_case) != wanted:
        raise ConflictError(
            f"Another deployment of {use_case} took the place of this one.", "Wait for it to end, then deploy again."
        )
    if application["status"] == "DEPLOY_FAILED":
        deployment = application["deployments"].get(DEPLOYMENT, {})
        reason = deployment.get("message") or application["message"]
        raise ServiceError(
            f"The endpoint of {use_case} does not start: {reason.strip().splitlines()[-1]}",
            f"{settings.ray_dashboard_url} shows its logs.",
        )
    return f"Serve says {application['status']} {application['message']}".rstrip()


def _take_back(settings: Settings, use_case: str, wanted: Assignment, before: Assignment) -> None:
    """Assign what was assigned before `wanted`, where nobody else has deployed since."""
    with _locked(settings):
        if _assigned(settings, use_case) == wanted:
            _assign(settings, use_case, before)


def _config(application: Any) -> dict[str, Any]:
    config: dict[str, Any] = (application or {}).get("deployed_app_config") or {}
    return config


def _declaration(application: Any) -> str | None:
    """Return the hash of what was declared to Serve; `None` where nothing was, or it failed to start."""
    if application is None or application.get("status") == "DEPLOY_FAILED":
        return None
    deployments = _config(application).get("deployments") or [{}]
    declaration = (deployments[0].get("user_config") or {}).get("declaration")
    return str(declaration) if declaration else None


def _applications(settings: Settings) -> dict[str, Any]:
    """Return Serve's applications by name, without those that are being removed."""
    details = _dashboard(settings, "GET").json()
    return {name: item for name, item in details["applications"].items() if item["status"] != "DELETING"}


def _declare(settings: Settings, applications: dict[str, Any], *changed: dict[str, Any]) -> None:
    """Make Serve run these applications: all of them as they are, but for those that `changed` brings."""
    declared = {name: _config(item) for name, item in applications.items() if _config(item)}
    declared |= {item["name"]: item for item in changed}
    address = urlsplit(settings.serve_url)
    local = address.hostname in {"127.0.0.1", "localhost", "::1"}
    # Serve reads the HTTP options when it starts, with the first application; a running one keeps its own.
    http_options = {"host": "127.0.0.1" if local else "0.0.0.0", "port": address.port or 8000}  # noqa: S104
    _dashboard(settings, "PUT", {"http_options": http_options, "applications": list(declared.values())})


def _dashboard(settings: Settings, method: str, content: dict[str, Any] | None = None) -> Any:
    import requests

    # The first call starts Serve's own processes, and takes as long as they do.
    timeout_s = max(settings.request_timeout_s, 60.0)
    url = f"{settings.ray_dashboard_url.rstrip('/')}/api/serve/applications/"
    try:
        answer = requests.request(method, url, json=content, timeout=timeout_s)
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


def _endpoint_status(settings: Settings, use_case: str) -> dict[str, Any] | None:
    """Return what one replica says about itself; `None` where none answers."""
    import requests

    try:
        answer = requests.get(
            f"{endpoint(settings, use_case)}/status",
            timeout=STATUS_TIMEOUT_S,
            headers={"Connection": "close"},  # so that the next one may ask another replica
        )
        status = answer.json() if answer.ok else None
    except (requests.RequestException, ValueError):
        return None
    return status if isinstance(status, dict) and "replica" in status else None


@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Keep other deployers on this machine out for as long as it takes to read, change and write the applications."""
    import fcntl

    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (settings.state_dir / "serve.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""Puts model versions on Ray Serve and says which ones answer: the assignment, Serve's REST API, the endpoint's status.

Serve takes the list of all applications at once, so reading, changing and writing it happens under one lock: two
deployers never lose each other's application. It is asked only where an application is new or its settings changed;
versions come and go by the assignment. One that does not load is taken back, and the live one answers on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from shopfloor.errors import ConflictError, ServiceError, ShopfloorError
from shopfloor.runs.mlflow import Mlflow
from shopfloor.serving import assignment as assignments
from shopfloor.serving.contract import DEPLOYMENT, Assignment, Config
from shopfloor.serving.deploy import applications
from shopfloor.settings import Settings
from shopfloor.storage import EFFECT, Artifact, publish
from shopfloor.use_case import UseCase, load_use_case

logger = logging.getLogger(__name__)

DEPLOY_TIMEOUT_S = 180.0
STATUS_TIMEOUT_S = 2.0
POLL_S = 0.2

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
        running = applications.running(settings)
        before = _assigned(settings, use_case)
        wanted = Assignment(
            champion=before.champion if isinstance(champion, Keep) else champion,
            challenger=before.challenger if isinstance(challenger, Keep) else challenger,
            canary_percent=before.canary_percent if isinstance(traffic, Keep) else traffic.canary_percent,
            shadow=before.shadow if isinstance(traffic, Keep) else traffic.shadow,
        )
        present = running.get(use_case)
        application = applications.build(settings, case, present)
        _assign(settings, use_case, wanted)
        if applications.fingerprint(present) != applications.fingerprint({"deployed_app_config": application}):
            applications.declare(settings, running, application)
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
        running = applications.running(settings)
        if running.pop(use_case, None) is None:
            return
        applications.declare(settings, running)
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
    return assignments.read(Mlflow(settings.tracking_uri, settings.request_timeout_s), use_case)


def _assign(settings: Settings, use_case: str, assignment: Assignment) -> None:
    assignments.write(Mlflow(settings.tracking_uri, settings.request_timeout_s), use_case, assignment)


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
    application = applications.running(settings).get(use_case)
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

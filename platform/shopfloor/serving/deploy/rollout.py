"""Lets an endpoint hold the versions of its assignment, and says which ones answer.

The assignment is written first, in one write that fails where somebody else wrote in between; replicas follow it. Serve
is asked only where an application is new or its settings changed. A version that does not load, or not in time, is
taken off the assignment again, unless somebody else has changed it since; what answered before answers on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from shopfloor.errors import ConflictError, ServiceError, ShopfloorError
from shopfloor.runs.mlflow import Mlflow
from shopfloor.serving import assignment as assignments
from shopfloor.serving.assignment import Entry
from shopfloor.serving.contract import DEPLOYMENT, LEASE_KEPT, LEASE_S, Action, Config
from shopfloor.serving.deploy import applications
from shopfloor.settings import Settings
from shopfloor.use_case import load_served_case

DEPLOY_TIMEOUT_S = 180.0
STATUS_TIMEOUT_S = 2.0
POLL_S = 0.2
WAITING = "waiting for "
"""How a state begins that tells of a replica without a place."""

Versions = dict[str, str | None]
"""`champion` and `challenger` to a version."""


@dataclass(frozen=True)
class Traffic:
    """What the challenger gets of the requests that ask for no version."""

    canary_percent: float = 0
    """Share that it answers, 0 to 100."""
    shadow: bool = False
    """Whether it answers a copy of what the champion answers, for nobody."""


NO_TRAFFIC = Traffic()


class Keep(Enum):
    """The type of `KEEP`."""

    KEEP = "keep"


KEEP = Keep.KEEP
"""Leave what is deployed under this alias."""


def endpoint(settings: Settings, use_case: str) -> str:
    """Return the address of a use case's endpoint."""
    return f"{settings.serve_url.rstrip('/')}/{use_case}"


def registry(settings: Settings) -> Mlflow:
    """Return the registry of these settings."""
    return Mlflow(settings.tracking_uri, settings.request_timeout_s)


def live_versions(settings: Settings, use_case: str) -> Versions:
    """Return the champion and the challenger as the endpoint itself reports them; nothing where it does not answer."""
    status = _endpoint_status(settings, use_case)
    return {alias: status[alias] for alias in ("champion", "challenger")} if status else {}


def live_share(settings: Settings, use_case: str) -> float:
    """Return the percent of the requests that the challenger answers, by the endpoint: its lease may have run out."""
    status = _endpoint_status(settings, use_case)
    return float(status["canary_percent"]) if status else 0.0


def deploy(
    settings: Settings,
    use_case: str,
    champion: str | Keep | None = KEEP,
    challenger: str | Keep | None = KEEP,
    traffic: Traffic | Keep = NO_TRAFFIC,
    timeout_s: float = DEPLOY_TIMEOUT_S,
    lease_s: float | None = None,
    reason: str = "",
    action: Action = "deploy",
    before: Entry | None = None,
) -> Entry:
    """Make the endpoint of `use_case` hold these versions, and wait until it does.

    Args:
        settings: Say where Ray's dashboard, Serve and MLflow are.
        use_case: Its name.
        champion: Version that answers; `None` for none, `KEEP` for the one deployed now.
        challenger: Version that answers whoever asks for it; the same.
        traffic: What the challenger gets of the other requests.
        timeout_s: How long to wait for all of it, the start of a replica included.
        lease_s: How long the challenger keeps its share where the caller does not renew its lease; `None` until
            somebody ends it.
        reason: Why, for the record.
        action: What kind of change it is.
        before: What the caller read of the registry before it decided; `None` reads it now.

    Returns:
        What stands in the registry now.

    Raises:
        ServiceError: Ray or the endpoint does not answer, or not in time.
        ShopfloorError: A version does not load; what was assigned before is assigned again.
        ConflictError: Another deployment of the same use case came in between.
    """
    case = load_served_case(settings, use_case)
    mlflow = registry(settings)
    deadline = time.monotonic() + timeout_s
    before = before or assignments.read(mlflow, use_case)
    previous = before.assignment
    share = Traffic(previous.canary_percent, previous.shadow) if isinstance(traffic, Keep) else traffic
    champion_version = previous.champion if isinstance(champion, Keep) else champion
    entry = assignments.change(
        mlflow,
        use_case,
        before,
        # Whoever is killed while it loads leaves a share that ends by itself.
        lease=assignments.fresh_lease(lease_s or LEASE_S) if share != NO_TRAFFIC else LEASE_KEPT,
        champion=champion_version,
        before=previous.before if champion_version == previous.champion else None,
        challenger=previous.challenger if isinstance(challenger, Keep) else challenger,
        canary_percent=share.canary_percent,
        shadow=share.shadow,
        application=applications.build(settings, case, before),
        place=applications.place(settings),
        action=action,
        reason=reason,
        run_id=settings.run_id or "",
    )
    try:
        hold(settings, use_case, entry, deadline)
        if share != NO_TRAFFIC:  # loading may have taken longer than the lease
            lease = LEASE_KEPT if lease_s is None else assignments.fresh_lease(lease_s)
            assignments.renew(mlflow, use_case, entry, lease)
    except BaseException:
        with contextlib.suppress(ShopfloorError):
            _take_back(mlflow, use_case, entry, before)
        raise
    return entry


def hold(settings: Settings, use_case: str, entry: Entry, deadline: float | None = None) -> None:
    """Let Serve run what the registry declares, and return when the endpoint holds the assignment.

    Args:
        settings: Say where Ray's dashboard, Serve and MLflow are.
        use_case: Its name.
        entry: What stands in the registry, with an application.
        deadline: Of `time.monotonic()`; `None` for `DEPLOY_TIMEOUT_S` from now.

    Raises:
        ServiceError: Ray or the endpoint does not answer, or not in time.
        ShopfloorError: A version does not load.
        ConflictError: The registry says something else since.
    """
    applications.declare(settings, use_case)
    _wait_until_held(settings, use_case, entry, deadline or time.monotonic() + DEPLOY_TIMEOUT_S)


def undeploy(settings: Settings, use_case: str, reason: str = "") -> bool:
    """Remove the endpoint of `use_case` and return when it is gone; tells whether there was one.

    Raises:
        ServiceError: Ray does not answer, or the endpoint still does after all.
        ConflictError: Somebody else changes the endpoint.
    """
    mlflow = registry(settings)
    before = assignments.read(mlflow, use_case)
    present = use_case in applications.running(settings)
    if not present and before.application is None and not before.assignment.versions():
        return False
    if before.has_record:
        assignments.change(
            mlflow,
            use_case,
            before,
            champion=None,
            challenger=None,
            canary_percent=0,
            shadow=False,
            before=None,
            application=None,
            action="remove",
            reason=reason,
        )
    applications.declare(settings, use_case)
    deadline = time.monotonic() + settings.request_timeout_s
    while _endpoint_status(settings, use_case):
        if time.monotonic() > deadline:
            raise ServiceError(
                f"{endpoint(settings, use_case)} still answers.", f"Look at {settings.ray_dashboard_url}."
            )
        time.sleep(POLL_S)
    return True


def holds_already(settings: Settings, use_case: str, version: str, entry: Entry) -> bool:
    """Tell whether all replicas have a version in memory, so that it can answer at once."""
    ready: set[str] = set()
    if entry.application is None:
        return False
    replicas = applications.replicas(entry.application)
    for _ in range(1 if replicas == 1 else 4 * replicas):
        status = _endpoint_status(settings, use_case)
        if status is None or version not in {*status["loaded"], status["kept"]}:
            return False
        ready.add(status["replica"])
        if len(ready) >= replicas:
            return True
    return False


class _DoesNotLoadError(ShopfloorError):
    """A version does not load."""


def _wait_until_held(settings: Settings, use_case: str, entry: Entry, deadline: float) -> None:
    """Return when as many replicas as declared have that configuration and hold the assignment.

    Raises:
        ShopfloorError: As `hold` says.
    """
    assignment = entry.assignment
    application = entry.application or {}
    replicas = applications.replicas(application)
    digest = Config.model_validate(application["deployments"][0]["user_config"]).digest(assignment)
    ready: set[str] = set()
    state, told = "it never answered", ""
    for status in _statuses(settings, use_case, deadline):
        if status is None or status.get("digest") != digest:
            state = _check_progress(settings, use_case, entry)
            if state != told and state.startswith(WAITING):
                told = state
                print(state, file=sys.stderr, flush=True)  # noqa: T201  a terminal, or the step's log
            if status is not None and status.get("registry"):
                state = f"a replica cannot read its assignment: {status['registry']}"
            continue
        for version in assignment.versions():
            if version in status["errors"]:
                raise _DoesNotLoadError(
                    f"Version {version} of {use_case} does not load: {status['errors'][version]}",
                    "What answered before still answers.",
                )
        state = f"it is loading {', '.join(status['loading'])}"
        held = (status["champion"], status["challenger"]) == (assignment.champion, assignment.challenger)
        if not status["loading"] and held:
            ready.add(status["replica"])
            if len(ready) >= replicas:
                return
    raise ServiceError(
        f"The endpoint {endpoint(settings, use_case)} did not load {', '.join(assignment.versions())} in time: "
        f"{state.rstrip('.')}.",
        f"Look at its logs in {settings.ray_dashboard_url}, then deploy again.",
    )


def _statuses(settings: Settings, use_case: str, deadline: float) -> Iterator[dict[str, Any] | None]:
    """Yield what replicas say about themselves, until the deadline."""
    while time.monotonic() < deadline:
        yield _endpoint_status(settings, use_case)
        time.sleep(POLL_S)


def _check_progress(settings: Settings, use_case: str, entry: Entry) -> str:
    """Return what Serve says about an application that does not hold the assignment yet.

    Raises:
        ServiceError: It failed to start.
        ConflictError: It is not to hold that any more.
    """
    assignments.require_same(use_case, entry, assignments.read(registry(settings), use_case))
    present = applications.running(settings)
    application = present.get(use_case)
    if application is None:  # somebody who had read the list before put another one in its place
        applications.declare(settings, use_case)
        return "Serve was asked again"
    if application["status"] == "DEPLOY_FAILED":
        deployment = application["deployments"].get(DEPLOYMENT, {})
        reason = deployment.get("message") or application["message"]
        raise ServiceError(
            f"The endpoint of {use_case} does not start: {reason.strip().splitlines()[-1]}",
            f"{settings.ray_dashboard_url} shows its logs.",
        )
    words = f"Serve says {application['status']} {application['message']}".rstrip()
    return applications.lacks_room(present, use_case) or words


def _take_back(mlflow: Mlflow, use_case: str, entry: Entry, before: Entry) -> None:
    """Assign what was assigned before, where nobody else has changed it since; the declaration stays."""
    with contextlib.suppress(ConflictError):
        old = before.assignment
        assignments.change(
            mlflow,
            use_case,
            entry,
            lease=before.lease,
            champion=old.champion,
            challenger=old.challenger,
            canary_percent=old.canary_percent,
            shadow=old.shadow,
            before=old.before,
            reason=f"undone: {entry.assignment.words()}",
        )


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

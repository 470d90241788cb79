"""Starts, repairs and stops the embedded stack, and says how it is.

`up` starts whatever is missing, so it also repairs what a crash, a reboot or a killed `up` left; `down` stops what `up`
started and nothing else. Neither prints; `up` tells what happens through a callback.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from shopfloor import processes
from shopfloor.errors import EXCEPTION, ConflictError, ServiceError, UsageError
from shopfloor.records import Record
from shopfloor.settings import EMBEDDED, Settings
from shopfloor.stack import families, ray_head, services, versions
from shopfloor.stack import state as states
from shopfloor.stack.services import ADDRESSES, SERVICES, TITLES, USUAL_PORTS
from shopfloor.stack.state import Service, StackState
from shopfloor.storage import naming_full_disk

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
GRACE_S = 5.0
POLL_S = 0.2
ATTEMPTS = 3
"""How often a service is started that lost its port to another process in between."""
LAST_LINES = 5
LOG_LIMIT_BYTES = 10 * 1024**2
Progress = Callable[[str], None]
Health = Literal["healthy", "starting", "not answering", "down"]


class ServiceStatus(Record):
    """A service as it is now."""

    name: str
    health: Health
    address: str
    version: str = ""
    memory_bytes: int = 0
    """Bytes of all its processes; a page that several share counts once."""
    processes: int = 0
    pid: int | None = None
    uptime_s: float = 0.0
    note: str = ""


class ApplicationStatus(Record):
    """An application on Serve."""

    name: str
    state: str
    """Serve's word, e.g. `RUNNING`, `DEPLOYING`, `DEPLOY_FAILED`."""
    address: str
    message: str = ""


class StackStatus(Record):
    """All services, and the applications on Serve."""

    profile: str
    healthy: bool
    """Every service is healthy; Serve may still be starting."""
    services: list[ServiceStatus]
    applications: list[ApplicationStatus]


class UpResult(Record):
    """What `up` did."""

    started: list[str]
    """Names of the services that it started; none where all of them ran."""
    addresses: dict[str, str]


class DownResult(Record):
    """What `down` did."""

    stopped: list[str]
    processes: int


def up(
    settings: Settings,
    progress: Progress = logger.info,
    ports: dict[str, int] | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> UpResult:
    """Start what does not run, and wait until every service answers.

    Args:
        settings: Say where the state is kept.
        progress: Hears one line for each thing that happens.
        ports: Ports that the user insists on, by the setting that they belong to (`tracking_uri`, ...).
        timeout_s: How long the services may take to answer.

    Raises:
        UsageError: A port that the user insists on is taken, or the stack runs on another one.
        ServiceError: A service ended while it started, or did not answer in time; or it runs with another version than
            the one that is installed, or its database has another schema.
        ConflictError: Another `up` or `down` is at work, or an upgrade was cut short.
    """
    if settings.profile != EMBEDDED:
        raise UsageError(
            f"The services of profile {settings.profile!r} are not started from here.",
            "Leave --profile and SHOPFLOOR_PROFILE out to start the embedded stack.",
        )
    ports_by_setting = ports or {}
    with states.locked(settings, lambda: progress("Another `shopfloor up` or `down` is at work; waiting for it")):
        token_file = states.ray_token_file(settings)
        state = states.read(settings) or _blank(settings, token_file)
        _refuse_other_ports(state, ports_by_setting)
        versions.require_same({name: item.version for name, item in state.services.items() if _runs(state, name)})
        if states.databases_may_be_halfway(settings):
            raise ConflictError("An upgrade was cut short.", "`shopfloor upgrade` goes on with it.")
        deadline = time.monotonic() + timeout_s
        missing = [name for name in SERVICES if not _keeps_running(settings, state, name, timeout_s)]
        children: dict[str, subprocess.Popen[bytes]] = {}
        if "mlflow" in missing:
            versions.require_schema(settings)
        for name in missing:
            # What a dead service or a killed `up` left behind holds its ports and files.
            families.end([services.family(settings, name, _service(state, name))], GRACE_S)
        for name in missing:
            state = _plan(settings, state, name, ports_by_setting)
            state, children[name] = _start(settings, state, name)
            progress(f"Starting {TITLES[name]} on {state.addresses[ADDRESSES[name][0]]}")
        state = _wait(settings, state, children, progress, ports_by_setting, deadline)
        if "ray" in missing or _serve_is_gone(settings, state):
            serve_port = services.port_of(state.addresses["serve_url"])
            if not families.port_is_free(serve_port) and "serve_url" not in ports_by_setting:
                state = _move_serve(settings, state)
            with contextlib.suppress(OSError):  # the first deployment starts it as well
                services.start_serve(state.of(settings))
    return UpResult(started=missing, addresses=state.addresses)


def down(settings: Settings, names: Collection[str] = SERVICES) -> DownResult:
    """Stop what `up` started, whole process trees, also what lost its parent; data, runs and models stay.

    Args:
        settings: Say where the state is kept.
        names: Services that are stopped; by default the whole stack, which is then no longer recorded.
    """
    with states.locked(settings):
        state = states.read(settings)
        stopped = [name for name in names if _runs(state, name)]
        ours = [services.family(settings, name, _service(state, name)) for name in names]
        count = families.end(ours, GRACE_S)
        if "ray" in names:
            ray_head.remove_sockets(settings.state_dir)
        if set(names) == set(SERVICES):
            states.forget(settings)
        elif state is not None:
            others = {name: service for name, service in state.services.items() if name not in names}
            states.write(settings, state.model_copy(update={"services": others}))
    return DownResult(stopped=stopped, processes=count)


def status(settings: Settings) -> StackStatus:
    """Return how every service is, as it says itself."""
    if settings.profile == EMBEDDED:
        state = states.read(settings)
        settings = state.of(settings) if state else settings
        statuses = [_service_status(settings, state, name) for name in SERVICES]
    else:
        statuses = [_status_elsewhere(settings, name) for name in SERVICES]
    details = services.serve_details(settings) if statuses[-1].health == "healthy" else {}
    statuses.append(_serve_status(details, statuses[-1], settings.serve_url))
    applications = [
        ApplicationStatus(
            name=name,
            state=item.get("status", "UNKNOWN"),
            address=settings.serve_url + (item.get("route_prefix") or ""),
            message=item.get("message") or "",
        )
        for name, item in (details.get("applications") or {}).items()
    ]
    *servers, serve = statuses
    healthy = all(server.health == "healthy" for server in servers) and serve.health in {"healthy", "starting"}
    return StackStatus(profile=settings.profile, healthy=healthy, services=statuses, applications=applications)


def require_up(settings: Settings, services: Collection[str] = ()) -> None:
    """Refuse to go on where a service of the embedded stack does not run: its usual ports may be somebody else's.

    Args:
        settings: The profile; what is not embedded is not looked at.
        services: Those that are needed, of `mlflow` and `ray`; none named means all.

    Raises:
        ServiceError: A service of the stack is down, or runs with another version than the one that is installed.
    """
    state = states.read(settings)
    if settings.profile == EMBEDDED and state is not None:
        versions.require_same({name: item.version for name, item in state.services.items() if _runs(state, name)})
    dead = [name for name in services or SERVICES if not _runs(state, name)]
    if settings.profile == EMBEDDED and dead:
        what = "The stack is not up." if state is None else f"{' and '.join(TITLES[name] for name in dead)} died."
        raise ServiceError(what, "Start it: `shopfloor up`.")


def _service(state: StackState | None, name: str) -> Service | None:
    return state.services.get(name) if state else None


def _runs(state: StackState | None, name: str) -> bool:
    service = _service(state, name)
    return service is not None and processes.alive(service.process)


def _blank(settings: Settings, token_file: Path) -> StackState:
    return StackState(
        boot_id=processes.boot_id(),
        addresses={},
        services={},
        ray_dir=ray_head.temporary_directory(settings.state_dir),
        ray_token_file=token_file,
    )


def _serve_is_gone(settings: Settings, state: StackState) -> bool:
    """Tell whether a Ray that is no longer young runs no Serve; in a young one it may just be starting."""
    old = processes.age_s(state.services["ray"].process) > START_TIMEOUT_S
    return old and not services.serve_details(state.of(settings)).get("controller_info")


def _keeps_running(settings: Settings, state: StackState, name: str, timeout_s: float) -> bool:
    """Tell whether a service needs no start: it runs, and answers or is young enough to do so soon."""
    service = _service(state, name)
    if service is None or not processes.alive(service.process):
        return False
    return services.answers(name, state.of(settings)) or processes.age_s(service.process) < timeout_s


def _refuse_other_ports(state: StackState, ports: dict[str, int]) -> None:
    for name in SERVICES:
        for field in ADDRESSES[name]:
            address = state.addresses.get(field, "") if _runs(state, name) else ""
            if address and field in ports and services.port_of(address) != ports[field]:
                raise UsageError(
                    f"{TITLES[name]} runs already, on {address}, not on port {ports[field]}.",
                    "To move it: `shopfloor down`, then `shopfloor up` again.",
                )


def _plan(settings: Settings, state: StackState, name: str, ports: dict[str, int]) -> StackState:
    """Choose a service's addresses: the port that the user insists on, the last one, the usual one, or a free one."""
    addresses = dict(state.addresses)
    others = [services.port_of(address) for field, address in addresses.items() if field not in ADDRESSES[name]]
    choose = services.port_chooser(settings.state_dir, [*others, *ports.values()])
    for field in ADDRESSES[name]:
        port = ports.get(field)
        if port is not None and not families.port_is_free(port):
            raise UsageError(
                f"Port {port} is taken by {families.holder_of(port)}.",
                "Stop that, or name another port, or none: then a free one is found.",
            )
        previous = services.port_of(addresses.get(field, ""))
        if port is None and previous and families.port_is_free(previous):
            port = previous
        addresses[field] = services.address_on(field, port or choose(USUAL_PORTS[field], services.NEIGHBOURS))
    remaining = {key: service for key, service in state.services.items() if key != name}
    return state.model_copy(update={"addresses": addresses, "services": remaining})


def _start(settings: Settings, state: StackState, name: str) -> tuple[StackState, subprocess.Popen[bytes]]:
    """Start a service and record it; the addresses are recorded before, so that nobody asks at the wrong ones."""
    states.write(settings, state)
    log = settings.state_dir / "logs" / f"{name}.log"
    if log.is_file() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with naming_full_disk(settings.state_dir):
        command, environment = services.launch(settings, state, name)
    child = families.spawn(command, environment, log, settings.project_root)
    service = Service(name=name, process=processes.identify(child.pid), log=log, version=versions.installed(name))
    state = state.model_copy(update={"services": {**state.services, name: service}})
    states.write(settings, state)
    return state, child


def _wait(
    settings: Settings,
    state: StackState,
    children: dict[str, subprocess.Popen[bytes]],
    progress: Progress,
    ports: dict[str, int],
    deadline: float,
) -> StackState:
    """Wait until every service answers; start one anew that lost its port to another process."""
    began = time.monotonic()
    waiting = list(SERVICES)
    for name in SERVICES:
        if name not in children and not services.answers(name, state.of(settings)):
            progress(f"Waiting for {TITLES[name]}, which was started before")
    attempts = dict.fromkeys(SERVICES, 1)
    while waiting:
        for name in list(waiting):
            child = children.get(name)
            dead = child.poll() is not None if child is not None else not _runs(state, name)
            answered = services.answers(name, state.of(settings), timeout_s=1.0)
            if answered and not dead and (child is None or _listens(settings, state, name)):
                waiting.remove(name)
                if child:
                    progress(f"{TITLES[name]} answers after {time.monotonic() - began:.0f} s")
            elif answered or dead:
                # Two stacks that start at a time may choose the same port, and then another one answers there.
                families.end([services.family(settings, name, state.services[name])], GRACE_S)
                lost = any(not families.port_is_free(port) for port in services.listening_ports(state, name))
                if not lost or attempts[name] == ATTEMPTS:
                    raise ServiceError(
                        f"{TITLES[name]} ended while it started: {_last_words(state.services[name])}",
                        f"Its log is {state.services[name].log}.",
                    )
                attempts[name] += 1
                state = _plan(settings, state, name, ports)
                state, children[name] = _start(settings, state, name)
                progress(f"Starting {TITLES[name]} again, on {state.addresses[ADDRESSES[name][0]]}")
            elif time.monotonic() > deadline:
                raise ServiceError(
                    f"{TITLES[name]} does not answer in time: {_last_words(state.services[name])}",
                    f"Its log is {state.services[name].log}. `shopfloor up` waits again, `shopfloor down` gives up.",
                )
        if waiting:
            time.sleep(POLL_S)
    return state


def _move_serve(settings: Settings, state: StackState) -> StackState:
    """Choose another port for Serve, which binds its own only now."""
    own_ports = [services.port_of(address) for address in state.addresses.values()]
    choose = services.port_chooser(settings.state_dir, own_ports)
    address = services.address_on("serve_url", choose(USUAL_PORTS["serve_url"], services.NEIGHBOURS))
    state = state.model_copy(update={"addresses": {**state.addresses, "serve_url": address}})
    states.write(settings, state)
    return state


def _listens(settings: Settings, state: StackState, name: str) -> bool:
    """Tell whether it is our service that holds its ports."""
    running = families.members(services.family(settings, name, state.services[name]))
    return services.listening_ports(state, name) <= families.listening_ports(running)


def _service_status(settings: Settings, state: StackState | None, name: str) -> ServiceStatus:
    address = settings.ray_dashboard_url if name == "ray" else settings.tracking_uri
    service = _service(state, name)
    if service is None or not processes.alive(service.process):
        note = f"it died; its log is {service.log}" if service else "not started"
        return ServiceStatus(name=name, address=address, health="down", note=note)
    healthy = services.answers(name, settings)
    uptime_s = max(0.0, processes.age_s(service.process))
    running = families.members(services.family(settings, name, service))
    health: Health = "healthy" if healthy else "starting" if uptime_s < START_TIMEOUT_S else "not answering"
    return ServiceStatus(
        name=name,
        address=address,
        health=health,
        version=services.version_of(name, settings) if healthy else "",
        memory_bytes=families.memory_bytes(running),
        processes=len(running),
        pid=service.process.pid,
        uptime_s=uptime_s,
        note="" if healthy else f"its log is {service.log}",
    )


def _status_elsewhere(settings: Settings, name: str) -> ServiceStatus:
    """Return how a service is that somebody else started: whether it answers, and lets us in."""
    address = settings.ray_dashboard_url if name == "ray" else settings.tracking_uri
    if services.answers(name, settings):
        version = services.version_of(name, settings)
        return ServiceStatus(name=name, address=address, health="healthy", version=version, note="started elsewhere")
    note = "wherever it runs, its own log says why"
    return ServiceStatus(name=name, address=address, health="not answering", note=note)


def _serve_status(details: dict[str, object], ray: ServiceStatus, address: str) -> ServiceStatus:
    """Return how Serve is, which lives on Ray and has no process of its own to look at."""
    if ray.health != "healthy":
        return ServiceStatus(name="serve", address=address, health="down", note="needs ray")
    proxies = details.get("proxies")
    states_ = [proxy.get("status") for proxy in proxies.values()] if isinstance(proxies, dict) else []
    if states_ and all(state == "HEALTHY" for state in states_):
        health: Health = "healthy"
    else:
        health = "starting" if ray.uptime_s < START_TIMEOUT_S or "STARTING" in states_ else "not answering"
    note = "its processes are Ray's" if health == "healthy" else "`shopfloor up` starts it"
    return ServiceStatus(
        name="serve", address=address, health=health, version=ray.version, uptime_s=ray.uptime_s, note=note
    )


def _last_words(service: Service) -> str:
    """Return the end of a service's log: of a traceback, the exception alone."""
    with contextlib.suppress(OSError), service.log.open("rb") as file:
        file.seek(max(0, service.log.stat().st_size - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        if lines and EXCEPTION.match(lines[-1]):
            return lines[-1]
        return "\n".join(lines[-LAST_LINES:]) or "it said nothing."
    return "it left no log."

"""The embedded stack: an MLflow server and a Ray head on 127.0.0.1, started side by side and kept in a state file.

`up` brings whatever is missing, so it also repairs; `down` stops what `up` started and nothing else; `status` asks the
services themselves. The state file holds the addresses that every other command reads (`settings.load_settings`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from shopfloor.errors import ConflictError, ServiceError, UsageError
from shopfloor.settings import Settings, stack_state_file
from shopfloor.stack import processes
from shopfloor.stack.processes import ProcessId
from shopfloor.storage import write_atomically

START_TIMEOUT_S = 120.0
OBJECT_STORE_BYTES = 1024**3
SOCKET_PATH_LIMIT = 107
"""Longest path of a unix socket; Ray puts some 64 characters behind its temporary directory."""
USUAL_PORTS = {"tracking_uri": 5000, "ray_address": 6379, "ray_dashboard_url": 8265, "serve_url": 8000}
Progress = Callable[[str], None]


class Service(BaseModel):
    """A service as its start left it."""

    model_config = ConfigDict(frozen=True)

    name: str
    process: ProcessId
    log: Path


class StackState(BaseModel):
    """What `up` started and where it listens."""

    model_config = ConfigDict(frozen=True)

    addresses: dict[str, str]
    services: dict[str, Service] = {}
    ray_dir: str


class ServiceStatus(BaseModel):
    """A service as it is now."""

    model_config = ConfigDict(frozen=True)

    name: str
    address: str
    health: str
    """`healthy`, `starting`, `down` or `not answering`."""
    version: str = ""
    memory_bytes: int = 0
    pid: int | None = None
    uptime_s: float = 0.0


class StackStatus(BaseModel):
    """All services, and the applications on Serve."""

    model_config = ConfigDict(frozen=True)

    profile: str
    healthy: bool
    services: list[ServiceStatus]
    applications: dict[str, str]
    """Serve application to its state."""


def up(settings: Settings, progress: Progress, ports: dict[str, int] | None = None) -> StackStatus:
    """Start what is not running and wait until it answers.

    Args:
        settings: Say where the state is kept.
        progress: Hears one line for each thing that happens.
        ports: Ports that the user insists on, by the setting they belong to; a taken one is an error.

    Raises:
        UsageError: A port that the user insists on is taken.
        ServiceError: A service ended while starting or did not answer in time.
        ConflictError: Another `up` or `down` is at work.
    """
    with _locked(settings):
        state = _read(settings)
        missing = [name for name in ("mlflow", "ray") if not _runs(state, name)]
        if not missing and state is not None:
            return status(settings)
        state = _plan(settings, state, missing, ports or {})
        _write(settings, state)
        for name in missing:
            if name == "ray":
                _sweep(state)
            log = settings.state_dir / "logs" / f"{name}.log"
            progress(f"Starting {name} on {state.addresses['tracking_uri' if name == 'mlflow' else 'ray_address']}")
            process = _launch(settings, state, name, log)
            service = Service(name=name, process=process, log=log)
            state = state.model_copy(update={"services": {**state.services, name: service}})
            _write(settings, state)
        _wait(state, progress)
        return status(settings)


def down(settings: Settings) -> int:
    """Stop what `up` started, whole process trees, and forget the addresses; data stay.

    Returns:
        How many processes were stopped.
    """
    with _locked(settings):
        state = _read(settings)
        if state is None:
            return 0
        members = [member for service in state.services.values() for member in processes.tree(service.process)]
        count = processes.end(members) + _sweep(state)
        stack_state_file(settings).unlink(missing_ok=True)
        return count


def status(settings: Settings) -> StackStatus:
    """Return how every service is, as it says itself."""
    state = _read(settings)
    addresses = state.addresses if state else {name: str(getattr(settings, name)) for name in USUAL_PORTS}
    mlflow = _service_status(state, "mlflow", addresses["tracking_uri"], "/health", "/version")
    ray = _service_status(state, "ray", addresses["ray_dashboard_url"], "/api/version", "/api/version")
    services = [mlflow, ray]
    applications: dict[str, str] = {}
    if ray.health == "healthy":
        answer = _get(addresses["ray_dashboard_url"] + "/api/serve/applications/")
        with contextlib.suppress(ValueError, AttributeError):
            details = json.loads(answer or "{}")
            applications = {name: app["status"] for name, app in (details.get("applications") or {}).items()}
    return StackStatus(
        profile=settings.profile,
        healthy=all(service.health == "healthy" for service in services),
        services=services,
        applications=applications,
    )


def _plan(settings: Settings, state: StackState | None, missing: list[str], wanted: dict[str, int]) -> StackState:
    """Choose the addresses: those of a service that runs stay, a port that the user named must be free."""
    addresses = dict(state.addresses) if state else {}
    mine = {"mlflow": ["tracking_uri"], "ray": ["ray_address", "ray_dashboard_url", "serve_url"]}
    for service in missing:
        for field in mine[service]:
            previous = urlsplit(
                addresses[field] if "//" in addresses.get(field, "") else f"//{addresses.get(field, '')}"
            ).port
            if field in wanted and not processes.port_is_free(wanted[field]):
                raise UsageError(
                    f"Port {wanted[field]} is taken by {processes.holder_of(wanted[field])}.",
                    "Stop it, or name another port, or none: then a free one is found.",
                )
            candidates = [wanted.get(field), previous, USUAL_PORTS[field]]
            port = next((p for p in candidates if p and processes.port_is_free(p)), None) or processes.free_port()
            addresses[field] = f"127.0.0.1:{port}" if field == "ray_address" else f"http://127.0.0.1:{port}"
    services = {name: service for name, service in (state.services if state else {}).items() if name not in missing}
    return StackState(addresses=addresses, services=services, ray_dir=_ray_dir(settings))


def _ray_dir(settings: Settings) -> str:
    """Return Ray's temporary directory: in the state directory unless its sockets' names would be too long."""
    inside = settings.state_dir / "ray"
    if len(str(inside)) + 64 <= SOCKET_PATH_LIMIT:
        return str(inside)
    digest = hashlib.sha256(str(settings.state_dir).encode()).hexdigest()[:10]
    return str(Path(tempfile.gettempdir()) / f"shopfloor-{os.getuid()}-{digest}")


def _launch(settings: Settings, state: StackState, name: str, log: Path) -> ProcessId:
    log.parent.mkdir(parents=True, exist_ok=True)
    if name == "mlflow":
        command, environment = _mlflow(settings, state)
    else:
        command, environment = _ray(settings, state)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=settings.project_root,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    return processes.identify(process.pid)


def _mlflow(settings: Settings, state: StackState) -> tuple[list[str], dict[str, str]]:
    folder = settings.state_dir / "mlflow"
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    port = urlsplit(state.addresses["tracking_uri"]).port
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")),
    ]
    # The job runners would be seven more processes for features that nobody uses here.
    return command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _ray(settings: Settings, state: StackState) -> tuple[list[str], dict[str, str]]:
    Path(state.ray_dir).mkdir(parents=True, exist_ok=True)
    ports = {
        name: urlsplit(address if "//" in address else f"//{address}").port for name, address in state.addresses.items()
    }
    # Two trials, a replica and Serve's own actors share the cores of a small machine.
    cpus = max(4, os.cpu_count() or 1)
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", str(ports["ray_address"]), "--ray-client-server-port", "0"),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports["ray_dashboard_url"])),
        *("--dashboard-agent-listen-port", "0", "--num-cpus", str(cpus)),
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", state.ray_dir),
    ]
    root = settings.project_root
    addressed = settings.model_copy(update=state.addresses)
    environment = {
        **addressed.environment(),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "platform")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return command, environment


def _wait(state: StackState, progress: Progress) -> None:
    """Wait until every service answers; one that ends says its last words."""
    checks = {
        "mlflow": state.addresses["tracking_uri"] + "/health",
        "ray": state.addresses["ray_dashboard_url"] + "/api/version",
    }
    waiting = set(checks)
    deadline = time.monotonic() + START_TIMEOUT_S
    while waiting:
        for name in sorted(waiting):
            service = state.services[name]
            if _get(checks[name], timeout_s=1.0) is not None:
                waiting.discard(name)
                progress(
                    f"{name} answers on {checks[name].rpartition('/health')[0] or checks[name].rpartition('/api')[0]}"
                )
            elif not processes.alive(service.process):
                raise ServiceError(
                    f"{name} ended while starting: {_last_words(service.log)}", f"Its log is {service.log}."
                )
            elif time.monotonic() > deadline:
                raise ServiceError(
                    f"{name} did not answer within {START_TIMEOUT_S:.0f} s: {_last_words(service.log)}",
                    f"Its log is {service.log}.",
                )
        time.sleep(0.1)


def _service_status(state: StackState | None, name: str, address: str, health: str, version: str) -> ServiceStatus:
    service = state.services.get(name) if state else None
    running = service is not None and processes.alive(service.process)
    if service is None or not running:
        return ServiceStatus(name=name, address=address, health="down")
    healthy = _get(address + health) is not None
    text = (_get(address + version) or "").strip()
    with contextlib.suppress(ValueError, AttributeError):
        text = json.loads(text).get("ray_version", text)
    return ServiceStatus(
        name=name,
        address=address,
        health="healthy" if healthy else "not answering",
        version=text if healthy else "",
        memory_bytes=processes.memory_bytes(service.process),
        pid=service.process.pid,
        uptime_s=time.time() - service.process.create_time,
    )


def _runs(state: StackState | None, name: str) -> bool:
    service = state.services.get(name) if state else None
    return service is not None and processes.alive(service.process)


def _sweep(state: StackState) -> int:
    """End what a dead Ray head left behind: everything that carries this stack's own directory in its command line."""
    left = [process for process in processes.marked_with(state.ray_dir) if process.pid != os.getpid()]
    return processes.end(left)


def _read(settings: Settings) -> StackState | None:
    try:
        content: Any = json.loads(stack_state_file(settings).read_text(encoding="utf-8"))
        return StackState.model_validate(content)
    except (FileNotFoundError, ValueError):
        return None


def _write(settings: Settings, state: StackState) -> None:
    write_atomically(stack_state_file(settings), state.model_dump_json(indent=1))


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _get(url: str, timeout_s: float = 3.0) -> str | None:
    """Return the body of an answer with status 200, `None` for anything else."""
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310  our own addresses, always http
            return str(answer.read().decode())
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (settings.state_dir / "stack.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                "Another `shopfloor up` or `shopfloor down` is at work here.", "Wait until it has ended."
            ) from None
        # The services must not inherit the lock: a file descriptor of Python's is closed on exec.
        yield

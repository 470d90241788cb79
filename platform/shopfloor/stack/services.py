"""The two servers of the embedded stack, an MLflow server and a Ray head: how each is started and asked how it is.

Both listen on 127.0.0.1 only. Nothing here decides when to start or stop them: `lifecycle.py` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shopfloor.environment import ENV_PREFIX, NO_REPORTS, direct_loopback
from shopfloor.errors import ServiceError, UsageError
from shopfloor.runs.mlflow import Mlflow
from shopfloor.settings import Settings
from shopfloor.stack import ray_head
from shopfloor.stack.families import Family, port_is_free
from shopfloor.stack.state import Service, StackState

SERVICES = ("mlflow", "ray")
TITLES = {"mlflow": "MLflow", "ray": "Ray"}
USUAL_PORTS = {"tracking_uri": 5000, "ray_address": 6379, "ray_dashboard_url": 8265, "serve_url": 8000}
"""The settings that hold an address of the stack, and the port where nobody is in the way."""
ADDRESSES = {"mlflow": ("tracking_uri",), "ray": ("ray_address", "ray_dashboard_url", "serve_url")}
OBJECT_STORE_BYTES = 1024**3
MARKER = "SHOPFLOOR_STACK_SERVICE"
PROBE_TIMEOUT_S = 3.0
_FOREIGN = (
    ENV_PREFIX,
    "MLFLOW_TRACKING_",
    "MLFLOW_RUN_",
    "MLFLOW_EXPERIMENT_",
    "RAY_ADDRESS",
    "RAY_API_SERVER_",
    "RAY_AUTH_",
)
"""Beginnings of the variables of a shell that say where other services are, or how they let people in."""
_RUN_FIELDS = {"run_id", "step_run_id", "published_dir"}
NEIGHBOURS = 200
"""How many ports behind the usual one are tried where that is taken."""


def port_of(address: str) -> int:
    """Return the port of a URL or of `host:port`."""
    return urlsplit(address if "//" in address else f"//{address}").port or 0


def address_on(field: str, port: int) -> str:
    """Return the value of an address setting for a port of this machine."""
    return f"127.0.0.1:{port}" if field == "ray_address" else f"http://127.0.0.1:{port}"


def port_chooser(state_dir: Path, ports_in_use: Iterable[int] = ()) -> Callable[[int, int], int]:
    """Return a function that chooses a port from `first` on, `first` itself or one of the `count` ports behind it.

    Two stacks that start at the same time see the same ports free. Each begins at a place of its own, so that they
    seldom choose the same ones.

    Args:
        state_dir: Of the stack.
        ports_in_use: Never chosen; neither is a port that was chosen before.
    """
    unavailable = set(ports_in_use)
    place = int.from_bytes(hashlib.sha256(os.fsencode(state_dir)).digest()[:4])

    def choose(first: int, count: int) -> int:
        candidates = (first, *(first + 1 + (place + step) % count for step in range(count)))
        for port in candidates:
            if port not in unavailable and port_is_free(port):
                unavailable.add(port)
                return port
        raise ServiceError(f"No port from {first} to {first + count} is free.", "Stop what holds them.")

    return choose


def listening_ports(state: StackState, name: str) -> set[int]:
    """Return the ports that a service listens on as soon as it answers; Serve's comes later."""
    return {port_of(state.addresses[field]) for field in ADDRESSES[name] if field != "serve_url"}


def family(settings: Settings, name: str, service: Service | None) -> Family:
    """Return how to find a service's processes, also where its start was never recorded."""
    # Ray's processes give themselves names, which can wipe out the environment that holds the marker.
    titles = ("ray::", "ray-dashboard-") if name == "ray" else ()
    return Family(
        root=service.process if service else None, marker=(MARKER, f"{name}@{settings.state_dir}"), titles=titles
    )


def launch(settings: Settings, state: StackState, name: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts a service, and its environment."""
    command, variables = _mlflow(settings, state) if name == "mlflow" else _ray(settings, state)
    inherited = {
        key: value
        for key, value in os.environ.items()
        # The services belong to no run, and to no other stack than this one.
        if not key.startswith(_FOREIGN)
    }
    own = {MARKER: f"{name}@{settings.state_dir}", "PYTHONUNBUFFERED": "1", **direct_loopback(os.environ)}
    return command, inherited | NO_REPORTS | variables | own


def answers(name: str, settings: Settings, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Tell whether a service does its work, and lets us in."""
    if name == "mlflow":
        return get(settings.tracking_uri, "/health", timeout_s) is not None
    # The dashboard answers some seconds before there is a node to run anything on.
    nodes = _ask_ray(settings, "/nodes?view=summary", timeout_s)
    summary = ((nodes or {}).get("data") or {}).get("summary") or []
    return any((node.get("raylet") or {}).get("state") == "ALIVE" for node in summary)


def version_of(name: str, settings: Settings) -> str:
    """Return the version that a service says it has; empty where it does not say."""
    if name == "mlflow":
        return Mlflow(settings.tracking_uri, PROBE_TIMEOUT_S).version()
    answer = _ask_ray(settings, "/api/version") or {}
    return str(answer.get("ray_version", ""))


def serve_details(settings: Settings) -> dict[str, Any]:
    """Return what Ray's dashboard tells about Serve; nothing where it does not answer."""
    return _ask_ray(settings, "/api/serve/applications/") or {}


def start_serve(settings: Settings) -> None:
    """Ask Ray to start Serve, and do not wait: it takes some seconds, in which the first steps of a run need no Serve.

    An empty list of applications is declared, so call this only where none can be.
    """
    options = {"host": "127.0.0.1", "port": port_of(settings.serve_url)}
    body = json.dumps({"http_options": options, "applications": []})
    dashboard = urlsplit(settings.ray_dashboard_url)
    headers = {"Content-Type": "application/json", **_ray_headers(settings)}
    connection = http.client.HTTPConnection(dashboard.netloc, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("PUT", "/api/serve/applications/", body, headers)
    finally:
        connection.close()


def get(
    url: str, path: str, timeout_s: float = PROBE_TIMEOUT_S, headers: Mapping[str, str] | None = None
) -> str | None:
    """Return the body of an answer with status 200, `None` for anything else; never by way of a proxy."""
    place = urlsplit(url)
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = kind(place.netloc, timeout=timeout_s)
    try:
        connection.request("GET", place.path.rstrip("/") + path, headers={"Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _ask_ray(settings: Settings, path: str, timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Any] | None:
    """Return the JSON object of an answer with status 200, `None` for anything else."""
    try:
        content = json.loads(get(settings.ray_dashboard_url, path, timeout_s, _ray_headers(settings)) or "null")
    except json.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def _ray_headers(settings: Settings) -> dict[str, str]:
    """Return what lets us in; without the token's file nothing does, and Ray counts as not answering."""
    with contextlib.suppress(UsageError):
        return settings.ray_headers()
    return {}


def _mlflow(settings: Settings, state: StackState) -> tuple[list[str], dict[str, str]]:
    port = port_of(state.addresses["tracking_uri"])
    command = [sys.executable, "-m", "shopfloor.stack.mlflow_server", str(port), str(settings.state_dir / "mlflow")]
    # Job runners are eight more processes, for evaluations of language models.
    return command, {
        "PYTHONPATH": str(settings.project_root / "platform"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _ray(settings: Settings, state: StackState) -> tuple[list[str], dict[str, str]]:
    ports = {field: port_of(state.addresses[field]) for field in ADDRESSES["ray"]}
    choose_port = port_chooser(settings.state_dir, ports.values())
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor"),
        *("--node-ip-address", "127.0.0.1", "--port", str(ports["ray_address"])),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports["ray_dashboard_url"])),
        *(*ray_head.agent_ports(choose_port), "--num-cpus", str(logical_cpus())),
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", str(state.ray_dir)),
        *("--log-style", "record", "--log-color", "false"),
    ]
    ray_head.remove_old_sessions(state.ray_dir)
    root = settings.project_root
    own = state.of(settings).model_copy(update=dict.fromkeys(_RUN_FIELDS))
    return command, {
        **own.environment(),
        **ray_head.environment(state.ray_dir, settings.state_dir, choose_port),
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "platform")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def logical_cpus() -> int:
    """Return how many CPUs Ray may hand out: one more than there are.

    A replica of an endpoint holds half a CPU and mostly waits; it must not keep a trial from the last core.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable + 1

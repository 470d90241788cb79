"""Processes known by pid and start time, so that a reused pid is never taken for ours."""

from __future__ import annotations

import contextlib
import socket
import time

import psutil
from pydantic import BaseModel, ConfigDict

GRACE_S = 8.0


class ProcessId(BaseModel):
    """A process that was ours when it was recorded."""

    model_config = ConfigDict(frozen=True)

    pid: int
    create_time: float
    """Seconds since the epoch, as the kernel counts it."""


def identify(pid: int) -> ProcessId:
    """Return the identity of a running process.

    Raises:
        psutil.NoSuchProcess: It is gone.
    """
    return ProcessId(pid=pid, create_time=psutil.Process(pid).create_time())


def alive(process: ProcessId) -> bool:
    """Tell whether the very process runs: not a zombie, not another one that got its pid."""
    return _process(process) is not None


def tree(process: ProcessId) -> list[psutil.Process]:
    """Return the process and all its descendants; nothing where it is gone."""
    root = _process(process)
    if root is None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return [root, *root.children(recursive=True)]
    return []


def memory_bytes(process: ProcessId) -> int:
    """Return the resident memory of the tree, in bytes; pages that are shared count once for each process."""
    total = 0
    for member in tree(process):
        with contextlib.suppress(psutil.Error):
            total += member.memory_info().rss
    return total


def marked_with(text: str) -> list[psutil.Process]:
    """Return the processes whose command line holds `text`: what a dead parent left behind."""
    found: list[psutil.Process] = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(text in part for part in candidate.cmdline()):
                found.append(candidate)
    return found


def end(processes: list[psutil.Process]) -> int:
    """End processes: asked first, made to after some seconds.

    Returns:
        How many there were.
    """
    running = [process for process in processes if process.is_running()]
    for process in running:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(running, timeout=GRACE_S)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=GRACE_S)
    return len(running)


def port_is_free(port: int) -> bool:
    """Tell whether somebody could listen on 127.0.0.1:`port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return not accepts(port)


def accepts(port: int, timeout_s: float = 0.5) -> bool:
    """Tell whether somebody listens on 127.0.0.1:`port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=timeout_s):
        return True
    return False


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def holder_of(port: int) -> str:
    """Return who listens on `port`, in words, as far as this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid is None:
                    break
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "another process"


def wait_until(condition: object, timeout_s: float) -> bool:
    """Call `condition` until it is true or the time is over."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _process(process: ProcessId) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        if abs(found.create_time() - process.create_time) > 1.0 or found.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return found

"""Families of processes and their ports: started detached, known again later, stopped as whole trees.

A process is ours when it is the one that was recorded, or when it carries our marker in its environment; a reused pid
is never taken for ours. Knows nothing of what the processes do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from shopfloor.processes import ProcessId, alive, find, own_processes
from shopfloor.storage import naming_full_disk

POLL_S = 0.1


@dataclass(frozen=True)
class Family:
    """How to find a service's processes, also those whose parent is gone."""

    root: ProcessId | None
    """The process that was started, also the leader of its session; `None` where it was never recorded."""
    marker: tuple[str, str]
    """An environment variable and its value, inherited by everything that the root starts."""
    titles: tuple[str, ...] = ()
    """Beginnings of the names that its processes give themselves. Doing so can wipe their environment out."""


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, directory: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, away from the terminal; its output goes to the end of `log`.

    What it writes is for this account alone.
    """
    with naming_full_disk(log.parent):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
                umask=0o077,
            )


def members(family: Family) -> list[psutil.Process]:
    """Return the family's running processes: the root first, where it runs; never this process or one above it."""
    tree: dict[int, psutil.Process] = {}
    root = find(family.root) if family.root else None
    if root is not None:
        with contextlib.suppress(psutil.Error):
            tree = {process.pid: process for process in (root, *root.children(recursive=True))}
    sessions = {session for pid in tree if (session := _session(pid)) is not None}
    others: list[psutil.Process] = []
    for process in own_processes():
        if process.pid in tree:
            continue
        if _session(process.pid) in sessions or _carries(process, family.marker):
            tree[process.pid] = process
        else:
            others.append(process)
    # What has wiped its environment out is known by its session, once more by its name.
    sessions |= {session for pid in tree if (session := _session(pid)) is not None}
    if family.root and not psutil.pid_exists(family.root.pid):
        sessions.add(family.root.pid)
    for process in others:
        if _session(process.pid) in sessions and _named(process, family.titles):
            tree[process.pid] = process
    for process in (own := psutil.Process(), *own.parents()):
        tree.pop(process.pid, None)
    return [process for process in tree.values() if _running(process)]


def end(families: Iterable[Family], grace_s: float) -> int:
    """Stop families: their roots are asked to, after `grace_s` seconds whatever is left is made to.

    Returns:
        How many processes were stopped.
    """
    families = list(families)
    stopped: set[int] = set()

    def left() -> list[psutil.Process]:
        running = [process for family in families for process in members(family)]
        stopped.update(process.pid for process in running)
        return running

    def root_runs(family: Family) -> bool:
        return family.root is not None and alive(family.root)

    running = left()
    notified: set[int] = set()
    asked_until = time.monotonic() + grace_s
    while running and time.monotonic() < asked_until:
        for family in families:
            # Where a root runs it stops its own; orphans have nobody to do that.
            family_running = members(family)[:1] if root_runs(family) else members(family)
            for process in family_running:
                if process.pid not in notified:
                    notified.add(process.pid)
                    with contextlib.suppress(psutil.Error):
                        process.terminate()
        psutil.wait_procs(running, timeout=POLL_S)
        running = left()
    forced_until = time.monotonic() + grace_s
    while running and time.monotonic() < forced_until:
        for process in running:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(running, timeout=POLL_S)
        running = left()
    return len(stopped)


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the memory that processes take, in bytes; where the kernel tells, a shared page counts once in all."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", 0) or memory.rss
    return total


def port_is_free(port: int) -> bool:
    """Tell whether somebody could listen on 127.0.0.1:`port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    # Some systems let two processes listen on one port, one of them on all interfaces.
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
        return False
    return True


def listening_ports(processes: Iterable[psutil.Process]) -> set[int]:
    """Return the TCP ports that processes listen on."""
    ports: set[int] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            ports |= {
                connection.laddr.port
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
    return ports


def holder_of(port: int) -> str:
    """Return who listens on `port`, in words, as far as this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "a process of another user"


def _running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


def _carries(process: psutil.Process, marker: tuple[str, str]) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.environ().get(marker[0]) == marker[1])
    return False


def _named(process: psutil.Process, titles: tuple[str, ...]) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(titles) and " ".join(process.cmdline()).startswith(titles)
    return False

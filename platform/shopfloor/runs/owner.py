"""Whose run it is: the process that records it, or that hands it to its engine, and whether that still lives."""

from __future__ import annotations

import socket
from typing import Any

import psutil

from shopfloor import processes
from shopfloor.errors import NotFoundError
from shopfloor.processes import ProcessId
from shopfloor.runs.index import ENGINE_RUN, PROCESS, STATE, SUBMITTER


def this_process() -> str:
    """Return what names this process for as long as it runs: its host, and what no clock moves."""
    return f"{socket.gethostname()} {processes.identify()}"


def find_process(run: Any) -> psutil.Process | None:
    """Return the process that records a run; `None` where it is gone or none was recorded.

    Raises:
        NotFoundError: It is on another machine.
    """
    host, process = _parts(run.data.tags.get(PROCESS, ""))
    if process is not None and _is_elsewhere(host, process):
        raise NotFoundError(f"Run {run.info.run_id} belongs to a process on {host}.", "Ask for it there.")
    return processes.find(process) if process else None


def is_dead(run: Any) -> bool:
    """Tell whether a run's record says that it goes on and whose process is gone; without a process nobody can tell."""
    tags = run.data.tags
    process = tags.get(PROCESS) or ("" if ENGINE_RUN in tags else tags.get(SUBMITTER, ""))
    return tags.get(STATE) == "running" and process != "" and not _process_lives(process)


def _parts(text: str) -> tuple[str, ProcessId | None]:
    """Return the host and the process in what `this_process` gave; no process where it cannot be read."""
    host, _, process = text.partition(" ")
    return host, ProcessId.parse(process)


def _is_elsewhere(host: str, process: ProcessId) -> bool:
    """Tell whether nobody here can see the process: it is no process of this machine, however often it was started."""
    machine = processes.boot_id().partition("/")[0]
    rebooted = host == socket.gethostname() and not process.boot.startswith(machine)
    return not process.is_here and not rebooted


def _process_lives(text: str) -> bool:
    """Tell whether a run's process lives; one on another machine is given the benefit of the doubt."""
    host, process = _parts(text)
    return process is not None and (_is_elsewhere(host, process) or processes.alive(process))

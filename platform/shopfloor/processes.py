"""Processes known again later: by the boot of the machine, the pid and the ticks from the boot to their start.

None of these moves when somebody sets the clock, and a pid that was given to another process is never mistaken for the
one that had it before. What is recorded of a process on another machine, or in another container, is known as foreign.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psutil

from shopfloor.records import Record

_PROC = Path("/proc")
_MILLISECONDS = 1000
"""Ticks in a second where the system keeps no count of its own."""


class ProcessId(Record):
    """A process as it was recorded; its text has no spaces but the two between the parts."""

    pid: int
    boot: str
    """Boot of the machine in which the pid counts, from `boot_id`."""
    started: int
    """Clock ticks from that boot to the start of the process."""

    def __str__(self) -> str:
        return f"{self.pid} {self.boot} {self.started}"

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """Return the process that `str` gave this text for; `None` where it is no such text."""
        parts = text.split(" ")
        try:
            return cls(pid=int(parts[0]), boot=parts[1], started=int(parts[2])) if len(parts) == 3 else None
        except ValueError:
            return None

    @property
    def is_here(self) -> bool:
        """Whether the pid counts here: this machine since its last boot, and the same container."""
        return self.boot == boot_id()


@cache
def boot_id() -> str:
    """Return what changes when the machine is started anew, and differs between containers that share a kernel."""
    with contextlib.suppress(OSError):
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = (_PROC / "self/ns/pid").readlink().name.strip("pid:[]")
        return f"{boot}/{namespace}"
    # The times at which processes began are enough there: the kernel writes them down when they do.
    return "-"


def identify(pid: int | None = None) -> ProcessId:
    """Return the identity of a running process; without a pid, of this one.

    Raises:
        psutil.NoSuchProcess: It is gone.
    """
    pid = os.getpid() if pid is None else pid
    return ProcessId(pid=pid, boot=boot_id(), started=_started(pid))


def find(process: ProcessId) -> psutil.Process | None:
    """Return the very process, `None` where it ended (also as a zombie) or its pid does not count here."""
    with contextlib.suppress(psutil.Error):
        if process.is_here and _started(process.pid) == process.started:
            candidate = psutil.Process(process.pid)
            return candidate if candidate.status() != psutil.STATUS_ZOMBIE else None
    return None


def alive(process: ProcessId) -> bool:
    """Tell whether the very process runs: not a zombie, not another one that got its pid."""
    return find(process) is not None


def age_s(process: ProcessId) -> float:
    """Return how many seconds ago a process of this boot began; setting the clock changes nothing."""
    if (_PROC / "self/stat").exists():
        return time.clock_gettime(time.CLOCK_BOOTTIME) - process.started / os.sysconf("SC_CLK_TCK")
    return time.time() - process.started / _MILLISECONDS


def own_processes() -> Iterator[psutil.Process]:
    """Give the processes of this account that run now; any of them may be gone by the time it is asked."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid():
                yield process


def _started(pid: int) -> int:
    """Return the ticks from the boot to a process's start.

    Raises:
        psutil.NoSuchProcess: It is gone.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if (_PROC / "self/stat").exists():
            raise psutil.NoSuchProcess(pid) from None
        created: float = psutil.Process(pid).create_time()
        return round(created * _MILLISECONDS)
    # The name of the program, in parentheses, may hold spaces and parentheses; the start is the 20th behind it.
    return int(stat.rpartition(")")[2].split()[19])

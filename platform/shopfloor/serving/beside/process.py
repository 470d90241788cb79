"""Processes beside a replica: modules of ours with its imports and files, but not its interpreter, nor its fate."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TextIO

NICE = 19


def start(module: str) -> subprocess.Popen[bytes]:
    """Run a module, which speaks through its stdin and stdout; what it says on stderr goes to the replica's log."""
    return subprocess.Popen(
        [sys.executable, "-m", module],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def replies(name: str) -> TextIO:
    """Return what was stdout, and send what is printed from here on to the log: what a model prints is no reply.

    Args:
        name: What the log calls this process.
    """
    stream: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(message)s")
    return stream


def give_way(entirely: bool) -> None:
    """Let the other processes of this stack have the CPU first.

    Args:
        entirely: Run only while none of them wants it: for what can be left out. A machine without an idle moment
            would keep what somebody waits for from ever being done; that takes the smallest share there is, and never
            interrupts a process that has just been woken.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE if entirely else os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):  # not on Linux, or not allowed
        entirely = False
    if not entirely:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)

"""Why a step's process failed, as its engine reads it: what the process left, or what its exit code says.

The exception itself is the source, never the log. What ended without one (by a signal, without memory, a program that
is not Python) is told by its exit code.
"""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

from shopfloor.errors import Failure

KFP_EXECUTOR = "kfp.dsl.executor_main"
OUR_EXECUTOR = "shopfloor.engines.executor_main"
LAST_WORDS = 500
"""Characters of a log's last line that are quoted."""
_SIGNALS_FROM = 128
"""A shell and a container add this to the number of the signal that ended a program."""
_UNFORESEEN = {"SIGKILL", "SIGTERM", "SIGINT"}
"""Ends that come from outside: whatever a process had left before is not why it failed."""
_OUT_OF_MEMORY = "Where memory runs out the kernel does so: give the step more, or let less run beside it."


def read(file: Path, code: int, log: Path | None = None) -> Failure:
    """Return why a process failed: what it left in the file, or what its exit code says.

    Args:
        file: Its `FAILURE_FILE`.
        code: Its exit code, as `of_exit` takes it.
        log: What it printed.
    """
    cause = of_exit(code, log)
    if cause.kind in _UNFORESEEN:
        return cause
    try:
        return Failure(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return cause


def of_exit(code: int, log: Path | None = None) -> Failure:
    """Return what the end of a process says that left no exception.

    Args:
        code: Its exit code; the negative number of a signal, or 128 and the number.
        log: What it printed; its last line is quoted.
    """
    number = -code if code < 0 else code - _SIGNALS_FROM
    with contextlib.suppress(ValueError):
        name = signal.Signals(number).name
        return Failure(name, f"{name} ended the step's process.", _OUT_OF_MEMORY if name == "SIGKILL" else "")
    words = _last_words(log)
    return Failure("exit", f"The step's process ended with exit code {code}" + (f": {words}" if words else "."))


def telling(command: list[str]) -> list[str]:
    """Return a component's command with KFP's executor run by ours, which leaves why it fails."""
    return [
        OUR_EXECUTOR if part == KFP_EXECUTOR else part.replace(f"-m {KFP_EXECUTOR} ", f"-m {OUR_EXECUTOR} ")
        for part in command
    ]


def _last_words(log: Path | None) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines() if log and log.is_file() else []
    # KFP prints what a step is given, as JSON: its last line says nothing.
    return lines[-1].strip()[:LAST_WORDS] if lines and any(letter.isalnum() for letter in lines[-1]) else ""

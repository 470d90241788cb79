"""Ends the steps of a run whose own process ended without doing so: a kill -9, a terminal that was closed, no memory.

A pipe tells: the guard reads it, only the run's process holds its other end, and the kernel closes that when the
process ends, however it does. A parent-death signal would not do: it follows the thread that started a step, and goes
to the shell of a step but not to what the shell started. The steps are known by a variable that they all inherit.

Usage: python -m shopfloor.engines.guard VALUE, where VALUE is what the steps' variable holds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from types import TracebackType

MARKER = "SHOPFLOOR_GUARD"
"""Variable in the environment of every step; its value names the run's process."""
GRACE_S = 5.0
_DONE = b"done"


class Guard:
    """Watches over the steps of the process that enters it."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self.variables = {MARKER: secrets.token_hex(8)}
        """Variables for the environment of each step."""

    def __enter__(self) -> Guard:
        """Start the guard, out of reach of what ends this process and its terminal."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self.variables[MARKER]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
            umask=0o077,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Let the guard go: this process has ended its steps itself."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(_DONE)


def main(value: str) -> None:
    """Wait for the run's process to end, and end what it left behind."""
    if sys.stdin.buffer.read() == _DONE:
        return
    import psutil

    from shopfloor.processes import own_processes

    def left() -> list[psutil.Process]:
        steps = []
        for process in own_processes():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(MARKER) == value:
                    steps.append(process)
        return steps

    for end in (psutil.Process.terminate, psutil.Process.kill):
        steps = left()
        for process in steps:
            with contextlib.suppress(psutil.Error):
                end(process)
        psutil.wait_procs(steps, timeout=GRACE_S)


if __name__ == "__main__":
    main(sys.argv[1])

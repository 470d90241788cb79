"""The processes of a run's steps on this machine: started with a log, ended with all that they started.

Each leads a session of its own, so that a signal for its group reaches what it started as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TERMINATION_GRACE_S = 5.0


class StepProcesses:
    """The processes of one run's steps; any thread may start one, and any may stop them all."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self.stopped = threading.Event()
        """Whether the run is stopped: set once, by `stop`."""

    def run(self, command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path) -> int:
        """Run a command to its end; once the run is stopped, the end comes at once.

        Args:
            command: The program and its arguments.
            environment: All of its variables.
            directory: Where it works.
            log: Takes what it prints, at its end.

        Returns:
            Its exit code; that of a process which a signal ended is the signal's number below zero.
        """
        process = _spawn(command, environment, directory, log)
        self._running[process.pid] = process
        try:
            if self.stopped.is_set():
                end_process_group(process)
            return process.wait()
        finally:
            del self._running[process.pid]

    def stop(self) -> None:
        """End every process: first asked, after some seconds made to."""
        self.stopped.set()
        for process in list(self._running.values()):
            end_process_group(process)


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=directory,
            start_new_session=True,
            umask=0o077,  # what it writes is for this account alone
        )


def end_process_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group: SIGTERM, and SIGKILL for what is left after some seconds.

    Args:
        process: Leads its group. Its exit code is left to whoever waits for it: who takes it away with `os.waitpid`
            makes `Popen.wait` say 0, and a step that was killed would count as done.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + TERMINATION_GRACE_S
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
            continue
        return

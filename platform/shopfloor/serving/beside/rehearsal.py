"""Loads a version in a process of its own before a replica that answers does.

What a model's library does to its process (a crash, an exit, a hang, all memory) then happens to that one. And the
live requests need not share the interpreter with the download, which is the greater part of the work.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

from shopfloor.serving.beside import process as side_process

logger = logging.getLogger(__name__)

LIMIT_S = 1800
"""How long a version may take to arrive and to load."""


class RehearsalFailed(Exception):
    """The version does not load, or its process ended while it did; says why."""


class Rehearsal:
    """One trial of a version; it ends with the block around it, whoever waits for it or not."""

    def __init__(self) -> None:
        """Begin with no process."""
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._lock = threading.Lock()

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._ended = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def fetch(self, tracking_uri: str, name: str, version: str, directory: Path, limit_s: int = LIMIT_S) -> Path:
        """Download a version and load it elsewhere, with all that a replica asks it then; return where it lies.

        Args:
            tracking_uri: MLflow's server.
            name: Registered model.
            version: A version number.
            directory: Gets the model's files.
            limit_s: How long all of it may take.

        Raises:
            RehearsalFailed: As it says.
        """
        order = {"tracking_uri": tracking_uri, "name": name, "version": version, "directory": str(directory)}
        order["limit_s"] = str(limit_s)
        with self._lock:
            if self._ended:
                raise RehearsalFailed("nobody waits for it any more")
            self._process = process = side_process.start(__name__)
        with process:
            try:
                output, _ = process.communicate(json.dumps(order).encode(), timeout=limit_s)
            except subprocess.TimeoutExpired:  # a model may have taken the alarm of its own process away
                process.kill()
                raise RehearsalFailed(f"the process that tried it was not done after {limit_s} s") from None
        try:
            answer: dict[str, str] = json.loads(output)
        except ValueError:
            raise RehearsalFailed(
                f"the process that tried it {_end(process, limit_s)}, see Ray's log of the replica"
            ) from None
        if "error" in answer:
            raise RehearsalFailed(answer["error"])
        return Path(answer["directory"])


def main() -> None:
    """Load what stdin orders, and say on stdout where it lies, or why it does not load."""
    side_process.give_way(entirely=False)
    replies = side_process.replies("rehearsal")
    order = json.loads(sys.stdin.buffer.readline())
    # A model may never be done, and whoever ordered this be gone by then.
    signal.alarm(int(order["limit_s"]))

    from shopfloor.runs.mlflow import import_mlflow
    from shopfloor.serving.model.loading import download, prepare

    import_mlflow()
    try:
        directory = download(order["tracking_uri"], order["name"], order["version"], Path(order["directory"]))
        prepare(order["name"], order["version"], directory)
    except Exception as error:
        logger.exception("version %s of %s does not load", order["version"], order["name"])
        answer = {"error": f"{type(error).__name__}: {error}"}
    else:
        answer = {"directory": str(directory)}
    json.dump(answer, replies)
    replies.close()


def _end(process: subprocess.Popen[bytes], limit_s: int) -> str:
    code = process.returncode
    if code == -signal.SIGALRM:
        return f"was not done after {limit_s} s"
    return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"


if __name__ == "__main__":
    main()

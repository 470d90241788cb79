"""Runs of the `local` engine as another terminal sees them: a record, a process of this machine and a folder of logs.

Such a run goes on in the command that began it (`flows/submit.py`), so this engine is handed no job.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from shopfloor.engines.base import GOING, RunState
from shopfloor.runs import index, owner
from shopfloor.runs.mlflow import client_of, lookup
from shopfloor.settings import Settings

POLL_S = 0.5


class LocalEngine:
    """Tells of runs on this machine and stops them; a run is named by its MLflow run."""

    name: ClassVar[str] = "local"

    def __init__(self, settings: Settings) -> None:
        """Look into the state directory and the MLflow server of the settings; nothing is asked yet."""
        self._settings = settings

    def status(self, engine_run: str) -> RunState:
        """Return how the run stands; one whose process went without a word was killed.

        Raises:
            NotFoundError: MLflow has no such run.
            ServiceError: MLflow does not answer.
        """
        run = self._run(engine_run)
        return "killed" if owner.is_dead(run) else cast(RunState, run.data.tags.get(index.STATE, "running"))

    def why(self, engine_run: str) -> str:
        """Return what the run itself recorded of its end.

        Raises:
            NotFoundError: MLflow has no such run.
            ServiceError: MLflow does not answer.
        """
        return str(self._run(engine_run).data.tags.get(index.OUTCOME, ""))

    def logs(self, engine_run: str, step: str | None = None, follow: bool = False) -> Iterator[str]:
        """Yield what the steps of the run printed on this machine, each part under its step's name.

        Raises:
            NotFoundError: MLflow has no such run.
            ServiceError: MLflow does not answer.
        """
        folder = log_folder(self._settings, engine_run)
        read: dict[str, int] = {}
        last = ""
        while True:
            going = follow and self.status(engine_run) in GOING
            for file in sorted(folder.glob("*.log"), key=lambda file: file.stat().st_mtime):
                if step not in {None, file.stem}:
                    continue
                text = file.read_bytes()[read.get(file.stem, 0) :]
                whole = text[: text.rfind(b"\n") + 1] if going else text
                if not whole:
                    continue
                read[file.stem] = read.get(file.stem, 0) + len(whole)
                yield from [f"--- {file.stem}"] if step is None and last != file.stem else []
                last = file.stem
                yield from whole.decode(errors="replace").splitlines()
            if not going:
                return
            time.sleep(POLL_S)

    def stop(self, engine_run: str) -> None:
        """Ask the run's process to end; it ends its steps and says so in its record.

        Raises:
            NotFoundError: MLflow has no such run, or it is on another machine.
            ServiceError: MLflow does not answer.
        """
        process = owner.find_process(self._run(engine_run))
        if process is not None:
            process.terminate()

    @cached_property
    def _client(self) -> Any:
        return client_of(self._settings)

    def _run(self, run_id: str) -> Any:
        with lookup(self._client):
            return self._client.get_run(run_id)


def log_folder(settings: Settings, run_id: str) -> Path:
    """Return where a run that goes on on this machine keeps what its steps print, each in `<step>.log`."""
    return settings.state_dir / "runs" / run_id / "logs"

"""What a search has finished: a JSON file a trial beside the checkpoints, and in the end a run of MLflow each.

A search that was killed goes on from the files. Tune's own way back reads pickles, so whoever may write to the artifact
store could run code here. These files are plain and checked, and a checkpoint is believed only where this search keeps
its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from pydantic import ValidationError

from shopfloor.errors import ServiceError, first_line
from shopfloor.records import Record, Search, Trial
from shopfloor.runs.mlflow import PARENT, add_params, connect
from shopfloor.settings import Settings
from shopfloor.training import trial as trials
from shopfloor.use_case import SearchSection

logger = logging.getLogger(__name__)

MAX_BYTES = 2**20
TRIAL = "shopfloor.trial"
"""Tag of a trial's run: its id."""
_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_AT_ONCE = 4


class FinishedTrial(Record):
    """A trial that came to its end, and where its checkpoint is."""

    trial: Trial
    checkpoint: str
    """Path on the search's file system; empty where it left none."""


class FinishedTrials:
    """The trials of one search, in this process and of attempts before it."""

    def __init__(self, filesystem: Any, root: str, section: SearchSection, count: int) -> None:
        """Read what earlier attempts at the same search have left.

        Args:
            filesystem: Of pyarrow, where the search keeps its files.
            root: The search's own directory there.
            section: Says which metric counts.
            count: Trials of the whole search.
        """
        self._filesystem = filesystem
        self._root = root
        self._section = section
        self.count = count
        self.kept = self._read()
        """Trials that finished, by trial id; a trial that failed is tried again by the next attempt."""
        self.failed: dict[str, Trial] = {}
        self._curves: dict[str, list[tuple[int, float]]] = {}

    def reported(self, trial_id: str, numbers: dict[str, Any]) -> None:
        """Hear of a trial's numbers on its way."""
        value = _finite(numbers.get(self._section.metric))
        if value is not None:
            self._curves.setdefault(trial_id, []).append((int(numbers.get("rounds", 0)), value))

    def ended(self, trial_id: str, params: dict[str, Any], numbers: dict[str, Any], checkpoint: str) -> Trial:
        """Keep a trial that came to its end."""
        rounds = int(numbers.get("rounds", 0))
        whole = rounds >= self._section.max_rounds or numbers.get(trials.FINISHED)
        state = "finished" if whole else "stopped"
        trial = self._trial(trial_id, params, numbers, state)
        record = FinishedTrial(trial=trial, checkpoint=checkpoint)
        self.kept[trial_id] = record
        self._filesystem.create_dir(self._directory(), recursive=True)
        with self._filesystem.open_output_stream(f"{self._directory()}/{trial_id}.json") as stream:
            stream.write(record.model_dump_json().encode())
        return trial

    def broke(self, trial_id: str, params: dict[str, Any], numbers: dict[str, Any], error: str) -> Trial:
        """Remember a trial that failed, and why."""
        self.failed[trial_id] = self._trial(trial_id, params, numbers, "failed", error)
        return self.failed[trial_id]

    def usable(self) -> list[FinishedTrial]:
        """Return the trials that have the metric and a checkpoint, the best first."""
        sign = 1 if self._section.mode == "min" else -1
        usable = [one for one in self.kept.values() if self._section.metric in one.trial.metrics and one.checkpoint]
        return sorted(usable, key=lambda one: (sign * one.trial.metrics[self._section.metric], one.trial.trial_id))

    def all(self) -> list[Trial]:
        """Return every trial that came to an end, those that failed too."""
        return [*(one.trial for one in self.kept.values()), *self.failed.values()]

    def _trial(
        self, trial_id: str, params: dict[str, Any], numbers: dict[str, Any], state: str, error: str = ""
    ) -> Trial:
        # A trial counts by the best model that it left, not by the last.
        best = {name: _finite(value) for name, value in numbers.get("best", {}).items() if name != trials.BEST_ROUND}
        return Trial(
            trial_id=trial_id,
            params=params,
            metrics={name: value for name, value in best.items() if value is not None},
            rounds=int(numbers.get("rounds", 0)),
            seconds=float(numbers.get("time_total_s", 0.0)),
            status=cast(Any, state),
            error=error,
            curve=self._curves.get(trial_id, []),
        )

    def _directory(self) -> str:
        return f"{self._root}/finished"

    def _read(self) -> dict[str, FinishedTrial]:
        from pyarrow import fs

        records: dict[str, FinishedTrial] = {}
        for info in self._filesystem.get_file_info(fs.FileSelector(self._directory(), allow_not_found=True)):
            if info.type is not fs.FileType.File or info.size > MAX_BYTES:
                continue
            with self._filesystem.open_input_stream(info.path) as stream:
                text = stream.read()
            try:
                one = FinishedTrial.model_validate_json(text)
            except ValidationError:  # half written, or none of ours
                continue
            if one.checkpoint and not self._is_own(one.checkpoint):
                continue
            records[one.trial.trial_id] = one
        return dict(list(records.items())[: self.count])

    def _is_own(self, path: str) -> bool:
        from pyarrow import fs

        inside = path.startswith(f"{self._root}/") and ".." not in path.split("/")
        return inside and self._filesystem.get_file_info(path).type is not fs.FileType.NotFound


def record(settings: Settings, search: Search) -> None:
    """Record a search, where a run of MLflow stands for this step; a finished search is not lost where MLflow is away.

    Args:
        settings: `step_run_id` and `run_id` name the runs of the step and of the pipeline; both get the parameters of
            the best trial.
        search: What to record.
    """
    if settings.step_run_id is None:
        return
    import requests
    from mlflow.exceptions import MlflowException

    try:
        _record_search(settings, settings.step_run_id, search)
    except (ServiceError, MlflowException, requests.RequestException) as error:
        logger.warning("the trials of this search are not all in MLflow: %s", first_line(error))


def _record_search(settings: Settings, step_run_id: str, search: Search) -> None:
    client = connect(settings)
    experiment_id = client.get_run(step_run_id).info.experiment_id
    for run_id in filter(None, (step_run_id, settings.run_id)):
        add_params(client, run_id, search.best_params)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda trial: _record_trial(client, experiment_id, step_run_id, search, trial), search.trials))


def _record_trial(client: Any, experiment_id: str, step_run_id: str, search: Search, trial: Trial) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    tags = {PARENT: step_run_id, TRIAL: trial.trial_id, "mlflow.source.name": "shopfloor submit"}
    if trial.error:
        tags["mlflow.note.content"] = trial.error
    if trial.trial_id == search.best_trial_id:
        tags["shopfloor.best"] = "true"
    name = f"trial {trial.trial_id}"
    run = client.create_run(experiment_id, start_time=now - int(trial.seconds * 1000), tags=tags, run_name=name)
    curve = [Metric(search.metric, value, now, rounds) for rounds, value in trial.curve]
    ends = [Metric(f"best {name}", value, now, trial.rounds) for name, value in trial.metrics.items()]
    client.log_batch(run.info.run_id, metrics=[*curve, *ends], params=_params(trial.params))
    client.set_terminated(run.info.run_id, _STATUS[trial.status])


def _params(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)[:6000]) for name, value in values.items()]


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None

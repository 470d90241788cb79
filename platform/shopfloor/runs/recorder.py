"""Every run is one MLflow run with a child for each step, so that MLflow's own page is the run list.

The recorder writes in a thread of its own, in order: a step never waits for the record of the step before. When the
server stops answering, the run is told at its next step. What a dead process left as running is closed by whoever looks
next.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shopfloor.errors import Failure, ServiceError, first_line
from shopfloor.pipeline.results import Outputs, artifacts_of
from shopfloor.runs.index import (
    ATTEMPT,
    CHAMPION,
    ENGINE,
    PARENT,
    PROCESS,
    RESULT_OF,
    SECONDS,
    STATE,
    STATUS,
    STEP,
    create_run,
    failure_tags,
    reopen,
    run_url,
    steps_of,
)
from shopfloor.runs.mlflow import add_params, denied
from shopfloor.runs.mlflow import connect as connect
from shopfloor.runs.owner import this_process
from shopfloor.settings import Settings
from shopfloor.storage import EFFECT


@contextlib.contextmanager
def answering(settings: Settings) -> Iterator[None]:
    """Turn the exceptions of a tracking server that stopped answering within the block into one line.

    Raises:
        ServiceError: It stopped.
    """
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        raise _stopped_answering(settings, error) from error


def _stopped_answering(settings: Settings, error: Exception) -> ServiceError:
    return denied(error) or ServiceError(
        f"The MLflow server {settings.tracking_uri} stopped answering: {first_line(error, 200)}.",
        "Start it (shopfloor up) and submit again: finished steps are kept.",
    )


class RunRecorder:
    """Writes one run and its steps to MLflow."""

    def __init__(
        self,
        settings: Settings,
        client: Any,
        use_case: str | None,
        pipeline: str,
        engine: str,
        params: Mapping[str, Any],
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Create the run, or go on with one.

        Args:
            settings: Say where the server is.
            client: From `connect`.
            use_case: Names the experiment; without one the pipeline does.
            pipeline: Name of the pipeline.
            engine: Name of the engine.
            params: Arguments of the pipeline.
            run_id: A run that was created for this one to record into; its own engine, parameters and tags stay.
            tags: Further tags of a new run.
        """
        self._settings = settings
        self._client = client
        self._steps: dict[str, str] = {}
        if run_id is None:
            own = {ENGINE: engine, PROCESS: this_process()}
            run = create_run(client, use_case, pipeline, params, own | dict(tags or {}))
        else:
            run = client.get_run(run_id)
            reopen(client, run, {PROCESS: this_process()})
            self._steps = {record.name: record.run_id for record in steps_of(client, run) if record.run_id}
        self.run_id: str = run.info.run_id
        self._experiment_id: str = run.info.experiment_id
        self._earlier = frozenset(self._steps)
        self.failure: Exception | None = None
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="run-recorder", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Address of the run in MLflow's own page."""
        return run_url(self._settings, self._experiment_id, self.run_id)

    def step_started(self, step: str) -> str:
        """Create the step's run and return its id.

        Raises:
            ServiceError: The server stopped answering.
        """
        self.check()
        try:
            self._steps[step] = self._create_step(step)
        except Exception as error:
            self.failure = error
            self.check()
        return self._steps[step]

    def step_finished(
        self,
        step: str,
        state: str,
        seconds: float,
        outputs: Outputs,
        log: Path | None,
        failure: Failure | None,
        result_of: str = "",
    ) -> None:
        """Write how a step ended: its numbers, its log, why it failed, whose result it took."""
        # A cached step is recorded only now, and maybe after one that began later.
        began_ms = int((time.time() - seconds) * 1000)
        own = {RESULT_OF: result_of} if result_of else {}
        tags = own | failure_tags(failure) if failure or step in self._earlier else own
        self._queue.put(lambda: self._finish_step(step, state, seconds, outputs, log, tags, began_ms))

    def add_params(self, params: Mapping[str, Any], step: str) -> None:
        """Give the run, and a step's run, the parameters that they lack."""

        def write() -> None:
            for run_id in (self.run_id, self._steps.get(step, self.run_id)):
                add_params(self._client, run_id, params)

        self._queue.put(write)

    def log_text(self, text: str, name: str) -> None:
        """Attach a text to the run as a file of that name."""
        self._queue.put(lambda: self._client.log_text(self.run_id, text, name))

    def log_artifact(self, local: Path, folder: str | None = None, step: str | None = None) -> None:
        """Attach a file or a directory to the run, or to a step's run."""

        def write() -> None:
            run_id = self._steps.get(step, self.run_id) if step else self.run_id
            if local.is_dir():
                self._client.log_artifacts(run_id, str(local), folder)
            else:
                self._client.log_artifact(run_id, str(local), folder)

        self._queue.put(write)

    def flush(self) -> None:
        """Wait until all is written; the recorder takes nothing more."""
        self._queue.put(None)
        self._thread.join()

    def check(self) -> None:
        """Say when the server stopped answering.

        Raises:
            ServiceError: A record could not be written.
        """
        if self.failure is not None:
            raise _stopped_answering(self._settings, self.failure) from self.failure

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if self.failure is None:
                try:
                    job()
                except Exception as error:  # kept, and raised at the run's next step
                    self.failure = error

    def _create_step(self, step: str, began_ms: int | None = None) -> str:
        if step in self._earlier:  # an attempt before this one left it
            self._client.update_run(self._steps[step], status="RUNNING")
            log_values(self._client, self._steps[step], {}, {STATE: "running", **failure_tags(None)})
            return self._steps[step]
        return create_step(self._client, self._experiment_id, self.run_id, step, began_ms)

    def _finish_step(
        self,
        step: str,
        state: str,
        seconds: float,
        outputs: Outputs,
        log: Path | None,
        tags: Mapping[str, str],
        began_ms: int,
    ) -> None:
        run_id = self._steps.get(step) or self._create_step(step, began_ms)
        self._steps[step] = run_id
        finish_step(self._client, self.run_id, run_id, step, state, seconds, outputs, log, tags)


def create_step(
    client: Any, experiment_id: str, run_id: str, step: str, began_ms: int | None = None, attempt: str = ""
) -> str:
    """Create the MLflow run of a step of the run `run_id`, and return its id.

    Args:
        client: From `connect`.
        experiment_id: That of the run.
        run_id: The run.
        step: Name of the step.
        began_ms: When it began, in milliseconds; now, where nobody says.
        attempt: Which attempt at the step it is; of several, the newest counts.
    """
    tags = {PARENT: run_id, STEP: step, STATE: "running", "mlflow.source.name": "shopfloor submit"}
    tags |= {ATTEMPT: attempt} if attempt else {}
    return str(client.create_run(experiment_id, start_time=began_ms, tags=tags, run_name=step).info.run_id)


def finish_step(
    client: Any,
    run_id: str,
    step_run_id: str,
    step: str,
    state: str,
    seconds: float,
    outputs: Outputs,
    log: Path | None,
    tags: Mapping[str, str],
) -> None:
    """Write how a step ended to its MLflow run, and its numbers to the run's too.

    Args:
        client: From `connect`.
        run_id: The run.
        step_run_id: The step's own.
        step: Name of the step.
        state: How it ended.
        seconds: How long it took.
        outputs: What it made.
        log: File with what it printed.
        tags: Further tags of the step's run.
    """
    numbers: dict[str, float] = {"seconds": seconds}
    for artifact in artifacts_of(outputs):
        if artifact["type"].get("schemaTitle") == "system.Metrics":
            numbers |= {
                name: float(value)
                for name, value in artifact["metadata"].items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
    effects = [artifact["metadata"].get(EFFECT) or {} for artifact in artifacts_of(outputs)]
    versions = [effect["version"] for effect in effects if effect.get("kind") == "champion"]
    champions = {CHAMPION: versions[-1]} if versions else {}
    log_values(client, step_run_id, numbers, {STATE: state, SECONDS: f"{seconds:.2f}", **champions, **tags})
    own = {name: value for name, value in numbers.items() if name != "seconds"}
    if own:
        log_values(client, run_id, {f"{step}.{name}": value for name, value in own.items()}, {})
    if log is not None and log.is_file():
        client.log_artifact(step_run_id, str(log))
    client.set_terminated(step_run_id, STATUS[state])


def log_values(client: Any, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Write numbers and tags to a run at once; MLflow refuses some letters in a metric's name."""
    from mlflow.entities import Metric, RunTag

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(_metric_name(name), value, now, 0) for name, value in metrics.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )


def _metric_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in name)

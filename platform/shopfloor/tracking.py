"""Every run is one MLflow run with a child for each step, so that MLflow's own page is the run list.

The recorder writes in a thread of its own, in order: a step never waits for the record of the step before. When the
server stops answering, the run is told at its next step. What a dead process left as running is closed by whoever looks
next.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from shopfloor.errors import NotFoundError, ServiceError
from shopfloor.mlflow_import import import_mlflow
from shopfloor.records import StepRecord
from shopfloor.results import Outputs, artifacts_of
from shopfloor.settings import Settings

PARENT = "mlflow.parentRunId"
STATE, STEP, PIPELINE, USE_CASE, ENGINE, ERROR, OUTCOME, PROCESS, SECONDS = (
    f"shopfloor.{name}"
    for name in ("state", "step", "pipeline", "use_case", "engine", "error", "outcome", "process", "seconds")
)
_STATUS = {
    "succeeded": "FINISHED",
    "cached": "FINISHED",
    "gate_missed": "FINISHED",
    "skipped": "FINISHED",
    "failed": "FAILED",
    "killed": "KILLED",
}
TAG_LIMIT = 4900
"""MLflow refuses longer tag values."""


def connect(settings: Settings) -> Any:
    """Return an `MlflowClient` of the tracking server, after a quick look whether it answers.

    Raises:
        ServiceError: It does not.
    """
    import requests

    try:
        requests.get(f"{settings.tracking_uri}/health", timeout=5).raise_for_status()
    except (requests.RequestException, ValueError) as error:
        raise ServiceError(
            f"The MLflow server {settings.tracking_uri} does not answer.", "Start the stack: shopfloor up"
        ) from error
    return import_mlflow().MlflowClient(tracking_uri=settings.tracking_uri, registry_uri=settings.tracking_uri)


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
    return ServiceError(
        f"The MLflow server {settings.tracking_uri} stopped answering: {_first_line(error)}",
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
    ) -> None:
        """Create the run; its experiment is the use case, or the pipeline where there is none.

        Raises:
            ServiceError: The server refuses.
        """
        self._settings = settings
        self._client = client
        self._experiment_id = _experiment(client, use_case or pipeline)
        tags = {
            PIPELINE: pipeline,
            USE_CASE: use_case or "",
            ENGINE: engine,
            STATE: "running",
            PROCESS: _this_process(),
            "mlflow.user": os.environ.get("USER", "unknown"),
            "mlflow.source.name": "shopfloor submit",
        }
        run = client.create_run(
            self._experiment_id, tags=tags, run_name=f"{pipeline} {time.strftime('%Y-%m-%d %H:%M:%S')}"
        )
        self.run_id: str = run.info.run_id
        from mlflow.entities import Param

        client.log_batch(self.run_id, params=[Param(name, str(value)[:6000]) for name, value in params.items()])
        self._steps: dict[str, str] = {}
        self.failure: Exception | None = None
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="run-recorder", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Address of the run in MLflow's own page."""
        return f"{self._settings.tracking_uri}/#/experiments/{self._experiment_id}/runs/{self.run_id}"

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
        self, step: str, state: str, seconds: float, outputs: Outputs, log: Path | None, error: str
    ) -> None:
        """Write how a step ended: its numbers, its log, its error."""
        self._queue.put(lambda: self._finish_step(step, state, seconds, outputs, log, error))

    def log_artifact(self, local: Path, folder: str | None = None, step: str | None = None) -> None:
        """Attach a file or a directory to the run, or to a step's run."""

        def write() -> None:
            run_id = self._steps.get(step, self.run_id) if step else self.run_id
            if local.is_dir():
                self._client.log_artifacts(run_id, str(local), folder)
            else:
                self._client.log_artifact(run_id, str(local), folder)

        self._queue.put(write)

    def finish(self, state: str, outcome: str, metrics: Mapping[str, float]) -> None:
        """Close the run: every step that still counts as running ends with it."""

        def write() -> None:
            self._log(
                self.run_id, metrics, {STATE: state, OUTCOME: outcome[:TAG_LIMIT], "mlflow.note.content": outcome}
            )
            self._client.set_terminated(self.run_id, _STATUS[state])

        self._queue.put(write)
        self.flush()

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

    def _create_step(self, step: str) -> str:
        tags = {PARENT: self.run_id, STEP: step, STATE: "running", "mlflow.source.name": "shopfloor submit"}
        return str(self._client.create_run(self._experiment_id, tags=tags, run_name=step).info.run_id)

    def _finish_step(
        self, step: str, state: str, seconds: float, outputs: Outputs, log: Path | None, error: str
    ) -> None:
        run_id = self._steps.get(step) or self._create_step(step)
        self._steps[step] = run_id
        numbers: dict[str, float] = {"seconds": seconds}
        for artifact in artifacts_of(outputs):
            if artifact["type"]["schemaTitle"] in {"system.Metrics"}:
                numbers |= {
                    name: float(value)
                    for name, value in artifact["metadata"].items()
                    if isinstance(value, int | float) and not isinstance(value, bool)
                }
        tags = {STATE: state, SECONDS: f"{seconds:.2f}"} | ({ERROR: error[:TAG_LIMIT]} if error else {})
        self._log(run_id, numbers, tags)
        own = {name: value for name, value in numbers.items() if name != "seconds"}
        if own:
            self._log(self.run_id, {f"{step}.{name}": value for name, value in own.items()}, {})
        if log is not None and log.is_file():
            self._client.log_artifact(run_id, str(log))
        self._client.set_terminated(run_id, _STATUS[state])

    def _log(self, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        self._client.log_batch(
            run_id,
            metrics=[Metric(_metric_name(name), value, now, 0) for name, value in metrics.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )


def close_dead_runs(client: Any) -> list[str]:
    """Mark runs whose process is gone (a kill -9, a reboot) as killed, with their steps.

    Returns:
        The ids of the runs that were closed.
    """
    closed: list[str] = []
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, f"tags.`{STATE}` = 'running' and tags.`{PROCESS}` LIKE '%'"):
        if _process_lives(run.data.tags[PROCESS]):
            continue
        children = client.search_runs(
            experiments, f"tags.`{PARENT}` = '{run.info.run_id}' and tags.`{STATE}` = 'running'"
        )
        for item in (*children, run):
            client.set_tag(item.info.run_id, STATE, "killed")
            client.set_terminated(item.info.run_id, "KILLED")
        client.set_tag(run.info.run_id, OUTCOME, "The process of the run was killed.")
        closed.append(run.info.run_id)
    return closed


def list_runs(client: Any, use_case: str | None, limit: int) -> list[Any]:
    """Return the newest runs (MLflow `Run` objects), not their steps.

    Raises:
        NotFoundError: The use case has no run.
    """
    experiments = [e for e in client.search_experiments() if use_case is None or e.name == use_case]
    if use_case is not None and not experiments:
        raise NotFoundError(f"Use case {use_case!r} has no runs.", "`shopfloor runs list` shows all runs.")
    ids = [experiment.experiment_id for experiment in experiments]
    return list(client.search_runs(ids, f"tags.`{PIPELINE}` LIKE '%'", max_results=limit, order_by=["start_time DESC"]))


def find_run(client: Any, run_id: str) -> Any:
    """Return the run of that id, or of that unique beginning of an id; `latest` is the newest.

    Raises:
        NotFoundError: There is none, or more than one.
    """
    runs = list_runs(client, None, 1000)
    found = runs[:1] if run_id == "latest" else [run for run in runs if run.info.run_id.startswith(run_id)]
    if len(found) != 1:
        problem = "There is no run" if not found else f"{len(found)} runs begin with"
        raise NotFoundError(f"{problem} {run_id!r}.", "`shopfloor runs list` shows the ids.")
    return found[0]


def steps_of(client: Any, run: Any) -> list[StepRecord]:
    """Return the steps of a run in the order in which they began."""
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'", order_by=["start_time ASC"]
    )
    return [
        StepRecord.model_validate(
            {
                "name": child.data.tags.get(STEP, child.info.run_name),
                "state": child.data.tags.get(STATE, "running"),
                "seconds": float(child.data.tags.get(SECONDS, 0)),
                "run_id": child.info.run_id,
                "error": child.data.tags.get(ERROR, ""),
            }
        )
        for child in children
    ]


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "active":
        return str(found.experiment_id)
    if found is not None:
        client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except Exception:  # somebody else created it a moment ago
        again = client.get_experiment_by_name(name)
        if again is None:
            raise
        return str(again.experiment_id)


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _process_lives(text: str) -> bool:
    """Tell whether a run's process lives; one on another machine is given the benefit of the doubt."""
    try:
        host, pid, created = text.rsplit(" ", 2)
    except ValueError:
        return True
    if host != socket.gethostname():
        return True
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(abs(psutil.Process(int(pid)).create_time() - float(created)) < 2)
    return False


def _metric_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in name)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__

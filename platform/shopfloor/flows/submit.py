"""`submit`: one run of a pipeline from the command to its outcome, whatever happens to it on the way.

Joins the compiled pipeline, the data version and the champion (resolved once, before the run), the engine, the run's
record in MLflow and the report. A missed gate is an outcome; a failed step is one too; a service that dies is an error.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from shopfloor import attempts
from shopfloor.attempts import SupersededError
from shopfloor.engines.base import StepState
from shopfloor.engines.local import LocalRun, remove_old
from shopfloor.errors import Failure, NotFoundError, ShopfloorError, whole
from shopfloor.flows.promote import effect_holds
from shopfloor.flows.submission import Submission, origin, read, resolve
from shopfloor.pipeline.compilation import Compiled, refuse_artifacts
from shopfloor.pipeline.results import Outputs, ResultStore, artifacts_of
from shopfloor.records import Monitored, Record, Scored, Search, StepRecord
from shopfloor.runs import conclude as endings
from shopfloor.runs import recorder as tracking
from shopfloor.runs.owner import this_process
from shopfloor.settings import Settings
from shopfloor.storage import CONTENT_HASH, local_copy


class Outcome(Record):
    """How a run ended."""

    run_id: str
    state: endings.EndState
    message: str
    """Sentence that says how the run ended."""
    use_case: str | None
    version: str | None
    """The version that is the champion because of this run."""
    metrics: dict[str, float]
    headlines: list[str]
    """Names of those of the metrics that tell most."""
    champion: str | None
    champion_metrics: dict[str, float]
    endpoint: str | None
    links: dict[str, str]
    seconds: float
    steps: list[StepRecord]
    scored: Scored | None = None
    """Record of what a batch run scored, and where the predictions are."""
    monitored: Monitored | None = None
    """Record of what a run of `monitoring` found."""


class View(Protocol):
    """Shows a run while it goes on."""

    def begin(self, run_url: str, compiled: Compiled, logs: Path) -> None:
        """Hear what will run, and the directory of the steps' logs, each `<step>.log`."""
        ...

    def step(self, step: str, state: str, seconds: float, error: str = "") -> None:
        """Hear of a step's new state."""
        ...


def submit(settings: Settings, request: Submission, view: View, run_id: str | None = None) -> Outcome:
    """Run a pipeline on the local engine to its end.

    Args:
        settings: The profile.
        request: The pipeline and its parameters.
        view: Hears what happens.
        run_id: MLflow run to record into: one that failed and goes on, or one that the submitter of a job made.

    Returns:
        The outcome, also of a run that failed or missed a gate.

    Raises:
        UsageError: The command was asked wrongly; nothing ran.
        ServiceError: A service is down; what was finished is kept.
        SupersededError: The same run was begun again meanwhile, by another process.
        KeyboardInterrupt: The run was stopped and is marked so.
    """
    compiled, arguments = read(settings, request.file, request.use_case, request.given, request.function)
    refuse_artifacts(compiled, arguments, "local")
    forced = compiled.from_step_on(request.from_step)
    client = tracking.connect(settings)
    endings.close_dead_runs(settings, client)
    remove_old(settings.state_dir / "runs")
    key = resolve(settings, client, compiled, arguments)

    request = request.model_copy(update={"file": str(compiled.file), "arguments": arguments})
    # A step has the run's id too, but what it submits is a run of its own.
    run_id = run_id or (settings.run_id if settings.step_run_id is None else None)
    tags = {} if run_id else origin(settings, key, request)
    name = arguments.get("use_case")
    recorder = tracking.RunRecorder(settings, client, name, compiled.name, "local", arguments, run_id, tags)
    recorder.log_text(json.dumps(compiled.ir, indent=1), endings.PIPELINE_FILE)
    run = _Run(settings, client, compiled, recorder, view)
    view.begin(recorder.url, compiled, run.directory / "logs")
    try:
        attempt = attempts.claim(settings, f"{recorder.run_id}/run", this_process())
        own = settings.model_copy(update={"run_id": recorder.run_id, "attempt": str(attempt)})
        results = ResultStore(own, effect_holds(settings))
        local_run = LocalRun(own, run.directory, results, run, request.use_cache, forced)
        # The result store asks MLflow for what steps have done: it can die between two steps too.
        with _stoppable(), tracking.answering(settings):
            succeeded = local_run.execute(compiled.pipeline, arguments)
    except SupersededError:  # the record is the newer one's
        raise
    except BaseException as error:
        with contextlib.suppress(ShopfloorError):
            if isinstance(error, KeyboardInterrupt):
                run.finish("killed", "Stopped by the user; submit again to go on.")
            else:
                run.finish("failed", whole(error))
        raise
    return run.conclude(None if succeeded else "; ".join(local_run.failures))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let what ends a run do within the block what Ctrl-C does.

    That is SIGTERM from an engine or `shopfloor runs stop`, and SIGHUP from a terminal that is closed, where it counts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the tidying up
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


class _Run:
    """What is known of the run so far; listens to the engine."""

    def __init__(
        self,
        settings: Settings,
        client: Any,
        compiled: Compiled,
        recorder: tracking.RunRecorder,
        view: View,
    ) -> None:
        self._settings = settings
        self._client = client
        self._compiled = compiled
        self._recorder = recorder
        self._view = view
        self._clock = time.monotonic()
        self._steps = {step: StepRecord(name=step, state="pending") for step in compiled.steps}
        self._records: dict[str, Record] = {}
        self._version: str | None = None
        self._lock = threading.Lock()
        self.directory = settings.private_dir("runs") / recorder.run_id

    def step_started(self, step: str) -> dict[str, str]:
        step_run_id = self._recorder.step_started(step)
        self._note(StepRecord(name=step, state="running", run_id=step_run_id))
        published = self._published(step)
        shutil.rmtree(published, ignore_errors=True)
        return {"SHOPFLOOR_STEP_RUN_ID": step_run_id, "SHOPFLOOR_PUBLISHED_DIR": str(published)}

    def step_finished(
        self,
        step: str,
        state: StepState,
        seconds: float,
        outputs: Outputs,
        log: Path | None,
        failure: Failure | None,
        result_of: str = "",
    ) -> None:
        run_id = self._steps[step].run_id if step in self._steps else None
        record = StepRecord(name=step, state=state, seconds=seconds, run_id=run_id, result_of=result_of)
        if failure:
            texts = {"error": failure.message, "error_kind": failure.kind, "remedy": failure.remedy}
            record = record.model_copy(update=texts)
        self._note(record)
        self._recorder.step_finished(step, state, seconds, outputs, log, failure, result_of)
        artifacts = list(artifacts_of(outputs)) or self._left_behind(step)
        for artifact in artifacts:
            if CONTENT_HASH in artifact["metadata"]:
                self._take(step, artifact)
        self._recorder.check()

    def _note(self, record: StepRecord) -> None:
        """Take a step's new state; the executions of one task stand where the pipeline has the task."""
        with self._lock:
            if record.name not in self._steps:
                steps = list(self._steps.values())
                places = [number for number, step in enumerate(steps) if step.task == record.task]
                end = places[-1] + 1 if places else len(steps)
                # The task itself stood for what was to come.
                begin = end - 1 if places and steps[places[0]].name == record.task else end
                self._steps = {step.name: step for step in [*steps[:begin], record, *steps[end:]]}
            self._steps[record.name] = record
        self._view.step(record.name, record.state, record.seconds, record.why)

    def conclude(self, failure: str | None) -> Outcome:
        """Close a run that went to its end, and say how it ended.

        Args:
            failure: Why the engine says that it failed; `None` where it says that all succeeded.
        """
        why = None if failure is None else f"The run failed: {failure}"
        return self.finish(*endings.ending(list(self._steps.values()), self._records, self._version, why))

    def finish(self, state: endings.EndState, message: str) -> Outcome:
        """Mark what did not run, and end the run's record.

        Raises:
            ServiceError: MLflow stopped answering.
        """
        for step in endings.settled(list(self._steps.values()), state):
            if step.state != self._steps[step.name].state:
                self._steps[step.name] = step
                self._view.step(step.name, step.state, step.seconds)
        self._recorder.flush()
        self._recorder.check()
        with tracking.answering(self._settings):
            report = endings.end(
                self._settings,
                self._client,
                self._recorder.run_id,
                state,
                message,
                list(self._steps.values()),
                self._compiled.edges,
                self._records,
                self._version,
            )
        evaluation = report.evaluation
        return Outcome(
            run_id=report.run_id,
            state=state,
            message=message,
            use_case=report.use_case,
            version=self._version,
            metrics=evaluation.metrics if evaluation else {},
            headlines=evaluation.headlines if evaluation else [],
            champion=evaluation.champion if evaluation else None,
            champion_metrics=evaluation.champion_metrics if evaluation else {},
            endpoint=report.endpoint,
            links=report.links,
            seconds=time.monotonic() - self._clock,
            steps=report.steps,
            scored=report.scored,
            monitored=report.monitored,
        )

    def _take(self, step: str, artifact: dict[str, Any]) -> None:
        """Read what the report shows of an artifact, and attach the small files to the step's run."""
        effect = artifact["metadata"].get("effect") or {}
        if effect.get("kind") == "champion":
            self._version = effect["version"]
        for name, (file, record) in endings.read_records(self._settings, artifact).items():
            self._records[name] = record
            self._recorder.log_artifact(file, step=step)
            if isinstance(record, Search):  # a cached step's process wrote them to the run that it belonged to
                self._recorder.add_params(record.best_params, step)
        try:
            directory = local_copy(self._settings, artifact["uri"])
        except NotFoundError:
            return
        if (directory / "data_docs").is_dir():
            self._recorder.log_artifact(directory / "data_docs", "data_docs", step=step)

    def _left_behind(self, step: str) -> list[dict[str, Any]]:
        """Return what a failed step had published before it failed."""
        return [json.loads(note.read_text(encoding="utf-8")) for note in sorted(self._published(step).glob("*.json"))]

    def _published(self, step: str) -> Path:
        return self.directory / "published" / step

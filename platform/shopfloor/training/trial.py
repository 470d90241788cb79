"""One trial of a search, as it runs in Ray's workers: alone in a Ray Tune actor, or on several workers of Ray Train.

It calls the use case's `model.py`, reports its numbers and leaves checkpoints: the newest model, to go on from, and the
best one, to be the trial's result. `tuning.py` decides which trials there are and when one stops. Before the first one
a round on a sample tries what `model.py` must do: a mistake shows at once and once, not several times in each trial.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import numbers
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shopfloor.errors import DataError, Failure, ShopfloorError, UsageError, first_line
from shopfloor.runs.mlflow import by_row
from shopfloor.storage import scratch
from shopfloor.use_case import FUNCTIONS, Choice, SearchSection, UseCase

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_ROWS = 5000
"""Rows of the round that is tried before a search."""
REPORT_EVERY = 10
"""Rounds between two reports of a trial: each costs a round trip to the driver."""
REDUCTION_FACTOR = 4
"""ASHA lets one in so many trials go on past each rung."""
Receive = Callable[[int, dict[str, float], Any], None]
"""Takes the round, the numbers and the checkpoint of a report."""
Send = Callable[[dict[str, Any], Path | None], None]
"""Hands numbers, and where one is due a checkpoint, to Ray."""

BEST_ROUND = "best_round"
FINISHED = "finished"
"""In a trial's last numbers: its code returned, nobody stopped it."""
FAILURE = "failure"
"""Beside a trial's last numbers: why its code ended it. Told and not raised, since Ray would try the same again."""
ERROR_LENGTH = 300
_NEWEST = "newest"
_BEST = "best"
_PROGRESS = "progress.json"
_prepared: dict[str, Any] = {}


class Context:
    """A trial, as the use case's `train` sees it."""

    def __init__(
        self, receive: Receive, *, rounds: int, threads: int, resume_from: Path | None = None, round_: int = 0
    ) -> None:
        """Begin a trial, or go on with one.

        Args:
            receive: Is called with each report.
            rounds: How many to fit at most.
            threads: How many the library may use.
            resume_from: Directory of a model that `save` wrote.
            round_: How many rounds that model has.
        """
        self.rounds = rounds
        """Rounds to fit at most, those of `resume_from` among them; a round is what `train` says it is."""
        self.threads = threads
        """Threads that the model's library may use: the CPUs of this worker."""
        self.resume_from = resume_from
        """Directory with a model that `save` wrote, to go on from; `None` at the beginning."""
        self.round = round_
        """Rounds that are reported."""
        self._receive = receive

    def report(self, metrics: Mapping[str, Any], checkpoint: Any = None, *, round: int | None = None) -> None:
        """Say what the model is worth after a round.

        Args:
            metrics: Name to number; `search.metric` among them.
            checkpoint: The model as `save` takes it; saved where a checkpoint is due, and after the last report.
            round: Number of the round, where not each one is reported.

        Raises:
            UsageError: A metric is no number, or a round is none that can follow.
        """
        wrong = {name: value for name, value in metrics.items() if not isinstance(value, numbers.Real)}
        if wrong:
            name, value = next(iter(wrong.items()))
            raise UsageError(f"train reports {value!r:.100} as {name!r}, which is no number.", "Report numbers.")
        following = self.round + 1 if round is None else round
        if following <= self.round:
            raise UsageError(
                f"train reports round {following} after round {self.round}.", "Rounds go up; leave `round` out."
            )
        self.round = following
        self._receive(following, {name: float(value) for name, value in metrics.items()}, checkpoint)


def call_train(code: Any, params: dict[str, Any], data: Any, context: Context) -> None:
    """Call the `train` of a model.py: by its context, or by the keywords that stand for it where it names those."""
    if "context" in (names := inspect.signature(code.train).parameters) or "report" not in names:
        code.train(params, data, context)
        return

    def report(round: int, metrics: Mapping[str, Any], model: Any) -> None:
        context.report(metrics, checkpoint=model, round=round)

    keywords = {"rounds": context.rounds, "threads": context.threads, "resume_from": context.resume_from}
    code.train(params, data, **keywords, report=report)


def prepared(code: Any, splits: Sequence[pd.DataFrame], target: str) -> Any:
    """Return what `prepare` of a model.py makes of the splits to train and to validate.

    Without one it is the features and the labels of both, four in all.
    """
    train, validate = splits
    if hasattr(code, "prepare"):
        return code.prepare(train, validate, target)
    return train.drop(columns=target), train[target], validate.drop(columns=target), validate[target]


@dataclass(frozen=True)
class Job:
    """What all trials of a search have in common; Ray carries it to the workers."""

    use_case: UseCase
    """Its model code trains."""
    target: str
    content: str
    """Hash of the rows."""
    train: Any
    """Reference to the training rows in Ray's object store: a frame of the features and the target."""
    validate: Any
    max_failures: int
    filesystem: Any
    workers_path: str
    """Where, on `filesystem`, the workers of Ray Train keep their checkpoints."""


class OwnError(Exception):
    """The use case's code raised: another try would end the same way, unlike one whose worker is lost."""


def try_contract(use_case: UseCase, train: pd.DataFrame, validate: pd.DataFrame, target: str) -> None:
    """Train one round on a sample, and save, load and ask the model.

    Args:
        use_case: Its model.py is tried.
        train: Rows of the features and the target.
        validate: The same of the validation split.
        target: Name of the target's column.

    Raises:
        UsageError: model.py lacks a function, one of them fails, or does not do what is asked of it.
        DataError: All rows to train on have the same label.
    """
    if use_case.task != "custom" and train[target].nunique() < 2:
        raise DataError(
            f"All {len(train)} rows of the split 'train' have the same {target!r}: nothing can be learnt from them.",
            "Mend features.split in use_case.yaml, or look at the labels.",
        )
    code = use_case.code("model")
    missing = [name for name in FUNCTIONS["model"] if not hasattr(code, name)]
    if missing:
        raise UsageError(
            f"model.py of {use_case.name} defines no {missing[0]}().",
            "docs/how-to/add-a-use-case.md says what it does.",
        )
    section = use_case.search
    params = {name: one.values[0] if isinstance(one, Choice) else one.low for name, one in section.space.items()}
    samples = [_sample(frame) for frame in (train, validate)]
    reports: list[tuple[dict[str, float], Any]] = []
    data = _call(use_case, "prepare", lambda: prepared(code, samples, target))
    context = Context(lambda _, numbers, model: reports.append((numbers, model)), rounds=1, threads=1)
    _call(use_case, "train", lambda: call_train(code, params, data, context))
    if not reports:
        raise UsageError(f"train of {use_case.name} never called report().", "Call context.report() after each round.")
    numbers, model = reports[-1]
    _require_metric(section, numbers)
    if model is None:
        raise UsageError(
            f"The last report of {use_case.name} has no checkpoint: nothing is left of the trial.",
            "Call context.report(metrics, checkpoint=model).",
        )
    with scratch() as directory:
        _call(use_case, "save", lambda: code.save(model, directory))
        if not any(directory.iterdir()):
            raise UsageError(f"save of {use_case.name} wrote no file.", "Write the model into the directory given.")
        again = _call(use_case, "load", lambda: code.load(directory))
        rows = samples[1].drop(columns=target)
        answers = _call(use_case, "predict", lambda: code.predict(again, rows))
    answers = by_row(answers, len(rows))
    if len(answers) != len(rows):
        raise UsageError(
            f"predict of {use_case.name} answers {len(answers)} predictions to {len(rows)} rows.", "Answer one a row."
        )


def _call(use_case: UseCase, function: str, call: Any) -> Any:
    try:
        return call()
    except ShopfloorError:
        raise
    except Exception as error:  # whatever the use case's code raises
        code = use_case.model.estimator or f"pipelines/{use_case.name}/model.py"
        raise UsageError(
            f"{function} of {code} fails: {type(error).__name__}: {first_line(error, 300)}",
            "The log of the step has the traceback: shopfloor runs logs latest tune",
        ) from error


def _sample(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows from all over the frame, as many as are quick to train on."""
    step = max(1, len(frame) // SAMPLE_ROWS)
    return frame.iloc[::step]


def run_alone(config: dict[str, Any], job: Job) -> None:
    """Run one trial in this Ray Tune actor."""
    import ray
    from ray import tune

    def send(numbers: dict[str, Any], directory: Path | None) -> None:
        tune.report(numbers, checkpoint=tune.Checkpoint.from_directory(str(directory)) if directory else None)

    frames = ray.get([job.train, job.validate])
    try:
        with _own_code():
            code = job.use_case.code("model")
            if job.content not in _prepared:  # the actor serves one trial after another
                _prepared.clear()
                _prepared[job.content] = prepared(code, frames, job.target)
        _train(job, code, config, _prepared[job.content], tune.get_checkpoint(), send)
    except OwnError as error:
        _give_up(job, error)


def run_on_workers(config: dict[str, Any], job: Job) -> None:
    """Run one trial on several workers of Ray Train: each trains on its share of the rows, XGBoost adds up."""
    from ray import tune
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.xgboost import XGBoostTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    workers = job.use_case.search.workers
    trainer = XGBoostTrainer(
        _run_worker,
        train_loop_config={"params": config, "job": job},
        scaling_config=ScalingConfig(
            num_workers=workers.per_trial,
            use_gpu=bool(workers.gpus),
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
        ),
        run_config=RunConfig(
            # A trial that is begun again finds its workers' checkpoints under its own name.
            name=tune.get_context().get_trial_id(),
            storage_path=job.workers_path,
            storage_filesystem=job.filesystem,
            failure_config=FailureConfig(max_failures=job.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[TuneReportCallback()],
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        failures = list(error.worker_failures.values())
        own = [one for one in failures if isinstance(one, OwnError)]
        # Where a worker is lost, those that waited for it raise too.
        if len(own) < workers.per_trial:
            raise
        _give_up(job, own[0])


def reason(error: BaseException | None) -> str:
    """Return in one line why Ray gave a trial up."""
    while error is not None and (inner := getattr(error, "cause", None) or _first(error)) is not None:
        error = inner
    if error is None:
        return "It gave no reason."
    text = str(error) if isinstance(error, OwnError) else str(Failure.of(error))
    return text.splitlines()[0][:ERROR_LENGTH]


def _first(error: BaseException) -> BaseException | None:
    """Return the failure of the first worker of a group that has one."""
    return next(iter(getattr(error, "worker_failures", {}).values()), None)


def _give_up(job: Job, error: OwnError) -> None:
    """End this trial as one that failed."""
    from ray import tune

    tune.report({job.use_case.search.metric: math.nan, "rounds": 0, FAILURE: str(error)})


@contextlib.contextmanager
def _own_code() -> Iterator[None]:
    """Tell what the use case's code raises within the block from what fails for other reasons.

    Raises:
        OwnError: It raised; the text says what, in one line.
    """
    try:
        yield
    except _SendError as error:
        raise error.error from error
    except Exception as error:
        raise OwnError(str(Failure.of(error)).splitlines()[0][:ERROR_LENGTH]) from error


class _SendError(Exception):
    """Ray did not take what a trial reports."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def best_model(checkpoint: Path) -> Path:
    """Return the directory of the best model in a checkpoint of a trial, as the use case's `save` wrote it."""
    return checkpoint / (_BEST if (checkpoint / _BEST).is_dir() else _NEWEST)


def _run_worker(config: dict[str, Any]) -> None:
    """Train on this worker's share of the rows."""
    import ray
    from ray import train

    job: Job = config["job"]
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()

    def send(numbers: dict[str, Any], directory: Path | None) -> None:
        mine = train.Checkpoint.from_directory(str(directory)) if directory and rank == 0 else None
        train.report(numbers, checkpoint=mine)

    def share(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.iloc[rank::world]

    frames = ray.get([job.train, job.validate])
    with _own_code():
        code = job.use_case.code("model")
        data = prepared(code, [share(frame) for frame in frames], job.target)
    _train(job, code, config["params"], data, train.get_checkpoint(), send)


def _train(job: Job, code: Any, params: dict[str, Any], data: Any, checkpoint: Any, send: Send) -> None:
    with (
        checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as files,
        scratch() as own,
    ):
        start = Path(files) if files else None
        report = _Reporter(code, job.use_case.search, own, start, send)
        context = Context(
            report,
            rounds=job.use_case.search.max_rounds,
            threads=max(1, int(job.use_case.search.workers.cpus)),
            resume_from=start / _NEWEST if start else None,
            round_=report.round,
        )
        with _own_code():
            call_train(code, params, data, context)
            report.end()


class _Reporter:
    """Takes what a use case reports each round: it hands on some, with a checkpoint where one is due."""

    def __init__(self, code: Any, section: SearchSection, own: Path, start: Path | None, send: Send) -> None:
        self._code = code
        self._section = section
        self._own = own
        self._best_model = own / _BEST
        self._send = send
        self._best: dict[str, float] | None = None
        self._held: tuple[int, dict[str, float], Any] | None = None
        self.round = 0
        if start:
            progress = json.loads((start / _PROGRESS).read_text(encoding="utf-8"))
            self.round, self._best = progress["round"], progress["best"]
            shutil.copytree(best_model(start), self._best_model)

    def __call__(self, round_: int, numbers: dict[str, float], model: Any) -> None:
        section = self._section
        _require_metric(section, numbers)
        due = round_ == section.max_rounds or round_ % section.checkpoint_every == 0 or round_ in rungs(section)
        told = due or round_ % REPORT_EVERY == 0
        saved = due and model is not None
        self._held = None if saved or (told and model is None) else (round_, numbers, model)
        if told:
            self._hand_on(round_, numbers, model if saved else None)

    def end(self) -> None:
        """Hand on the last report, where the model of it is not saved yet."""
        if self._held is not None:
            self._hand_on(*self._held, ended=True)

    def _hand_on(self, round_: int, numbers: dict[str, float], model: Any, ended: bool = False) -> None:
        with tempfile.TemporaryDirectory(dir=self._own) as directory:
            if model is not None:
                self._checkpoint(Path(directory), round_, numbers, model)
            report = {**numbers, "rounds": round_} | ({"best": self._best} if self._best else {})
            try:
                self._send(report | ({FINISHED: True} if ended else {}), Path(directory) if model is not None else None)
            except Exception as error:
                raise _SendError(error) from error

    def _checkpoint(self, directory: Path, round_: int, numbers: dict[str, float], model: Any) -> None:
        newest = directory / _NEWEST
        newest.mkdir()
        self._code.save(model, newest)
        metric, sign = self._section.metric, 1 if self._section.mode == "min" else -1
        if self._best is None or sign * numbers[metric] < sign * self._best[metric]:
            self._best = {**numbers, BEST_ROUND: round_}
            shutil.rmtree(self._best_model, ignore_errors=True)
            shutil.copytree(newest, self._best_model)
        else:
            shutil.copytree(self._best_model, directory / _BEST)
        progress = {"round": round_, "best": self._best}
        (directory / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")


def _require_metric(section: SearchSection, numbers: dict[str, float]) -> None:
    if section.metric not in numbers:
        raise UsageError(
            f"The model reports {', '.join(sorted(numbers)) or 'nothing'}, not {section.metric!r}.",
            "Change search.metric in use_case.yaml, or what model.py reports.",
        )


def rungs(section: SearchSection) -> Iterator[int]:
    """Yield the rounds at which ASHA may stop a trial: it must have left a model there."""
    rung = min(section.grace_rounds, section.max_rounds)
    while rung < section.max_rounds:
        yield rung
        rung *= REDUCTION_FACTOR

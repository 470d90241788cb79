"""The search for the best parameters: Ray Tune on the running cluster, Ray Train where a trial takes several workers.

A use case's `model.py` knows the model and nothing of Ray:

- `prepare(train, validate, target) -> data`: make of the frames what `train` wants, once for each worker process.
- `train(params, data, *, rounds, threads, resume_from, report)`: fit up to `rounds` rounds, from the directory
  `resume_from` on where one is given, and call `report(round, metrics, model)` after each round.
- `save(model, directory)`, `load(directory)`, `predict(model, frame)`: the model as files; its answers, shape (rows,).

A trial whose worker dies goes on from its last checkpoint; a search that was killed goes on with the trials it lacks.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shopfloor.errors import ServiceError, ShopfloorError
from shopfloor.records import FeatureSet, Search, Trial
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, filesystem, hash_directory, is_remote, join, local_copy, publish
from shopfloor.use_case import Choice, FloatRange, IntRange, UseCase, load_use_case

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

REPORT_EVERY = 10
"""Rounds between two reports of a trial: each costs a round trip to the driver."""
MAX_FAILURES = 3
"""Deaths of its worker that a trial survives."""


class Metrics(Protocol):
    """The part of a KFP metrics artifact that the step fills in."""

    def log_metric(self, metric: str, value: float) -> None:
        """Keep one number."""


def tune(
    settings: Settings,
    use_case_name: str,
    features_uri: str,
    trials: int,
    model: Artifact,
    search: Artifact,
    metrics: Metrics,
) -> None:
    """Search, and hand on the best trial's model.

    Args:
        settings: Say where the Ray cluster and the artifacts are.
        use_case_name: Its `search` section and `model.py` say what to search.
        features_uri: What `build_features` made.
        trials: How many; 0 means as many as the use case says.
        model: Gets the model's files and `best_trial.json`.
        search: Gets `search.json`.
        metrics: Gets the best trial's metrics.

    Raises:
        ServiceError: The Ray cluster does not answer.
        ShopfloorError: Every trial failed.
    """
    use_case = load_use_case(settings, use_case_name)
    trials = trials or use_case.search.trials
    directory = local_copy(settings, features_uri)
    with _cluster(settings):
        result, best, checkpoint = _search(settings, use_case, directory, trials)
        code = use_case.code("model")
        with checkpoint.as_directory() as files:
            best_model = code.load(Path(files))
    with publish(settings, model, "tune-model") as target:
        code.save(best_model, target)
        (target / "best_trial.json").write_text(best.model_dump_json(indent=1), encoding="utf-8")
    with publish(settings, search, "tune-search") as target:
        (target / "search.json").write_text(result.model_dump_json(indent=1), encoding="utf-8")
    for name, value in best.metrics.items():
        metrics.log_metric(name, value)
    metrics.log_metric("trials", len(result.trials))


@contextlib.contextmanager
def _cluster(settings: Settings) -> Iterator[None]:
    """Join the running Ray cluster for the time of the block.

    Raises:
        ServiceError: It does not answer.
    """
    host, _, port = settings.ray_address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"The Ray cluster {settings.ray_address} does not answer.", "Start the stack: shopfloor up"
        ) from error
    # Ray's progress tables and its advice about them say nothing that the trial lines do not.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray

    ray.init(address=settings.ray_address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    try:
        yield
    finally:
        ray.shutdown()


def _search(settings: Settings, use_case: UseCase, directory: Path, trials: int) -> tuple[Search, Trial, Any]:
    import pandas as pd
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner, with_parameters, with_resources
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    section = use_case.search
    features = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8"))
    columns = [*features.features, features.target]
    train = pd.read_parquet(directory / "train.parquet", columns=columns)
    validate = pd.read_parquet(directory / "validate.parquet", columns=columns)
    content = hash_directory(directory)
    target_fs, root = filesystem(settings, join(settings.artifact_root, "tune"))
    if not is_remote(settings.artifact_root):
        target_fs.create_dir(root, recursive=True)
    name = _experiment(settings, use_case, content, trials)
    job = with_parameters(
        _one_worker if section.workers.per_trial == 1 else _several_workers,
        train=train,
        validate=validate,
        fixed={
            "content": content,
            "module": f"pipelines.{use_case.name}.model",
            "target": features.target,
            "section": section.model_dump(),
            "storage": (target_fs, f"{root}/{name}-workers"),
        },
    )
    # The trial of several workers only waits for them.
    cpus = section.workers.cpus if section.workers.per_trial == 1 else 0.1
    gpus = section.workers.gpus if section.workers.per_trial == 1 else 0
    trainable = with_resources(job, {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus})
    if Tuner.can_restore(f"{root}/{name}", storage_filesystem=target_fs):
        print("Going on with the search that was stopped.", flush=True)  # noqa: T201  the step's log
        tuner = Tuner.restore(f"{root}/{name}", trainable=trainable, restart_errored=True, storage_filesystem=target_fs)
    else:
        tuner = Tuner(
            trainable,
            tune_config=TuneConfig(
                num_samples=trials,
                max_concurrent_trials=section.max_concurrent,
                search_alg=OptunaSearch(_space(use_case), metric=section.metric, mode=section.mode, seed=section.seed),
                scheduler=ASHAScheduler(
                    time_attr="rounds",
                    metric=section.metric,
                    mode=section.mode,
                    max_t=section.max_rounds,
                    grace_period=min(section.grace_rounds, section.max_rounds),
                    reduction_factor=4,
                ),
                reuse_actors=section.workers.per_trial == 1,
            ),
            run_config=RunConfig(
                name=name,
                storage_path=root,
                storage_filesystem=target_fs,
                verbose=0,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[_trial_lines(trials, section.metric)],
            ),
        )
    return _summarize(use_case, tuner.fit())


def _one_worker(config: dict[str, Any], train: pd.DataFrame, validate: pd.DataFrame, fixed: dict[str, Any]) -> None:
    """Run one trial in this Ray Tune actor."""
    from ray.tune import get_checkpoint

    code = importlib.import_module(fixed["module"])
    section = fixed["section"]
    checkpoint = get_checkpoint()
    with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as files:
        code.train(
            config,
            _prepared(code, fixed["content"], train, validate, fixed["target"]),
            rounds=section["max_rounds"],
            threads=max(1, int(section["workers"]["cpus"])),
            resume_from=Path(files) if files else None,
            report=_reporter(code, section, _report_to_tune),
        )


def _several_workers(
    config: dict[str, Any], train: pd.DataFrame, validate: pd.DataFrame, fixed: dict[str, Any]
) -> None:
    """Run one trial on several workers of Ray Train: each trains on its share of the rows, XGBoost adds up."""
    import ray.tune
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.xgboost import XGBoostTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    workers = fixed["section"]["workers"]
    resources = {"CPU": workers["cpus"]} | ({"GPU": workers["gpus"]} if workers["gpus"] else {})
    target_fs, path = fixed["storage"]
    # A trial that is begun anew finds its workers' checkpoints under the same name.
    XGBoostTrainer(
        _worker,
        train_loop_config={"params": config, "train": train, "validate": validate, "fixed": fixed},
        scaling_config=ScalingConfig(
            num_workers=workers["per_trial"], use_gpu=bool(workers["gpus"]), resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=ray.tune.get_context().get_trial_id(),
            storage_path=path,
            storage_filesystem=target_fs,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def _worker(config: dict[str, Any]) -> None:
    """Train on this worker's share of the rows."""
    import ray.train

    fixed = config["fixed"]
    code = importlib.import_module(fixed["module"])
    section = fixed["section"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    checkpoint = ray.train.get_checkpoint()

    def report(numbers: dict[str, Any], directory: Path | None) -> None:
        mine = ray.train.Checkpoint.from_directory(str(directory)) if directory and rank == 0 else None
        ray.train.report(numbers, checkpoint=mine)

    with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as files:
        code.train(
            config["params"],
            code.prepare(config["train"].iloc[rank::world], config["validate"].iloc[rank::world], fixed["target"]),
            rounds=section["max_rounds"],
            threads=max(1, int(section["workers"]["cpus"])),
            resume_from=Path(files) if files else None,
            report=_reporter(code, section, report),
        )


def _report_to_tune(numbers: dict[str, Any], directory: Path | None) -> None:
    from ray.tune import Checkpoint, report

    report(numbers, checkpoint=Checkpoint.from_directory(str(directory)) if directory else None)


def _reporter(
    code: Any, section: dict[str, Any], send: Callable[[dict[str, Any], Path | None], None]
) -> Callable[[int, dict[str, float], Any], None]:
    """Return the `report` that a use case calls each round; it sends some, with a checkpoint where one is due."""
    last = section["max_rounds"]

    def report(round_: int, numbers: dict[str, float], model: Any) -> None:
        due = round_ == last or round_ % section["checkpoint_every"] == 0
        if not due and round_ % REPORT_EVERY != 0:
            return
        with tempfile.TemporaryDirectory() as directory:
            if due:
                code.save(model, Path(directory))
            send({**numbers, "rounds": round_}, Path(directory) if due else None)

    return report


_DATA: dict[str, Any] = {}


def _prepared(code: Any, content: str, train: pd.DataFrame, validate: pd.DataFrame, target: str) -> Any:
    """Return what `prepare` makes of the frames, made once in a process that serves several trials."""
    if content not in _DATA:
        _DATA.clear()
        _DATA[content] = code.prepare(train, validate, target)
    return _DATA[content]


def _space(use_case: UseCase) -> dict[str, Any]:
    """Return Optuna's distributions of the use case's ranges."""
    from optuna import distributions

    space: dict[str, Any] = {}
    for name, range_ in use_case.search.space.items():
        match range_:
            case IntRange():
                space[name] = distributions.IntDistribution(range_.low, range_.high, log=range_.log)
            case FloatRange():
                space[name] = distributions.FloatDistribution(range_.low, range_.high, log=range_.log)
            case Choice():
                space[name] = distributions.CategoricalDistribution(range_.values)
    return space


def _experiment(settings: Settings, use_case: UseCase, content: str, trials: int) -> str:
    """Return the name of the search: the same for the same data, code, space and number of trials."""
    source = (settings.project_root / "pipelines" / use_case.name / "model.py").read_text(encoding="utf-8")
    text = "\n".join([content, use_case.search.model_dump_json(), source, str(trials)])
    return f"{use_case.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _trial_lines(trials: int, metric: str) -> Any:
    """Return the Tune callback that prints a line for each finished trial."""
    from ray.tune import Callback

    class Lines(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.done = 0

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.done += 1
            result = trial.last_result or {}
            value, rounds = result.get(metric, float("nan")), result.get("rounds", 0)
            print(f"trial {self.done}/{total} {metric} {value:.5f} after {rounds} rounds", flush=True)  # noqa: T201

    total = trials
    return Lines()


def _summarize(use_case: UseCase, grid: Any) -> tuple[Search, Trial, Any]:
    section = use_case.search
    trials: dict[str, Trial] = {}
    checkpoints: dict[str, Any] = {}
    for result in grid:
        numbers = result.metrics or {}
        rounds = int(numbers.get("rounds", 0))
        trial_id = str(numbers.get("trial_id", len(trials)))
        state = "failed" if result.error else "finished" if rounds >= section.max_rounds else "stopped"
        trials[trial_id] = Trial(
            trial_id=trial_id,
            params=dict(result.config or {}),
            metrics={
                name: float(value)
                for name, value in numbers.items()
                if name.startswith(("train-", "validate-")) and isinstance(value, int | float)
            },
            rounds=rounds,
            seconds=float(numbers.get("time_total_s", 0.0)),
            status=state,  # type: ignore[arg-type]
        )
        checkpoints[trial_id] = result.checkpoint or _workers_checkpoint(use_case, grid, numbers)
    usable = [
        trial
        for trial in trials.values()
        if section.metric in trial.metrics and checkpoints[trial.trial_id] is not None
    ]
    if not usable:
        errors = [str(result.error).strip().splitlines()[-1] for result in grid if result.error]
        raise ShopfloorError(
            f"No trial of {use_case.name} finished: {errors[0] if errors else f'none reported {section.metric!r}'}",
            "The log of the step says more: shopfloor runs logs latest tune",
        )
    sign = 1 if section.mode == "min" else -1
    best = min(usable, key=lambda trial: (sign * trial.metrics[section.metric], trial.trial_id))
    result = Search(metric=section.metric, mode=section.mode, best_trial_id=best.trial_id, trials=list(trials.values()))
    return result, best, checkpoints[best.trial_id]


def _workers_checkpoint(use_case: UseCase, grid: Any, numbers: dict[str, Any]) -> Any:
    """Return the checkpoint that the workers of a trial wrote: Ray Train reports its place, not itself."""
    from ray.train import Checkpoint

    place = numbers.get("checkpoint_path")
    return Checkpoint(path=place, filesystem=grid.filesystem) if place else None

"""The search for the best parameters: Ray Tune on the running cluster, Ray Train where a trial takes several workers.

A use case's `model.py`, or the estimator that stands in for it, knows the model and nothing of Ray:

- `train(params, data, context)`: fit up to `context.rounds` rounds with `context.threads` threads, from the directory
  `context.resume_from` on where one is given, and call `context.report(metrics, checkpoint=model)` after each round.
- `prepare(train, validate, target) -> data`, optional: make of the frames what `train` wants, once for each process.
- `save(model, directory)`, `load(directory)`, `predict(model, frame)`: the model as files; its answers, shape (rows,).

A trial whose worker dies goes on from its last checkpoint; a search that was killed goes on with the trials it lacks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import logging
import math
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from shopfloor.errors import ConflictError, ShopfloorError
from shopfloor.records import FeatureSet, Search, Trial
from shopfloor.settings import Settings, load_settings
from shopfloor.storage import (
    Artifact,
    Metrics,
    filesystem,
    hash_directory,
    is_remote,
    join,
    local_copy,
    publish,
    write_atomically,
)
from shopfloor.training import cluster as ray_cluster
from shopfloor.training import finished as finished_trials
from shopfloor.training import rayjob, rayjob_run, trial
from shopfloor.training.finished import FinishedTrials
from shopfloor.training.trial import FAILURE, reason, try_contract
from shopfloor.use_case import Choice, FloatRange, IntRange, SearchSection, UseCase, Workers, load_use_case

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

OWN_CLUSTER = "rayjob"
"""Value of `ray_address`: the search brings its own cluster, a KubeRay RayJob."""
LOCK_TIMEOUT_S = 60.0
"""How long a search waits for another one in its directory."""
MAX_FAILURES = 3
"""Deaths of its worker that a trial survives; what its own code raises it does not, unless it has several workers."""


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
    if settings.ray_address == OWN_CLUSTER:
        _tune_on_a_cluster_of_its_own(settings, use_case, features_uri, trials, model, search, metrics)
        return
    rows = _read(settings, features_uri)
    try_contract(use_case, rows.train, rows.validate, rows.target)
    with ray_cluster.joined(settings):
        result, best, checkpoint = _search(settings, use_case, rows, trials)
        with checkpoint.as_directory() as place:
            files = trial.best_model(Path(place))
            # By the model's own files: another search that ends with the same model has made the same.
            with publish(settings, model, "tune-model", content_hash=hash_directory(files)) as target:
                shutil.copytree(files, target, dirs_exist_ok=True)
                (target / "best_trial.json").write_text(best.model_dump_json(indent=1), encoding="utf-8")
    with publish(settings, search, "tune-search") as target:
        (target / "search.json").write_text(result.model_dump_json(indent=1), encoding="utf-8")
    finished_trials.record(settings, result)
    for name, value in best.metrics.items():
        metrics.log_metric(name, value)
    metrics.log_metric("trials", len(result.trials))
    metrics.log_metric("failed_trials", sum(one.status == "failed" for one in result.trials))


def _tune_on_a_cluster_of_its_own(
    settings: Settings,
    use_case: UseCase,
    features_uri: str,
    trials: int,
    model: Artifact,
    search: Artifact,
    metrics: Metrics,
) -> None:
    """Let a RayJob do the same search, and hand on what it published."""
    section = use_case.search
    identity = {
        "use_case": use_case.name,
        "features_uri": features_uri,
        "trials": trials,
        "run_id": settings.run_id,
        "search": section.model_dump(mode="json"),
    }
    names = functools.partial(rayjob.job_name, use_case.name, identity)
    name = names(rayjob.attempt_number(settings))
    result_uri = join(settings.artifact_root, "rayjobs", f"{name}.json")
    words = [use_case.name, features_uri, str(trials), result_uri]
    rayjob_run.run(settings, names, f"python -m {__name__} {shlex.join(words)}", workers_of(section, trials))
    target_fs, path = filesystem(settings, result_uri)
    with target_fs.open_input_stream(path) as stream:
        result = json.loads(stream.read())
    own = join(settings.artifact_root, "steps") + "/"
    for artifact, output in ((model, result["model"]), (search, result["search"])):
        if not output["uri"].startswith(own):
            raise ShopfloorError(f"The RayJob {name} names {output['uri']}, which no step of ours published.")
        artifact.uri = output["uri"]
        artifact.metadata.update(output["metadata"])
    text = (local_copy(settings, search.uri) / "search.json").read_text(encoding="utf-8")
    finished_trials.record(settings, Search.model_validate_json(text))
    for metric, value in result["metrics"].items():
        metrics.log_metric(metric, value)


def workers_of(section: SearchSection, trials: int) -> rayjob.Workers:
    """Return what a search of so many trials takes from the cluster at a time."""
    return rayjob.Workers(
        count=min(section.max_concurrent, trials) * section.workers.per_trial,
        cpus=section.workers.cpus,
        gpus=section.workers.gpus,
    )


def main(use_case: str, features_uri: str, trials: int, result_uri: str) -> None:
    """Do the search as a job on the cluster that it is on, and leave at `result_uri` what was published where.

    Args:
        use_case: Its name.
        features_uri: What `build_features` made.
        trials: How many.
        result_uri: Gets JSON with the artifacts `model` and `search`, and the metrics.
    """
    settings = load_settings()
    if settings.ray_address in {"auto", OWN_CLUSTER}:
        settings = settings.model_copy(update={"ray_address": rayjob.cluster_address()})
    model, search = (SimpleNamespace(name=name, uri="", metadata={}) for name in ("model", "search"))
    numbers: dict[str, float] = {}
    tune(settings, use_case, features_uri, trials, model, search, SimpleNamespace(log_metric=numbers.__setitem__))
    outputs = {"model": vars(model), "search": vars(search), "metrics": numbers}
    target_fs, path = filesystem(settings, result_uri)
    if not is_remote(result_uri):
        target_fs.create_dir(path.rpartition("/")[0], recursive=True)
    with target_fs.open_output_stream(path) as stream:
        stream.write(json.dumps(outputs).encode())


@dataclass(frozen=True)
class _Rows:
    """What a search learns from: the features and the target of two splits."""

    train: pd.DataFrame
    validate: pd.DataFrame
    target: str
    content: str
    """Hash of all that `build_features` made."""


def _read(settings: Settings, features_uri: str) -> _Rows:
    import pandas as pd

    directory = local_copy(settings, features_uri)
    features = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8"))
    columns = [*features.features, features.target]
    train, validate = (
        pd.read_parquet(directory / f"{name}.parquet", columns=columns) for name in ("train", "validate")
    )
    return _Rows(train, validate, features.target, hash_directory(directory))


def _search(settings: Settings, use_case: UseCase, rows: _Rows, trials: int) -> tuple[Search, Trial, Any]:
    """Return the search, its best trial and that trial's checkpoint."""
    target_fs, root = filesystem(settings, join(settings.artifact_root, "tune"))
    place = f"{root}/{_experiment(settings, use_case, rows.content, trials)}"
    if not is_remote(settings.artifact_root):
        target_fs.create_dir(place, recursive=True)
    with _alone(settings, place):
        return _go_on(settings, use_case, rows, trials, target_fs, place)


@contextlib.contextmanager
def _alone(settings: Settings, place: str) -> Iterator[None]:
    """Keep a second search of this machine out of a search's directory; the lock goes with the process that has it.

    Raises:
        ConflictError: Another process has searched there for too long.
    """
    lock = settings.private_dir("locks") / f"search-{hashlib.sha256(place.encode()).hexdigest()[:16]}.lock"
    holder = lock.with_suffix(".holder")
    try:
        with FileLock(lock, timeout=LOCK_TIMEOUT_S, mode=0o600):
            write_atomically(holder, str(os.getpid()))
            yield
    except Timeout as error:
        by = holder.read_text(encoding="utf-8") if holder.is_file() else "unknown"
        raise ConflictError(
            f"Process {by} does the same search already, in {place}.",
            "Wait for its run to end and submit again: what it finds is reused. `shopfloor runs list` shows what runs.",
        ) from error


def _go_on(
    settings: Settings, use_case: UseCase, rows: _Rows, trials: int, target_fs: Any, place: str
) -> tuple[Search, Trial, Any]:
    """Run the trials that a search lacks, and return it with its best trial and that trial's checkpoint."""
    import ray
    from ray.train import Checkpoint

    section = use_case.search
    finished = FinishedTrials(target_fs, place, section, trials)
    if finished.kept:
        print(f"Going on with the search that was stopped: {len(finished.kept)} trials are done.", flush=True)  # noqa: T201
    if len(finished.kept) < trials:
        job = trial.Job(
            use_case=use_case,
            target=rows.target,
            content=rows.content,
            train=ray.put(rows.train),
            validate=ray.put(rows.validate),
            max_failures=MAX_FAILURES,
            filesystem=target_fs,
            workers_path=f"{place}/workers",
        )
        needs = _resources(section.workers)
        ray_cluster.refuse_what_never_fits(settings, needs)
        with ray_cluster.told(needs, lambda line: print(line, flush=True)):  # noqa: T201  the step's log
            _run_trials(use_case, job, place, finished)
    usable = finished.usable()
    if not usable:
        errors = [one.error for one in finished.failed.values()]
        why = errors[0] if errors else f"{section.metric} was never a finite number"
        raise ShopfloorError(
            f"No trial of {use_case.name} finished: {why}",
            "The log of the step says more: shopfloor runs logs latest tune",
        )
    best = usable[0]
    result = Search(metric=section.metric, mode=section.mode, best_trial_id=best.trial.trial_id, trials=finished.all())
    return result, best.trial, Checkpoint(path=best.checkpoint, filesystem=target_fs)


def _run_trials(use_case: UseCase, job: trial.Job, place: str, finished: FinishedTrials) -> None:
    """Let Tune run the trials that the search lacks."""
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner, with_parameters, with_resources
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    section = use_case.search
    alone = section.workers.per_trial == 1
    resources = _resources(section.workers) if alone else {"CPU": 0.1}  # a trial of several workers waits for them
    earlier = [one.trial for one in finished.usable()]
    tuner = Tuner(
        with_resources(with_parameters(trial.run_alone if alone else trial.run_on_workers, job=job), resources),
        tune_config=TuneConfig(
            num_samples=finished.count - len(finished.kept),
            max_concurrent_trials=section.max_concurrent,
            search_alg=OptunaSearch(
                _space(use_case),
                metric=section.metric,
                mode=section.mode,
                # The first points of a seed are always the same: a search that goes on needs others.
                seed=section.seed + len(finished.kept),
                points_to_evaluate=[one.params for one in earlier] or None,
                evaluated_rewards=[one.metrics[section.metric] for one in earlier] or None,
            ),
            scheduler=ASHAScheduler(
                time_attr="rounds",
                metric=section.metric,
                mode=section.mode,
                max_t=section.max_rounds,
                grace_period=min(section.grace_rounds, section.max_rounds),
                reduction_factor=trial.REDUCTION_FACTOR,
            ),
            reuse_actors=alone,
        ),
        run_config=RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=place,
            storage_filesystem=job.filesystem,
            verbose=0,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[_listener(section.metric, finished)],
        ),
    )
    tuner.fit()


def _resources(workers: Workers) -> dict[str, float]:
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})


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
    section = use_case.model
    own = [] if section.estimator else [settings.project_root / "pipelines" / use_case.name / "model.py"]
    if section.flavor == "sklearn":
        own.append(Path(inspect.getfile(type(use_case.code("model")))))
    sources = [section.model_dump_json(), *(one.read_text(encoding="utf-8") for one in (*own, Path(trial.__file__)))]
    text = "\n".join([content, use_case.search.model_dump_json(), *sources, str(trials)])
    return f"{use_case.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _listener(metric: str, finished: FinishedTrials) -> Any:
    """Return the Tune callback that keeps each trial that ends, and prints a line for it."""
    from ray.tune import Callback

    def say(text: str) -> None:
        ended = len(finished.kept) + len(finished.failed)
        best = f"; best {usable[0].trial.metrics[metric]:.5f}" if (usable := finished.usable()) else ""
        print(f"trial {ended}/{finished.count} {text}{best}", flush=True)  # noqa: T201  the step's log

    def fail(trial: Any, error: str) -> None:
        finished.broke(trial.trial_id, dict(trial.config or {}), trial.last_result or {}, error)
        say(f"failed: {error}")

    class Listener(Callback):  # type: ignore[misc]
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            finished.reported(trial.trial_id, result)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            numbers = trial.last_result or {}
            if FAILURE in numbers:
                fail(trial, numbers[FAILURE])
                return
            # Ray Train reports the place of its workers' checkpoint, not itself.
            place = trial.checkpoint.path if trial.checkpoint else numbers.get("checkpoint_path", "")
            one = finished.ended(trial.trial_id, dict(trial.config or {}), numbers, place)
            say(f"{metric} {one.metrics.get(metric, math.nan):.5f} after {one.rounds} rounds")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            fail(trial, reason(trial.get_error()))

    return Listener()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

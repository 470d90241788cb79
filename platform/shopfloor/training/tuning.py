"""The search for the best parameters: Ray Tune on the running cluster, Ray Train where a trial takes several workers.

A use case's `model.py` knows the model and nothing of Ray:

- `prepare(train, validate, target) -> data`: make of the frames what `train` wants, once for each worker process.
- `train(params, data, *, rounds, threads, resume_from, report)`: fit up to `rounds` rounds, from the directory
  `resume_from` on where one is given, and call `report(round, metrics, model)` after each round.
- `save(model, directory)`, `load(directory)`, `predict(model, frame)`: the model as files; its answers, shape (rows,).

A trial whose worker dies goes on from its last checkpoint; a search that was killed goes on with the trials it lacks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shopfloor.errors import ShopfloorError
from shopfloor.records import FeatureSet, Search, Trial
from shopfloor.settings import Settings, load_settings
from shopfloor.storage import Artifact, Metrics, filesystem, hash_directory, is_remote, join, local_copy, publish
from shopfloor.training import cluster as ray_cluster
from shopfloor.training import rayjob, trial
from shopfloor.use_case import Choice, FloatRange, IntRange, UseCase, Workers, load_use_case

logger = logging.getLogger(__name__)

OWN_CLUSTER = "rayjob"
"""Value of `ray_address`: the search brings its own cluster, a KubeRay RayJob."""
MAX_FAILURES = 3
"""Deaths of its worker that a trial survives."""


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
    directory = local_copy(settings, features_uri)
    with ray_cluster.joined(settings):
        result, best, checkpoint = _search(settings, use_case, directory, trials)
        with checkpoint.as_directory() as files:
            made = trial.best_model(Path(files))
            # By the model's own files: another search that ends with the same model has made the same.
            with publish(settings, model, "tune-model", content_hash=hash_directory(made)) as target:
                shutil.copytree(made, target, dirs_exist_ok=True)
                (target / "best_trial.json").write_text(best.model_dump_json(indent=1), encoding="utf-8")
    with publish(settings, search, "tune-search") as target:
        (target / "search.json").write_text(result.model_dump_json(indent=1), encoding="utf-8")
    for name, value in best.metrics.items():
        metrics.log_metric(name, value)
    metrics.log_metric("trials", len(result.trials))


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
    asked = {
        "use_case": use_case.name,
        "features_uri": features_uri,
        "trials": trials,
        "run_id": settings.run_id,
        "search": section.model_dump(mode="json"),
    }
    name = rayjob.job_name(use_case.name, asked)
    result_uri = join(settings.artifact_root, "rayjobs", f"{name}.json")
    words = [use_case.name, features_uri, str(trials), result_uri]
    workers = rayjob.Workers(
        count=min(section.max_concurrent, trials) * section.workers.per_trial,
        cpus=section.workers.cpus,
        gpus=section.workers.gpus,
    )
    rayjob.run(settings, name, f"python -m {__name__} {shlex.join(words)}", workers)
    target_fs, path = filesystem(settings, result_uri)
    with target_fs.open_input_stream(path) as stream:
        result = json.loads(stream.read())
    for artifact, made in ((model, result["model"]), (search, result["search"])):
        artifact.uri = made["uri"]
        artifact.metadata.update(made["metadata"])
    for metric, value in result["metrics"].items():
        metrics.log_metric(metric, value)


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
    made = {"model": vars(model), "search": vars(search), "metrics": numbers}
    target_fs, path = filesystem(settings, result_uri)
    if not is_remote(result_uri):
        target_fs.create_dir(path.rpartition("/")[0], recursive=True)
    with target_fs.open_output_stream(path) as stream:
        stream.write(json.dumps(made).encode())


def _search(settings: Settings, use_case: UseCase, directory: Path, trials: int) -> tuple[Search, Trial, Any]:
    import pandas as pd
    import ray

    section = use_case.search
    alone = section.workers.per_trial == 1
    resources = _resources(section.workers) if alone else {"CPU": 0.1}  # a trial of several workers waits for them
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner, with_parameters, with_resources
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    features = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8"))
    columns = [*features.features, features.target]
    content = hash_directory(directory)
    target_fs, root = filesystem(settings, join(settings.artifact_root, "tune"))
    if not is_remote(settings.artifact_root):
        target_fs.create_dir(root, recursive=True)
    name = _experiment(settings, use_case, content, trials)
    job = trial.Job(
        module=f"pipelines.{use_case.name}.model",
        section=section,
        target=features.target,
        content=content,
        train=ray.put(pd.read_parquet(directory / "train.parquet", columns=columns)),
        validate=ray.put(pd.read_parquet(directory / "validate.parquet", columns=columns)),
        max_failures=MAX_FAILURES,
        filesystem=target_fs,
        workers_path=f"{root}/{name}-workers",
    )
    trainable = with_resources(with_parameters(trial.run_alone if alone else trial.run_on_workers, job=job), resources)
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
                    reduction_factor=trial.REDUCTION_FACTOR,
                ),
                reuse_actors=alone,
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
    # Tune goes on only with the very same function, so what runs a trial counts too.
    files = (settings.project_root / "pipelines" / use_case.name / "model.py", Path(trial.__file__))
    sources = [file.read_text(encoding="utf-8") for file in files]
    text = "\n".join([content, use_case.search.model_dump_json(), *sources, str(trials)])
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
    """Return the search, its best trial and that trial's checkpoint; a trial counts by the best model that it left."""
    section = use_case.search
    trials: dict[str, Trial] = {}
    checkpoints: dict[str, Any] = {}
    for result in grid:
        last = result.metrics or {}
        rounds = int(last.get("rounds", 0))
        trial_id = str(last.get("trial_id", len(trials)))
        state = "failed" if result.error else "finished" if rounds >= section.max_rounds else "stopped"
        trials[trial_id] = Trial(
            trial_id=trial_id,
            params=dict(result.config or {}),
            metrics={
                name: float(value)
                for name, value in last.get("best", {}).items()
                if isinstance(value, int | float) and name != trial.BEST_ROUND
            },
            rounds=rounds,
            seconds=float(last.get("time_total_s", 0.0)),
            status=state,  # type: ignore[arg-type]
        )
        checkpoints[trial_id] = result.checkpoint or _workers_checkpoint(grid, last)
    usable = [one for one in trials.values() if section.metric in one.metrics and checkpoints[one.trial_id] is not None]
    if not usable:
        errors = [str(result.error).strip().splitlines()[-1] for result in grid if result.error]
        raise ShopfloorError(
            f"No trial of {use_case.name} finished: {errors[0] if errors else f'none reported {section.metric!r}'}",
            "The log of the step says more: shopfloor runs logs latest tune",
        )
    sign = 1 if section.mode == "min" else -1
    best = min(usable, key=lambda one: (sign * one.metrics[section.metric], one.trial_id))
    result = Search(metric=section.metric, mode=section.mode, best_trial_id=best.trial_id, trials=list(trials.values()))
    return result, best, checkpoints[best.trial_id]


def _workers_checkpoint(grid: Any, numbers: dict[str, Any]) -> Any:
    """Return the checkpoint that the workers of a trial wrote: Ray Train reports its place, not itself."""
    from ray.train import Checkpoint

    place = numbers.get("checkpoint_path")
    return Checkpoint(path=place, filesystem=grid.filesystem) if place else None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

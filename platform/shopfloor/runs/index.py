"""What MLflow knows of runs: how a run is recorded there and found again.

The tags here say what MLflow has no field for: the engine and its id of the run, the state, the outcome, what was asked
for. `recorder.py` writes a run while it goes on, `conclude.py` its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from shopfloor.attempts import Attempt
from shopfloor.errors import AccessError, Failure, NotFoundError
from shopfloor.records import Cost, StepRecord, Usage
from shopfloor.runs.mlflow import JOB_USAGE, POD_USAGE, lookup
from shopfloor.runs.mlflow import PARENT as PARENT
from shopfloor.settings import Settings

STATE, STEP, PIPELINE, USE_CASE, ENGINE, OUTCOME, PROCESS, SECONDS = (
    f"shopfloor.{name}" for name in ("state", "step", "pipeline", "use_case", "engine", "outcome", "process", "seconds")
)
RESULT_OF = "shopfloor.result_of"
"""Tag of a cached step: the run that made its result, and so has its log."""
ERROR, ERROR_KIND, REMEDY = (f"shopfloor.{name}" for name in ("error", "error_kind", "remedy"))
"""Tags of a step that failed: what is wrong, the kind of it, and what to do."""
ATTEMPT = "shopfloor.attempt"
"""Tag of a step's run, where each attempt at the step has one of its own: which it is."""
COMMIT = "mlflow.source.git.commit"
"""Tag of a run, MLflow's own: the commit of the project that it was submitted with."""
DIRTY = "shopfloor.git_dirty"
"""Tag of a run: `true` where files differed from that commit."""
ENGINE_RUN = "shopfloor.engine_run"
"""Id under which the engine knows the run."""
ENGINE_URL = "shopfloor.engine_url"
"""Address of the engine that has the run."""
SUBMITTER = "shopfloor.submitter"
"""Process that hands the run to its engine; it counts until the engine's id stands beside it."""
SUBMISSION = "shopfloor.submission"
"""Beginning of the tags that hold what was asked for, in pieces: a tag has a limit."""
CHAMPION = "shopfloor.champion"
"""Version that a step made the champion."""
TEAM = "shopfloor.team"
"""Namespace of the team whose run it is, on a cluster."""
VERSION = "shopfloor.version"
"""Version that a run registered, or took as its own result: `model/version`."""
USAGES = {POD_USAGE: "pod", JOB_USAGE: "RayJob"}
"""Tags of a step that say what it had of the cluster, and what had it."""
COST = "shopfloor.cost"
"""Tag of a run that has ended: what its steps had of the cluster, as JSON; the amount is a metric of its own."""
UNCOUNTED = "shopfloor.uncounted"
"""Tag of a run: its steps of which nobody knows what they had of the cluster."""
STATUS = {
    "succeeded": "FINISHED",
    "cached": "FINISHED",
    "gate_missed": "FAILED",
    "skipped": "FINISHED",
    "failed": "FAILED",
    "killed": "KILLED",
}
EXPERIMENT_KIND = "mlflow.experimentKind"
"""Tag of an experiment by which MLflow chooses what its page shows: models and metrics, not prompts and traces."""
RUN_ID_LENGTH = 32
_SCHEDULED = "scheduled."
TAG_LIMIT = 4900
"""MLflow refuses longer tag values."""


def create_run(
    client: Any, use_case: str | None, pipeline: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Any:
    """Create the MLflow run of a pipeline's run and return it; its experiment is the use case, or the pipeline."""
    own = {
        PIPELINE: pipeline,
        USE_CASE: use_case or "",
        STATE: "running",
        "mlflow.user": os.environ.get("USER", "unknown"),
        "mlflow.source.name": "shopfloor submit",
    }
    name = f"{pipeline} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    run = client.create_run(experiment(client, use_case or pipeline), tags=own | dict(tags), run_name=name)
    from mlflow.entities import Param

    client.log_batch(run.info.run_id, params=[Param(name, str(value)[:6000]) for name, value in params.items()])
    return run


def scheduled_run(
    client: Any, settings: Settings, marker: str, use_case: str | None, tags: Mapping[str, str], engine_run: str
) -> str:
    """Return the id of the MLflow run of one run of a schedule: its first step makes it, the others find it.

    Args:
        client: From `recorder.connect`.
        settings: Name the profile.
        marker: What stands for the id in a schedule's steps, from `scheduled`.
        use_case: Names the experiment; without one the pipeline does.
        tags: Further tags of the run.
        engine_run: Id under which the engine knows it.
    """

    def first() -> Any:
        everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(everywhere, f"tags.`{ENGINE_RUN}` = '{engine_run}'")
        return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)

    record = first()
    if record is None:
        own = {"shopfloor.profile": settings.profile, ENGINE_RUN: engine_run}
        own_record = create_run(client, use_case, marker.removeprefix(_SCHEDULED), {}, own | dict(tags))
        record = first() or own_record
        if record.info.run_id != own_record.info.run_id:  # another step was faster
            client.delete_run(own_record.info.run_id)
    return str(record.info.run_id)


def scheduled(pipeline: str) -> str:
    """Return what stands for the id of a run in the steps of a schedule: each of its runs gets one of its own."""
    return f"{_SCHEDULED}{pipeline}"


def is_scheduled(run_id: str) -> bool:
    """Tell whether what stands for a run's id came from `scheduled`."""
    return run_id.startswith(_SCHEDULED)


def run_url(settings: Settings, experiment_id: str, run_id: str) -> str:
    """Return the address of a run in MLflow's own page."""
    return f"{settings.tracking_uri}/#/experiments/{experiment_id}/runs/{run_id}"


def reopen(client: Any, run: Any, tags: Mapping[str, str], forget: tuple[str, ...] = ()) -> None:
    """Mark a run as running again, with further tags and without those to forget."""
    from mlflow.entities import RunTag

    for name in run.data.tags.keys() & set(forget):
        client.delete_tag(run.info.run_id, name)
    texts = {**tags, STATE: "running", OUTCOME: ""}
    client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in texts.items()])
    client.update_run(run.info.run_id, status="RUNNING")


def open_runs(client: Any) -> list[Any]:
    """Return the runs whose record says that they go on."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`{STATE}` = 'running' and tags.`{PIPELINE}` LIKE '%'"))


def engine_run_of(run: Any) -> str | None:
    """Return the id under which its engine knows a run; the local one knows it as MLflow does."""
    local = run.data.tags.get(ENGINE, "local") == "local"
    return str(run.info.run_id) if local else run.data.tags.get(ENGINE_RUN)


def failure_tags(failure: Failure | None) -> dict[str, str]:
    """Return the tags that say why a step failed, or, without a failure, that no attempt of it did."""
    texts = (failure.message, failure.kind, failure.remedy) if failure else ("", "", "")
    return {tag: text[:TAG_LIMIT] for tag, text in zip((ERROR, ERROR_KIND, REMEDY), texts, strict=True)}


def submission_tags(text: str) -> dict[str, str]:
    """Return the tags that hold what was asked for, a JSON text of any length."""
    return {
        f"{SUBMISSION}.{number:03}": text[start : start + TAG_LIMIT]
        for number, start in enumerate(range(0, len(text), TAG_LIMIT))
    }


def submission_of(run: Any) -> str:
    """Return what `submission_tags` recorded; empty where a run has none."""
    return "".join(value for name, value in sorted(run.data.tags.items()) if name.startswith(f"{SUBMISSION}."))


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
    matches = runs[:1] if run_id == "latest" else [run for run in runs if run.info.run_id.startswith(run_id)]
    if not matches and len(run_id) == RUN_ID_LENGTH:
        return _whole_run(client, run_id)
    if len(matches) != 1:
        problem = "There is no run" if not matches else f"{len(matches)} runs begin with"
        raise NotFoundError(f"{problem} {run_id!r}.", "`shopfloor runs list` shows the ids.")
    return matches[0]


def _whole_run(client: Any, run_id: str) -> Any:
    """Return the run of that id, or the one that a step or a model of that id belongs to.

    Raises:
        NotFoundError: MLflow has no such run.
        ServiceError: MLflow does not answer, or refuses.
    """
    try:
        with lookup(client):
            run = client.get_run(run_id)
            parent = run.data.tags.get(PARENT)
            return client.get_run(parent) if parent else run
    except (NotFoundError, AccessError) as error:  # of a run that is not there, a server with users says 403
        raise NotFoundError(f"There is no run {run_id!r}.", "`shopfloor runs list` shows the ids.") from error


def children_of(client: Any, run: Any) -> list[Any]:
    """Return the MLflow runs of a run's steps in the order in which they began; of attempts at a step the newest."""
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'", order_by=["start_time ASC"]
    )
    newest: dict[str, Attempt] = {}
    for child in children:
        if text := child.data.tags.get(ATTEMPT):
            attempt = Attempt.parse(text)
            newest[attempt.place] = max(newest.get(attempt.place, attempt), attempt, key=lambda one: one.number)
    kept = {str(attempt) for attempt in newest.values()}
    return [child for child in children if child.data.tags.get(ATTEMPT) in {None, *kept}]


def steps_of(client: Any, run: Any) -> list[StepRecord]:
    """Return the steps of a run in the order in which they began."""
    return [
        StepRecord.model_validate(
            {
                "name": child.data.tags.get(STEP, child.info.run_name),
                "state": child.data.tags.get(STATE, "running"),
                "seconds": float(child.data.tags.get(SECONDS, 0)),
                "run_id": child.info.run_id,
                "result_of": child.data.tags.get(RESULT_OF, ""),
                "error": child.data.tags.get(ERROR, ""),
                "error_kind": child.data.tags.get(ERROR_KIND, ""),
                "remedy": child.data.tags.get(REMEDY, ""),
            }
        )
        for child in children_of(client, run)
    ]


def cost_of(settings: Settings, children: Iterable[Any], expected: Iterable[str] = ()) -> Cost | None:
    """Return what steps recorded that they had of the cluster, at the profile's prices; `None` where none recorded any.

    Args:
        settings: Have the prices.
        children: The steps' MLflow runs.
        expected: Names of the steps that had something.
    """
    tags = [child.data.tags for child in children]
    usages = [
        (one.get(STEP, ""), Usage.model_validate(usage))
        for one in tags
        for tag in USAGES
        for usage in json.loads(one.get(tag, "[]"))
    ]
    if not usages:
        return None
    uncounted = set(expected) - {step for step, _ in usages}
    return Cost.of((usage for _, usage in usages), settings.cluster.prices, settings.cluster.currency, uncounted)


def whole_cost_of(settings: Settings, client: Any, run: Any) -> Cost | None:
    """Return what a run's steps had of the cluster, those included whose results it reused; see `cost_of`."""
    children = children_of(client, run)
    for child in list(children):
        maker = child.data.tags.get(RESULT_OF)
        if maker and maker != run.info.run_id:
            with contextlib.suppress(NotFoundError), lookup(client):
                before = children_of(client, client.get_run(maker))
                children += [one for one in before if one.data.tags.get(STEP) == child.data.tags.get(STEP)]
    return cost_of(settings, children)


def experiment(client: Any, name: str) -> str:
    """Return the id of the experiment of that name, made or brought back where need be."""
    present = client.get_experiment_by_name(name)
    if present is not None and present.lifecycle_stage == "active":
        return str(present.experiment_id)
    if present is not None:
        client.restore_experiment(present.experiment_id)
        return str(present.experiment_id)
    try:
        return str(client.create_experiment(name, tags={EXPERIMENT_KIND: "custom_model_development"}))
    except Exception:  # somebody else created it a moment ago
        again = client.get_experiment_by_name(name)
        if again is None:
            raise
        return str(again.experiment_id)

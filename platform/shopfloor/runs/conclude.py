"""How a run ends, on whatever engine it was: state, outcome, gates, links and the report, by one code.

A run that records itself concludes while it still knows what its steps gave. Of any other run, whose submitter is long
gone, whoever looks next concludes it from what its steps recorded.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from shopfloor.errors import NotFoundError, first_line
from shopfloor.pipeline import ir
from shopfloor.pipeline.results import Outputs, artifacts_of
from shopfloor.records import (
    Checks,
    DataVersion,
    Evaluation,
    FeatureSet,
    GateResult,
    Monitored,
    Passport,
    Record,
    Scored,
    Search,
    StepRecord,
)
from shopfloor.report.page import RunReport, render
from shopfloor.runs import index, owner
from shopfloor.runs.mlflow import add_params
from shopfloor.runs.recorder import log_values
from shopfloor.settings import Settings
from shopfloor.storage import CONTENT_HASH, local_copy

logger = logging.getLogger(__name__)

EndState = Literal["succeeded", "gate_missed", "failed", "killed"]
FILES: dict[str, tuple[str, type[Record]]] = {
    "data": ("data_version.json", DataVersion),
    "checks": ("checks.json", Checks),
    "features": ("feature_set.json", FeatureSet),
    "search": ("search.json", Search),
    "evaluation": ("evaluation.json", Evaluation),
    "passport": ("passport.json", Passport),
    "scored": ("scored.json", Scored),
    "monitored": ("monitored.json", Monitored),
}
"""Parts of a run that the report shows: the file beside an artifact that holds one, and its form."""
PIPELINE_FILE = "pipeline.json"
"""File of a run with the pipeline as it was compiled."""


def missed_gates(gates: Sequence[GateResult]) -> str:
    """Return one sentence on the gates that are missed."""
    words = "; ".join(
        f"{gate.gate} must be {gate.bound}"
        + (f", is {gate.value:.4f} (missed by {gate.missed_by:.4f})" if gate.value is not None else f": {gate.note}")
        for gate in gates
        if not gate.passed and not gate.undecided
    )
    return f"Gate missed: {words}."


def ending(
    steps: Sequence[StepRecord], records: Mapping[str, Record], version: str | None, failure: str | None
) -> tuple[EndState, str]:
    """Return the state of a run that went to its end, and one sentence on it.

    Args:
        steps: How its steps ended.
        records: What they gave, by the names of `FILES`.
        version: Version that is the champion because of the run.
        failure: Why the engine calls it failed; `None` where the engine calls it succeeded.
    """
    failed = [step for step in steps if step.state == "failed"]
    if failed:
        others = f" ({len(failed) - 1} more failed.)" if len(failed) > 1 else ""
        return "failed", f"Step {failed[0].name} failed: {failed[0].why}{others}"
    if failure is not None:
        return "failed", failure
    search, evaluation = records.get("search"), records.get("evaluation")
    failures = search.failures() if isinstance(search, Search) else ""
    trials = f" {failures.rstrip('.')}." if failures else ""
    if isinstance(evaluation, Evaluation) and not evaluation.passed:
        return "gate_missed", f"{missed_gates(evaluation.gates)} The champion is untouched.{trials}"
    monitored = records.get("monitored")
    if isinstance(monitored, Monitored):
        return _monitored(monitored)
    passport, scored = records.get("passport"), records.get("scored")
    if version is not None:
        outcome = f"Version {version} is the champion."
    elif isinstance(passport, Passport):
        challenger = f"{passport.model}/{passport.version}"
        outcome = (
            f"Version {passport.version} of {passport.model} is the challenger: this run promotes nothing. "
            f"`shopfloor rollout run {challenger}` lets real requests judge it, "
            f"`shopfloor models promote {challenger}` makes it the champion."
        )
    elif isinstance(scored, Scored):
        outcome = (
            f"{scored.rows:,} rows are scored with version {scored.version} of {scored.use_case}: {scored.predictions}"
        )
    else:
        outcome = "Every step succeeded."
    return "succeeded", f"{outcome}{trials}"


def _monitored(monitored: Monitored) -> tuple[EndState, str]:
    """Return how a run of `monitoring` ended."""
    hours = (monitored.until - monitored.since).total_seconds() / 3600
    which = f"version {monitored.version} of {monitored.use_case}"
    if not monitored.passed:
        return "gate_missed", f"{missed_gates(monitored.gates)} It is {which}, in the last {hours:g} hours."
    waiting = [gate for gate in monitored.gates if gate.undecided]
    verdict = "there is no gate for it" if not monitored.gates else "every gate is met"
    if waiting:
        verdict = f"{len(waiting)} of {len(monitored.gates)} gates are undecided ({waiting[0].gate}: {waiting[0].note})"
    drift = monitored.drift[0] if monitored.drift else None
    furthest = f"; {drift.column} has gone furthest, by {drift.distance:.2f}" if drift else ""
    requests = f"{monitored.numbers.requests:,} requests in the last {hours:g} hours"
    return "succeeded", f"{which[0].upper()}{which[1:]} answered {requests}{furthest}; {verdict}."


def links(settings: Settings, run_url: str, use_case: str | None, version: str | None) -> dict[str, str]:
    """Return the addresses that belong to a run: its own, and its version's and the endpoint's where it has one."""
    own = {"run": run_url}
    if version:
        own["model"] = f"{settings.tracking_uri}/#/models/{use_case}/versions/{version}"
        own["api"] = f"{settings.serve_url}/{use_case}/docs"
    return own


def read_records(settings: Settings, artifact: Mapping[str, Any]) -> dict[str, tuple[Path, Record]]:
    """Return the small files of an artifact that a report shows: by the names of `FILES`, each with its content."""
    try:
        directory = local_copy(settings, artifact["uri"])
    except NotFoundError:
        return {}
    return {
        name: (directory / file, kind.model_validate_json((directory / file).read_text(encoding="utf-8")))
        for name, (file, kind) in FILES.items()
        if (directory / file).is_file()
    }


def attach_records(settings: Settings, client: Any, step_run_id: str, outputs: Outputs, run_id: str) -> None:
    """Attach what a report shows of a step's outputs to the step's run; a search gives both runs its parameters."""
    for artifact in artifacts_of(outputs):
        if CONTENT_HASH in artifact["metadata"]:
            for file, record in read_records(settings, artifact).values():
                client.log_artifact(step_run_id, str(file))
                if isinstance(record, Search):
                    for one in (run_id, step_run_id):
                        add_params(client, one, record.best_params)


def settled(steps: Sequence[StepRecord], state: str) -> list[StepRecord]:
    """Return the steps of a run that has ended in a state: what waited was skipped, what ran ended with the run."""
    # A step of which nobody wrote the end has not succeeded.
    ends: dict[str, Any] = {"pending": "skipped", "running": "failed" if state == "failed" else "killed"}
    return [step.model_copy(update={"state": ends.get(step.state, step.state)}) for step in steps]


def close(settings: Settings, client: Any, run: Any, state: str, reason: str) -> str:
    """End the record of a run from outside, by what its steps recorded.

    Args:
        settings: Say where MLflow and the endpoints are.
        client: From `recorder.connect`.
        run: MLflow's run.
        state: What its engine says: `succeeded`, `failed` or `killed`.
        reason: Why, where it did not succeed and no step says so.

    Returns:
        The run's state.
    """
    children = index.children_of(client, run)
    steps = index.steps_of(client, run)
    records = _recorded(client, children)
    version = next((v for child in children if (v := child.data.tags.get(index.CHAMPION))), None)
    end_state, message = cast(EndState, state), reason
    if state != "killed":
        end_state, message = ending(steps, records, version, None if state == "succeeded" else reason)
    tasks, edges = _pipeline(client, run)
    names = {step.task for step in steps}
    steps += [StepRecord(name=task, state="pending") for task in tasks if task not in names]
    end(settings, client, run.info.run_id, end_state, message, settled(steps, state), edges, records, version)
    return end_state


def end(
    settings: Settings,
    client: Any,
    run_id: str,
    state: EndState,
    message: str,
    steps: Sequence[StepRecord],
    edges: Sequence[tuple[str, str]],
    records: Mapping[str, Record],
    version: str | None,
) -> RunReport:
    """Write the end of a run, whoever ran it: its report, its metrics, its outcome, and how its open steps ended.

    Args:
        settings: Say where MLflow and the endpoints are.
        client: From `recorder.connect`.
        run_id: The MLflow run.
        state: How it ended.
        message: One sentence on it.
        steps: From `settled`.
        edges: Pairs of steps of which the second waits for the first.
        records: What the steps gave, by the names of `FILES`.
        version: Version that is the champion because of the run.

    Returns:
        What the report tells.
    """
    run = client.get_run(run_id)
    use_case = run.data.tags.get(index.USE_CASE) or None
    begun_s = run.info.start_time / 1000
    report = RunReport(
        run_id=run_id,
        pipeline=run.data.tags.get(index.PIPELINE, ""),
        use_case=use_case,
        engine=run.data.tags.get(index.ENGINE, ""),
        parameters=dict(run.data.params),
        started=dt.datetime.fromtimestamp(begun_s, dt.UTC),
        seconds=max(0.0, time.time() - begun_s),
        state=state,
        outcome=message,
        steps=list(steps),
        edges=list(edges),
        endpoint=f"{settings.serve_url}/{use_case}/predict" if version else None,
        links=links(settings, index.run_url(settings, run.info.experiment_id, run_id), use_case, version),
        **cast(Any, {name: records.get(name) for name in FILES}),
    )
    try:
        client.log_text(run_id, render(report), "report.html")
    except Exception as error:  # whatever it is: how the run ended is told without it
        logger.warning("Run %s has no report: %s", run_id, first_line(error))
    ends = {step.run_id: step.state for step in steps}
    for child in index.children_of(client, run):
        if child.data.tags.get(index.STATE) == "running":
            step_state = ends.get(child.info.run_id, "killed")
            client.set_tag(child.info.run_id, index.STATE, step_state)
            client.set_terminated(child.info.run_id, index.STATUS[step_state])
    metrics = dict(report.evaluation.metrics) if report.evaluation else {}
    metrics |= report.monitored.as_metrics() if report.monitored else {}
    numbers, more = _cost(settings, client, run, steps)
    metrics |= numbers
    if report.passport is not None:
        more[index.VERSION] = f"{report.passport.model}/{report.passport.version}"
    tags = more | {index.STATE: state, index.OUTCOME: message[: index.TAG_LIMIT], "mlflow.note.content": message}
    log_values(client, run_id, metrics, tags)
    client.set_terminated(run_id, index.STATUS[state])
    return report


def close_dead_runs(settings: Settings, client: Any) -> None:
    """Mark runs whose process is gone (a kill -9, a reboot) as killed, with their steps."""
    for run in index.open_runs(client):
        # A process may have written its run's end, and gone, since the runs were listed.
        if owner.is_dead(run) and owner.is_dead(client.get_run(run.info.run_id)):
            close(settings, client, run, "killed", "The process of the run was killed.")


def _cost(
    settings: Settings, client: Any, run: Any, steps: Sequence[StepRecord]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return metrics and tags that say what a run cost; none where nobody counted."""
    expected = [step.name for step in steps if step.state in {"succeeded", "failed", "killed"}]
    cost = index.cost_of(settings, index.children_of(client, run), expected)
    if cost is None:
        return {}, {}
    numbers = {"cost": cost.amount, "gpu_seconds": sum(cost.gpu_seconds.values())}
    return numbers, {index.COST: cost.model_dump_json()[: index.TAG_LIMIT], index.UNCOUNTED: ",".join(cost.uncounted)}


def _recorded(client: Any, children: Sequence[Any]) -> dict[str, Record]:
    """Return what the steps of a run attached to their own runs."""
    records: dict[str, Record] = {}
    with tempfile.TemporaryDirectory() as directory:
        for child in children:
            there = {item.path for item in client.list_artifacts(child.info.run_id)}
            for name, (file, kind) in FILES.items():
                if file in there:
                    path = client.download_artifacts(child.info.run_id, file, directory)
                    records[name] = kind.model_validate_json(Path(path).read_text(encoding="utf-8"))
    return records


def _pipeline(client: Any, run: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the tasks of a run's pipeline and which waits for which; nothing where the run does not say."""
    if PIPELINE_FILE not in {item.path for item in client.list_artifacts(run.info.run_id)}:
        return [], []
    with tempfile.TemporaryDirectory() as directory:
        file = Path(client.download_artifacts(run.info.run_id, PIPELINE_FILE, directory))
        pipeline = ir.unchecked(ir.read(json.loads(file.read_text(encoding="utf-8"))))
        return pipeline.leaves(pipeline.root)

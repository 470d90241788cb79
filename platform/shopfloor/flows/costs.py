"""What runs on the cluster had of it, as their steps recorded it in MLflow, and what that cost.

A step that Kueue admitted leaves what it had as a tag of its own run: the flavor, how much of what, how long, and how
long it had waited. Prices are today's: another price table gives another sum, for old runs too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from shopfloor.errors import NotFoundError
from shopfloor.records import Cost, Record, Usage
from shopfloor.runs import index
from shopfloor.runs.mlflow import Mlflow, tags_of
from shopfloor.settings import Settings

PAGE = 1000
"""Runs of one answer of MLflow."""
LATEST = 300
"""Steps that an estimate looks back on."""
By = Literal["team", "use-case", "version", "run"]
_USAGES = TypeAdapter(list[Usage])


@dataclass(frozen=True)
class StepUsage:
    """What a step recorded that it had: its own pod, or the RayJob that it brought along."""

    run_id: str
    step: str
    kind: str
    usages: tuple[Usage, ...]

    @property
    def waited_s(self) -> float | None:
        """How long it stood in the queue."""
        return next((usage.waited_s for usage in self.usages), None)

    @property
    def has_gpus(self) -> bool:
        """Whether it had any GPU."""
        return any(usage.gpus for usage in self.usages)


class CostLine(Record):
    """What the runs of one team, use case, version or run cost together."""

    name: str
    runs: int
    cost: Cost


class Costs(Record):
    """What runs cost."""

    since: dt.datetime | None
    by: str
    lines: list[CostLine]
    """The most expensive first."""
    total: Cost


def recorded(mlflow: Mlflow, experiment: str) -> list[StepUsage]:
    """Return what the latest steps of an experiment recorded that they had; nothing where there is no such experiment.

    Raises:
        ServiceError: MLflow does not answer, or refuses.
    """
    try:
        found = mlflow.get("experiments/get-by-name", "experiment", experiment_name=experiment)
    except NotFoundError:
        return []
    return [usage for run in _steps(mlflow, [found["experiment_id"]], LATEST) for usage in _usages_of(run)]


def summary(settings: Settings, by: By, use_case: str | None, since: dt.datetime | None) -> Costs:
    """Return what the runs cost that this user may see.

    Args:
        settings: Say where MLflow is, and have the prices.
        by: What to sum by.
        use_case: Only runs of this one.
        since: Only runs that began then or later.

    Raises:
        NotFoundError: The use case has no run.
        ServiceError: MLflow does not answer, or refuses.
    """
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    experiments = mlflow.search("experiments/search", "experiments", max_results=PAGE)
    ids = [one["experiment_id"] for one in experiments if use_case in {None, one["name"]}]
    if use_case is not None and not ids:
        raise NotFoundError(f"Use case {use_case!r} has no runs.", "`shopfloor runs list` shows all runs.")
    runs: dict[str, Any] = {}
    usages: dict[str, list[Usage]] = {}
    uncounted: dict[str, set[str]] = {}
    if ids:
        begun = f" and attributes.start_time >= {int(since.timestamp() * 1000)}" if since else ""
        found = _search(mlflow, ids, f"tags.`{index.PIPELINE}` LIKE '%' and tags.`{index.ENGINE}` = 'argo'{begun}")
        runs = {run["info"]["run_id"]: run for run in found}
        for step in _steps(mlflow, ids, None):
            run_id = tags_of(step["data"]).get(index.PARENT, "")
            usages.setdefault(run_id, []).extend(u for one in _usages_of(step) for u in one.usages)
        for run_id, run in runs.items():
            names = tags_of(run["data"]).get(index.UNCOUNTED, "")
            uncounted[run_id] = {f"{run_id[:8]} {name}" for name in names.split(",") if name}
    groups: dict[str, list[str]] = {}
    for run_id, run in runs.items():
        groups.setdefault(_name(by, run), []).append(run_id)

    def cost(run_ids: Iterable[str]) -> Cost:
        chosen = list(run_ids)
        every = [usage for run_id in chosen for usage in usages.get(run_id, [])]
        missing = [name for run_id in chosen for name in uncounted.get(run_id, ())]
        return Cost.of(every, settings.cluster.prices, settings.cluster.currency, missing)

    lines = [CostLine(name=name, runs=len(run_ids), cost=cost(run_ids)) for name, run_ids in groups.items()]
    lines.sort(key=lambda line: (-line.cost.amount, line.name))
    return Costs(since=since, by=by, lines=lines, total=cost(runs))


def _name(by: By, run: Mapping[str, Any]) -> str:
    tags = tags_of(run["data"])
    if by == "team":
        return tags.get(index.TEAM, "") or tags.get(index.ENGINE_RUN, "").partition("/")[0] or "unknown"
    if by == "use-case":
        return tags.get(index.USE_CASE, "") or tags.get(index.PIPELINE, "")
    if by == "version":
        return tags.get(index.VERSION, "") or "no version"
    return str(run["info"]["run_id"])


def _usages_of(run: Mapping[str, Any]) -> list[StepUsage]:
    """Return what a step's run has recorded; what cannot be read is left out."""
    tags = tags_of(run["data"])
    found = []
    for tag, kind in index.USAGES.items():
        try:
            usages = tuple(_USAGES.validate_json(tags[tag])) if tag in tags else ()
        except ValidationError:
            continue
        if usages:
            found.append(StepUsage(run["info"]["run_id"], tags.get(index.STEP, ""), kind, usages))
    return found


def _steps(mlflow: Mlflow, experiments: list[str], most: int | None) -> list[dict[str, Any]]:
    """Return the runs of steps, the newest first, that recorded what they had."""
    return [run for tag in index.USAGES for run in _search(mlflow, experiments, f"tags.`{tag}` LIKE '%'", most)]


def _search(mlflow: Mlflow, experiments: list[str], filters: str, most: int | None = None) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    token = ""
    while True:
        answer = mlflow.post(
            "runs/search",
            {
                "experiment_ids": experiments,
                "filter": filters,
                "max_results": min(most or PAGE, PAGE),
                "order_by": ["attributes.start_time DESC"],
                **({"page_token": token} if token else {}),
            },
        )
        runs += answer.get("runs", [])
        token = answer.get("next_page_token", "")
        if not token or (most is not None and len(runs) >= most):
            return runs

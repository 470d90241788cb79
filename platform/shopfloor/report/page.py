"""The report of a run: one HTML document that needs nothing else, also of a run that failed half-way.

Text and tables come from `report.html.j2`, where everything from the data is escaped; the pictures from `charts.py`.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from shopfloor.records import (
    Checks,
    DataVersion,
    Evaluation,
    FeatureSet,
    Monitored,
    Passport,
    Record,
    Scored,
    Search,
    StepRecord,
    Trial,
)
from shopfloor.report import charts

TEMPLATE = "report.html.j2"
DRAWN_COLUMNS = 6
"""Columns whose drift has a picture, the furthest ones."""


class RunReport(Record):
    """What a report tells; every part that the run did not reach is absent."""

    run_id: str
    pipeline: str
    use_case: str | None
    engine: str
    parameters: dict[str, str]
    started: dt.datetime
    seconds: float
    state: Literal["succeeded", "gate_missed", "failed", "killed"]
    outcome: str
    """Sentence that says how the run ended."""
    steps: list[StepRecord]
    edges: list[tuple[str, str]]
    """Pairs of steps of which the second waits for the first."""
    data: DataVersion | None = None
    checks: Checks | None = None
    features: FeatureSet | None = None
    search: Search | None = None
    evaluation: Evaluation | None = None
    passport: Passport | None = None
    scored: Scored | None = None
    monitored: Monitored | None = None
    endpoint: str | None = None
    links: dict[str, str] = {}


def render(run: RunReport) -> str:
    """Return the report as one self-contained HTML document."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.4g}"
    environment.filters["size"] = lambda value: f"{value / 1024**2:.2f} MiB"
    pictures: dict[str, Callable[[], str]] = {"dag": lambda: charts.dag(_by_task(run.steps), run.edges)}
    search, evaluation = run.search, run.evaluation
    if search is not None and any(search.metric in trial.metrics for trial in search.trials):
        pictures["search"] = lambda: charts.parallel_coordinates(search)
    figures: list[tuple[str, Callable[[], str]]] = []
    if evaluation is not None:
        if evaluation.confusion is not None:
            figures.append(("Confusion matrix", functools.partial(charts.confusion, evaluation.confusion)))
        figures += [(picture.title, functools.partial(charts.curve, picture)) for picture in evaluation.curves]
        telling = next((name for name in evaluation.headlines if name in evaluation.metrics), None)
        if telling is not None and any(telling in item.metrics for item in evaluation.slices):
            title = f"{evaluation.titles.get(telling, telling)} by slice; dashed: all rows"
            figures.append((title, functools.partial(charts.slices, evaluation, telling)))
        if evaluation.importance:
            figures.append(("Feature importance by gain", functools.partial(charts.importance, evaluation)))
    columns = run.monitored.drift[:DRAWN_COLUMNS] if run.monitored is not None else []
    spreads = [(f"{one.column}: {one.distance:.2f}", functools.partial(charts.drift, one)) for one in columns]
    # matplotlib escapes what it writes into the SVG.
    drawn = {name: Markup(picture()) for name, picture in pictures.items()}  # noqa: S704
    panels, drift = (
        [(title, Markup(picture())) for title, picture in pictures_of]  # noqa: S704
        for pictures_of in (figures, spreads)
    )
    longest = max([step.seconds for step in run.steps] or [0.0]) or 1.0
    return environment.get_template(TEMPLATE).render(
        run=run,
        pictures=drawn,
        figures=panels,
        drift=drift,
        trials=_best_first(search) if search else [],
        longest=longest,
        colours=charts.COLOURS,
        passport=_flat(run.passport),
    )


def _best_first(search: Search) -> list[Trial]:
    """Return the trials from the best to the worst; those without the metric are the last."""
    sign = 1 if search.mode == "min" else -1
    return sorted(search.trials, key=lambda trial: sign * trial.metrics.get(search.metric, sign * math.inf))


_WORST = ("failed", "killed", "running", "pending", "succeeded", "cached", "skipped")


def _by_task(steps: list[StepRecord]) -> list[StepRecord]:
    """Return one step for each task of the pipeline: how its executions ended together, and their time in all."""
    tasks: dict[str, list[StepRecord]] = {}
    for step in steps:
        tasks.setdefault(step.task, []).append(step)
    return [
        StepRecord(
            name=task,
            state=min((step.state for step in executions), key=_WORST.index),
            seconds=sum(step.seconds for step in executions),
        )
        for task, executions in tasks.items()
    ]


def _flat(passport: Passport | None) -> list[tuple[str, str]]:
    """Return the passport's fields as text, nested ones with a dotted name."""
    if passport is None:
        return []
    rows: list[tuple[str, str]] = []
    for name, value in passport.model_dump(mode="json", exclude={"gates", "features"}).items():
        if isinstance(value, dict):
            rows += [(f"{name}.{key}", str(item)) for key, item in value.items() if not isinstance(item, list)]
        else:
            rows.append((name, str(value)))
    return rows

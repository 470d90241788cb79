"""The `costs` command: what runs on the cluster cost, summed."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_of_running_stack
from shopfloor.cli.options import JsonOption, UseCaseOption, span_of


class By(StrEnum):
    """What costs are summed by."""

    team = "team"
    use_case = "use-case"
    version = "version"
    run = "run"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("costs")(costs)


def costs(
    context: typer.Context,
    by: Annotated[By, typer.Option(help="What to sum by.")] = By.team,
    use_case: UseCaseOption = None,
    since: Annotated[
        str | None, typer.Option(help="Only runs that began so long ago at most, e.g. 30d; all where none is given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sum what the runs on the cluster cost that you may see, by the price table of the profile."""
    from shopfloor.flows import costs as counting

    settings = settings_of_running_stack(context, "mlflow")
    start = dt.datetime.now(dt.UTC) - span_of(since) if since else None
    result = counting.summary(settings, by.value, use_case, start)
    if as_json:
        render.emit_json(counting.Costs, result)
        return
    if not settings.cluster.prices:
        render.progress("The profile has no price table (cluster.prices): only hours are counted.")
    if result.total.unpriced:
        render.progress(f"The price table has no flavor {', '.join(result.total.unpriced)}: it counts as nothing.")
    if result.total.uncounted:
        render.progress(f"Nobody counted what these steps had: {', '.join(result.total.uncounted)}.")
    rows = [
        (
            line.name,
            line.runs,
            f"{line.cost.amount:.2f} {line.cost.currency}",
            _hours(line.cost.gpu_seconds),
            _hours(line.cost.cpu_seconds),
        )
        for line in result.lines
    ]
    render.emit_table((by.value, "runs", "cost", "GPU-hours", "CPU-hours"), rows)
    render.out.print(f"{result.total.amount:.2f} {result.total.currency} in all.", markup=False)


def _hours(seconds: dict[str, float]) -> str:
    return ", ".join(f"{flavor} {amount / 3600:.2f}" for flavor, amount in sorted(seconds.items()))

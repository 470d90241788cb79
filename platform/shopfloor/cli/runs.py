"""Commands that look at runs: list, show, logs."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated, Any

import typer

from shopfloor.cli import render

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
RunId = Annotated[str, typer.Argument(help="Id of the run or its beginning; `latest` for the newest.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    runs = typer.Typer(help="Look at runs; MLflow's own page shows the same.", no_args_is_help=True)
    runs.command("list")(list_)
    runs.command("show")(show)
    runs.command("logs")(logs)
    app.add_typer(runs, name="runs")


def list_(
    context: typer.Context,
    use_case: Annotated[str | None, typer.Option(help="Only runs of this use case.")] = None,
    limit: Annotated[int, typer.Option(help="How many, the newest first.", min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the newest runs."""
    from shopfloor import tracking

    client = _client(context)
    runs = [_summary(run) for run in tracking.list_runs(client, use_case, limit)]
    if as_json:
        render.emit_json({"runs": runs})
        return
    columns = ("run_id", "pipeline", "use_case", "engine", "state", "started", "seconds")
    render.emit_table(columns, [[run[column] for column in columns] for run in runs])


def show(context: typer.Context, run_id: RunId, as_json: JsonOption = False) -> None:
    """Show a run: outcome, parameters, metrics, steps."""
    from shopfloor import tracking

    client = _client(context)
    run = tracking.find_run(client, run_id)
    steps = tracking.steps_of(client, run)
    if as_json:
        render.emit_json(
            {
                **_summary(run),
                "outcome": run.data.tags.get(tracking.OUTCOME, ""),
                "parameters": run.data.params,
                "metrics": run.data.metrics,
                "steps": [step.model_dump() for step in steps],
            }
        )
        return
    for name, value in _summary(run).items():
        render.out.print(f"{name:<10}{value}", markup=False)
    render.out.print(run.data.tags.get(tracking.OUTCOME, ""), markup=False)
    render.emit_table(("parameter", "value"), sorted(run.data.params.items()))
    render.emit_table(("metric", "value"), [(name, f"{value:.6g}") for name, value in sorted(run.data.metrics.items())])
    render.emit_table(
        ("step", "state", "seconds", "error"), [(s.name, s.state, f"{s.seconds:.1f}", s.error) for s in steps]
    )


def logs(
    context: typer.Context,
    run_id: RunId,
    step: Annotated[str | None, typer.Argument(help="One step; all of them where none is named.")] = None,
) -> None:
    """Print what the steps of a run printed."""
    import tempfile

    from shopfloor import tracking
    from shopfloor.errors import NotFoundError

    client = _client(context)
    steps = tracking.steps_of(client, tracking.find_run(client, run_id))
    wanted = [record for record in steps if step in {None, record.name}]
    if not wanted:
        known = ", ".join(record.name for record in steps)
        raise NotFoundError(f"Run {run_id!r} has no step {step!r}.", f"It has {known}.")
    for record in wanted:
        names = [item.path for item in client.list_artifacts(record.run_id)]
        if f"{record.name}.log" not in names:
            continue
        if step is None:
            render.out.print(f"--- {record.name}", markup=False)
        with tempfile.TemporaryDirectory() as directory:
            file = client.download_artifacts(record.run_id, f"{record.name}.log", directory)
            typer.echo(Path(file).read_text(encoding="utf-8", errors="replace"), nl=False)


def _client(context: typer.Context) -> Any:
    from shopfloor import tracking
    from shopfloor.cli.main import settings_from

    client = tracking.connect(settings_from(context))
    tracking.close_dead_runs(client)
    return client


def _summary(run: Any) -> dict[str, Any]:
    from shopfloor import tracking

    tags = run.data.tags
    started = dt.datetime.fromtimestamp(run.info.start_time / 1000, dt.UTC)
    seconds = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
    return {
        "run_id": run.info.run_id,
        "pipeline": tags.get(tracking.PIPELINE, ""),
        "use_case": tags.get(tracking.USE_CASE, ""),
        "engine": tags.get(tracking.ENGINE, ""),
        "state": tags.get(tracking.STATE, ""),
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
    }

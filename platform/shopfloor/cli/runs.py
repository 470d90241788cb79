"""Commands for recorded runs: list, show, logs, stop, retry, resume."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_of_running_stack
from shopfloor.cli.options import JsonOption, MaxCostOption, RunArgument, UseCaseOption, WatchOption, YesOption

if TYPE_CHECKING:
    from shopfloor.cli.documents import Run
    from shopfloor.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    runs = typer.Typer(help="Look at runs and steer them; MLflow's own page shows the same.", no_args_is_help=True)
    runs.command("list")(list_)
    runs.command("show")(show)
    runs.command("logs")(logs)
    runs.command("stop")(stop)
    runs.command("retry")(retry)
    runs.command("resume")(resume)
    app.add_typer(runs, name="runs")


def list_(
    context: typer.Context,
    use_case: UseCaseOption = None,
    limit: Annotated[int, typer.Option(help="How many, the newest first.", min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the newest runs."""
    from shopfloor.cli.documents import Runs
    from shopfloor.runs import index as run_records

    _, client = _connect(context)
    runs = [_summary(run) for run in run_records.list_runs(client, use_case, limit)]
    if as_json:
        render.emit_json(Runs, Runs(runs=runs))
        return
    columns = ("run_id", "pipeline", "use_case", "engine", "state", "started", "seconds")
    render.emit_table(columns, [[getattr(run, column) for column in columns] for run in runs])


def show(context: typer.Context, run_id: RunArgument, as_json: JsonOption = False) -> None:
    """Show a run: outcome, parameters, metrics, steps."""
    from shopfloor.runs import index as run_records

    settings, client = _connect(context)
    show_run(settings, client, run_records.find_run(client, run_id), as_json)


def show_run(settings: Settings, client: Any, run: Any, as_json: bool) -> None:
    """Print what is recorded of a run, and what its engine knows of it."""
    from shopfloor.cli.documents import RunDetails
    from shopfloor.flows import runs as control
    from shopfloor.runs import index as run_records

    steps = control.steps(settings, client, run)
    queue = control.queue(settings, run)
    if as_json:
        details = RunDetails(
            **vars(_summary(run)),
            engine_run=run.data.tags.get(run_records.ENGINE_RUN),
            outcome=run.data.tags.get(run_records.OUTCOME, ""),
            parameters=run.data.params,
            metrics=run.data.metrics,
            steps=steps,
            queue=queue,
        )
        render.emit_json(RunDetails, details)
        return
    for name, value in _summary(run):
        render.out.print(f"{name:<10}{value}", markup=False)
    render.out.print(run.data.tags.get(run_records.OUTCOME, ""), markup=False)
    render.emit_table(("parameter", "value"), sorted(run.data.params.items()))
    render.emit_table(("metric", "value"), [(name, f"{value:.6g}") for name, value in sorted(run.data.metrics.items())])
    render.emit_table(
        ("step", "state", "seconds", "error"), [(s.name, s.state, f"{s.seconds:.1f}", s.why) for s in steps]
    )
    if queue is not None:
        from shopfloor.cli.queue import show_run_queue

        show_run_queue(queue)


def logs(
    context: typer.Context,
    run_id: RunArgument,
    step: Annotated[str | None, typer.Argument(help="One step; all of them where none is named.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print what comes, until the run ends.")] = False,
) -> None:
    """Print what the steps of a run printed."""
    from shopfloor.flows import runs as control
    from shopfloor.runs import index as run_records

    settings, client = _connect(context)
    for line in control.logs(settings, client, run_records.find_run(client, run_id), step, follow):
        typer.echo(render.printable(line))


def stop(context: typer.Context, run_id: RunArgument, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """End a run that goes on; what it finished stays finished."""
    from shopfloor.cli.documents import RunStopped
    from shopfloor.flows import runs as control
    from shopfloor.runs import index as run_records

    settings, client = _connect(context)
    run = run_records.find_run(client, run_id)
    render.confirm(f"Run {run.info.run_id} will end.", yes)
    with render.activity(f"Stopping {run.info.run_id}"):
        state = control.stop(settings, client, run)
    if as_json:
        render.emit_json(RunStopped, RunStopped(run_id=run.info.run_id, state=state))
    else:
        render.progress(f"Run {run.info.run_id} has ended: {state}.")


def retry(context: typer.Context, run_id: RunArgument, watch: WatchOption = False, as_json: JsonOption = False) -> None:
    """Let a run that failed go on, with the very same parameters and in the same record."""
    from shopfloor.cli.submit import LiveView, show_outcome
    from shopfloor.flows import runs as control
    from shopfloor.runs import index as run_records

    settings, client = _connect(context)
    run = run_records.find_run(client, run_id)
    with LiveView() as view:
        outcome = control.retry(settings, client, run, view)
    show_outcome(settings, outcome, watch, as_json)


def resume(
    context: typer.Context,
    run_id: RunArgument,
    watch: WatchOption = False,
    max_cost: MaxCostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit what a run was asked for once more: only what changed since, and what follows it, runs."""
    from shopfloor.cli.submit import LiveView, show_outcome
    from shopfloor.flows import runs as control
    from shopfloor.runs import index as run_records

    settings, client = _connect(context)
    run = run_records.find_run(client, run_id)
    with LiveView() as view:
        outcome = control.resume(settings, run, view, max_cost)
    show_outcome(settings, outcome, watch, as_json)


def _connect(context: typer.Context) -> tuple[Settings, Any]:
    """Return the settings and a client of MLflow, the records of dead runs closed; a run is seen without Ray too."""
    from shopfloor.flows import runs as control
    from shopfloor.runs import recorder as tracking

    settings = settings_of_running_stack(context, "mlflow")
    client = tracking.connect(settings)
    control.refresh(settings, client)
    return settings, client


def _summary(run: Any) -> Run:
    from shopfloor.cli.documents import Run
    from shopfloor.runs import index as run_records

    tags = run.data.tags
    started = dt.datetime.fromtimestamp(run.info.start_time / 1000, dt.UTC)
    seconds = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
    return Run(
        run_id=run.info.run_id,
        pipeline=tags.get(run_records.PIPELINE, ""),
        use_case=tags.get(run_records.USE_CASE, ""),
        engine=tags.get(run_records.ENGINE, ""),
        state=tags.get(run_records.STATE, ""),
        started=started.replace(microsecond=0),
        seconds=seconds,
    )

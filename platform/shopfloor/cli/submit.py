"""The `submit` command: run a pipeline, show it live, say how it ended."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from shopfloor.cli import render

_MARKS = {
    "pending": "[dim]·[/]",
    "cached": "[cyan]=[/]",
    "succeeded": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "killed": "[red]✗[/]",
    "skipped": "[dim]-[/]",
}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("submit")(submit)


def submit(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="Pipeline file, e.g. pipelines/training.py.")],
    use_case: Annotated[str | None, typer.Option(help="A folder in pipelines/ that holds a use_case.yaml.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="A pipeline parameter as key=value; repeatable.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step, also those already done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON document.")] = False,
) -> None:
    """Run a pipeline from the data to its outcome; a run that stopped goes on where it stopped.

    Exit code 1 when a step failed or a gate was missed.
    """
    from shopfloor.cli.main import settings_from
    from shopfloor.flows.submission import submit as run

    settings = settings_from(context)
    with LiveView() as view:
        outcome = run(settings, file, use_case, parameter or [], view, use_cache=not no_cache)
    if as_json:
        render.emit_json(outcome)
    else:
        _show(outcome)
    if outcome.state != "succeeded":
        raise typer.Exit(1)


class LiveView:
    """Draws the steps of a run on stderr: a table that moves on a terminal, a line for each change elsewhere."""

    def __init__(self) -> None:
        """Draw nothing yet."""
        self._steps: dict[str, tuple[str, float, float]] = {}
        self._live: Live | None = None

    def __enter__(self) -> LiveView:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last picture standing."""
        if self._live is not None:
            self._live.stop()

    def begin(self, run_url: str, compiled: Any) -> None:
        """Show all steps as pending."""
        render.progress(f"Run {run_url}")
        self._steps = {step: ("pending", 0.0, 0.0) for step in compiled.steps}
        if render.err.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=render.err, refresh_per_second=8, redirect_stdout=False
            )
            self._live.start()

    def step(self, step: str, state: str, seconds: float, error: str = "") -> None:
        """Show a step's new state."""
        self._steps[step] = (state, seconds, time.monotonic())
        if self._live is None:
            time_text = f" {seconds:.1f} s" if state not in {"running", "skipped"} else ""
            render.progress(f"{step}: {state}{time_text}" + (f": {error}" if error else ""))

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for step, (state, seconds, since) in self._steps.items():
            mark: Any = Spinner("dots") if state == "running" else _MARKS.get(state, "")
            shown = time.monotonic() - since if state == "running" else seconds
            table.add_row(mark, step, state, "" if state in {"pending", "skipped"} else f"{shown:.1f} s")
        return table


def _show(outcome: Any) -> None:
    render.out.print()
    render.out.print(outcome.message, markup=False, style="bold" if outcome.state == "succeeded" else "bold red")
    for name in ("roc_auc", "pr_auc", "log_loss", "calibration_error"):
        if name in outcome.metrics:
            text = f"  {name:<18}{outcome.metrics[name]:.4f}"
            if name in outcome.champion_metrics:
                text += f"   champion {outcome.champion}: {outcome.champion_metrics[name]:.4f}"
            render.out.print(text)
    for name, link in outcome.links.items():
        render.out.print(f"  {name:<18}{link}", markup=False)
    if outcome.endpoint:
        render.out.print(f"  {'endpoint':<18}{outcome.endpoint}", markup=False)
        example = _example(outcome)
        if example:
            render.out.print()
            render.out.print(
                f"curl -s {outcome.endpoint} -H 'Content-Type: application/json' -d '{example}'", markup=False
            )


def _example(outcome: Any) -> str | None:
    """Return the example that the endpoint's own OpenAPI document gives."""
    import requests

    try:
        document = requests.get(outcome.endpoint.replace("/predict", "/openapi.json"), timeout=5).json()
        path = next(item for name, item in document["paths"].items() if name.endswith("/predict"))
        content = path["post"]["requestBody"]["content"]["application/json"]
        example = content.get("example") or next(iter(content["examples"].values()))["value"]
        return json.dumps(example)
    except (requests.RequestException, ValueError, KeyError, StopIteration):
        return None

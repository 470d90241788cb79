"""The `submit` command: run a pipeline, show it live, say how it ended."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from shopfloor.cli import render
from shopfloor.cli.context import settings_from, settings_of_running_stack
from shopfloor.cli.options import (
    CronOption,
    EngineName,
    FileArgument,
    FromOption,
    FunctionOption,
    JsonOption,
    MaxCostOption,
    NoCacheOption,
    ParameterOption,
    UseCaseOption,
    WatchOption,
)

if TYPE_CHECKING:
    from shopfloor.flows.dispatch import Submitted
    from shopfloor.flows.submit import Outcome
    from shopfloor.settings import Settings

_MARKS = {
    "pending": "[dim]·[/]",
    "cached": "[cyan]=[/]",
    "succeeded": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "killed": "[red]✗[/]",
    "skipped": "[dim]-[/]",
}


_COUNT = re.compile(r"[a-z]+ \d+/\d+ |waiting for |going on$")
_WAITING = "waiting for "
_LOOK_EVERY_S = 1.0
_TAIL_BYTES = 4096
GATE_MISSED = 3
"""Exit code of a run that did its work and whose model is not good enough."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("submit")(submit)


def submit(
    context: typer.Context,
    file: FileArgument,
    use_case: UseCaseOption = None,
    parameter: ParameterOption = None,
    engine: Annotated[
        EngineName | None, typer.Option(help="What runs it; the profile says what, where this does not.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Dashboard of the Ray cluster, http://host:port; for --engine ray.")
    ] = None,
    watch: WatchOption = False,
    cron: CronOption = None,
    no_cache: NoCacheOption = False,
    from_step: FromOption = None,
    function: FunctionOption = None,
    max_cost: MaxCostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a pipeline from the data to its outcome; a run that stopped goes on where it stopped.

    The local engine runs it here and now. The others take it, and the command comes back at once.
    Exit code 1 when a step failed, 3 when a gate was missed.
    """
    from shopfloor.errors import ServiceError
    from shopfloor.flows import dispatch
    from shopfloor.flows.submission import Submission, read

    settings = settings_from(context)
    name = engine.value if engine else settings.default_engine
    request = Submission(
        file=file,
        use_case=use_case,
        given=parameter or [],
        use_cache=not no_cache,
        from_step=from_step,
        function=function,
        max_cost=max_cost,
    )
    if ray_address is not None:
        settings = with_ray_address(settings, name, ray_address)
    if cron is None and name in {"local", "ray"}:
        try:
            settings_of_running_stack(context)
        except ServiceError:
            # What is wrong with the request is said first: with the stack up it would still be.
            read(settings, file, use_case, request.given, function)
            raise
    with LiveView() as view:
        outcome = dispatch.start(settings, name, request, view, cron)
    show_outcome(settings, outcome, watch, as_json)


def with_ray_address(settings: Settings, engine: str, address: str) -> Settings:
    """Return the settings with the Ray cluster whose dashboard is at `address`.

    Raises:
        UsageError: It is no such address, it has a secret in it, or the engine is not `ray`.
    """
    from shopfloor.errors import UsageError

    if engine != "ray":
        raise UsageError("--ray-address is for --engine ray.", "Add --engine ray, or leave it out.")
    settings = settings.with_ray_dashboard(address)
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"{address!r} is not the address of a Ray dashboard.", "Write --ray-address http://host:8265.")
    return settings


def show_outcome(settings: Settings, outcome: Outcome | Submitted, watch: bool, as_json: bool) -> None:
    """Print how a run ended, or which engine took it; the exit code is `exit_code`'s."""
    from shopfloor.flows.dispatch import Submitted
    from shopfloor.flows.submit import Outcome

    if isinstance(outcome, Submitted):
        for note in outcome.notes:
            render.progress(note)
        if watch and outcome.run_id is not None:
            _watch(settings, outcome, outcome.run_id, as_json)
        elif as_json:
            render.emit_json(Submitted, outcome)
        else:
            _show_submitted(outcome)
        return
    if as_json:
        render.emit_json(Outcome, outcome)
    else:
        _show(settings, outcome)
    if outcome.state != "succeeded":
        raise typer.Exit(exit_code(outcome.state))


def exit_code(state: str) -> int:
    """Return the exit code for a run that ended in a state: 0, 1 where it failed, 3 where it missed a gate."""
    return {"succeeded": 0, "gate_missed": GATE_MISSED}.get(state, 1)


def _show_submitted(outcome: Submitted) -> None:
    render.out.print(outcome.message, markup=False)
    for name, link in outcome.links.items():
        render.out.print(f"  {name:<18}{link}", markup=False)
    if outcome.queue is not None:
        from shopfloor.cli.queue import show_queue

        render.out.print()
        show_queue(outcome.queue)
    if outcome.run_id is not None:
        render.progress(f"Follow it: shopfloor runs logs {outcome.run_id} --follow")


def _watch(settings: Settings, outcome: Submitted, run_id: str, as_json: bool) -> None:
    """Follow a run's log on stderr until it ends, and print how; Ctrl-C leaves the run alone."""
    from shopfloor.cli.runs import show_run
    from shopfloor.flows import runs as control
    from shopfloor.runs import index as run_records
    from shopfloor.runs import recorder as tracking

    client = tracking.connect(settings)
    render.progress(outcome.message)
    try:
        for line in control.watch(settings, client, run_id):
            render.progress(line)
    except KeyboardInterrupt:
        render.progress(f"The run goes on. To stop it: shopfloor runs stop {run_id}")
        raise
    run = client.get_run(run_id)
    show_run(settings, client, run, as_json)
    if code := exit_code(run.data.tags.get(run_records.STATE, "")):
        raise typer.Exit(code)


class LiveView:
    """Draws the steps of a run on stderr: a table that moves on a terminal, a line for each change elsewhere."""

    def __init__(self) -> None:
        """Draw nothing yet."""
        self._steps: dict[str, tuple[str, float, float]] = {}
        self._live: Live | None = None
        self._logs = Path()
        self._over = threading.Event()

    def __enter__(self) -> LiveView:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last picture standing."""
        self._over.set()
        if self._live is not None:
            self._live.stop()

    def begin(self, run_url: str, compiled: Any, logs: Path) -> None:
        """Show all steps as pending."""
        render.progress(f"Run {run_url}")
        self._logs = logs
        self._steps = {step: ("pending", 0.0, 0.0) for step in compiled.steps}
        if render.err.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=render.err, refresh_per_second=8, redirect_stdout=False
            )
            self._live.start()
        else:
            threading.Thread(target=self._tell_waits, name="waits", daemon=True).start()

    def step(self, step: str, state: str, seconds: float, error: str = "") -> None:
        """Show a step's new state."""
        self._steps[step] = (state, seconds, time.monotonic())
        if self._live is None:
            time_text = f" {seconds:.1f} s" if state not in {"running", "skipped"} else ""
            render.progress(f"{step}: {state}{time_text}" + (f": {error}" if error else ""))

    def _tell_waits(self) -> None:
        """Print what a step waits for, once each time that it waits for something else."""
        told: dict[str, str] = {}
        while not self._over.wait(_LOOK_EVERY_S):
            for step in [step for step, (state, *_) in self._steps.copy().items() if state == "running"]:
                line = latest_count(self._logs / f"{step}.log")
                if line.startswith(_WAITING) and line != told.get(step):
                    render.progress(f"{step}: {line}")
                told[step] = line

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for step, (state, seconds, since) in self._steps.items():
            mark: Any = Spinner("dots") if state == "running" else _MARKS.get(state, "")
            elapsed_s = time.monotonic() - since if state == "running" else seconds
            seconds_text = "" if state in {"pending", "skipped"} else f"{elapsed_s:.1f} s"
            count = latest_count(self._logs / f"{step}.log") if state == "running" else ""
            table.add_row(mark, step, state, seconds_text, Text(render.printable(count), style="dim"))
        return table


def latest_count(log: Path) -> str:
    """Return the last line of a log that tells how far its step is, as `trial 3/16 ...` does, or what it waits for."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if _COUNT.match(line)), "")


def _show(settings: Settings, outcome: Any) -> None:
    render.out.print()
    render.out.print(outcome.message, markup=False, style="bold" if outcome.state == "succeeded" else "bold red")
    from shopfloor.errors import ShopfloorError
    from shopfloor.flows.asking import example
    from shopfloor.settings import NO_TOKENS

    for name in outcome.headlines:
        if name in outcome.metrics:
            text = f"  {name:<18}{outcome.metrics[name]:.4f}"
            if name in outcome.champion_metrics:
                text += f"   champion {outcome.champion}: {outcome.champion_metrics[name]:.4f}"
            render.out.print(text)
    for name, link in outcome.links.items():
        render.out.print(f"  {name:<18}{link}", markup=False)
    if outcome.endpoint:
        render.out.print(f"  {'endpoint':<18}{outcome.endpoint}", markup=False)
        with contextlib.suppress(ShopfloorError):  # a model of tensors has none
            row = json.dumps(example(outcome.endpoint))
            render.out.print()
            tokens = settings.serve_tokens_file not in {None, NO_TOKENS}
            token = ' -H "Authorization: Bearer $SERVE_TOKEN"' if tokens else ""
            command = shlex.join(["curl", "-s", outcome.endpoint, "-H", "Content-Type: application/json", "-d", row])
            render.out.print(command + token, markup=False, soft_wrap=True)

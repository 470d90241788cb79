"""The `plan` command: what a submit would run, and why."""

from __future__ import annotations

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import (
    FileArgument,
    FromOption,
    FunctionOption,
    JsonOption,
    NoCacheOption,
    ParameterOption,
    UseCaseOption,
)
from shopfloor.cli.queue import show_queue

HASH_LENGTH = 64
SHOWN = 40
"""Characters of a value in a line."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("plan")(plan)


def plan(
    context: typer.Context,
    file: FileArgument,
    use_case: UseCaseOption = None,
    parameter: ParameterOption = None,
    no_cache: NoCacheOption = False,
    from_step: FromOption = None,
    function: FunctionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show for each step whether `submit` would run or reuse it, and what changed; runs nothing."""
    from shopfloor.flows import plan as planning

    preview = planning.plan(settings_from(context), file, use_case, parameter or [], not no_cache, from_step, function)
    if as_json:
        render.emit_json(planning.Plan, preview)
        return
    for note in preview.notes:
        render.progress(note)
    rows: list[tuple[str, str, str]] = []
    for step in preview.steps:
        rows.append((step.step, step.action, step.why))
        rows += [("", "", f"  {one.part}: {_short(one.old)} -> {_short(one.new)}") for one in step.changes]
    render.emit_table(("step", "action", "why"), rows)
    if preview.queue is not None:
        render.out.print()
        show_queue(preview.queue)


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value[:8] if len(value) == HASH_LENGTH else value[:SHOWN]

"""The command that makes a use case of a file of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import JsonOption, TaskName, use_case_name


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("new")(new)


def new(
    context: typer.Context,
    use_case: Annotated[str, typer.Argument(help="Name of the use case.", callback=use_case_name)],
    file: Annotated[Path, typer.Option("--from", help="A CSV, JSON lines or parquet file, one row a line.")],
    target: Annotated[str, typer.Option("--target", help="Column that is to be predicted.")],
    task: Annotated[TaskName | None, typer.Option(help="What it is; without it the column says it.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Column with the time of a row: the newest rows test what older ones taught.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", help="Column that the model does not get; repeatable.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="Column that may say the target by itself; repeatable.")
    ] = None,
    leave_out_unlabelled: Annotated[
        bool, typer.Option("--leave-out-unlabelled", help="Leave out rows without a target; they are counted.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a use case of a file of rows: its data under DVC, and a folder in pipelines/ that runs as it is.

    It says what it decided and why, and writes over nothing.
    """
    from shopfloor.flows import new as beginnings

    made = beginnings.new(
        settings_from(context),
        use_case,
        file,
        target,
        task.value if task else None,
        time,
        leave_out or (),
        keep or (),
        leave_out_unlabelled,
        render.progress,
    )
    if as_json:
        render.emit_json(beginnings.NewUseCase, made)
        return
    lines = [
        ("rows", f"{made.rows:,} ({made.read_as})"),
        *([("left out", f"{made.unlabelled:,} rows without a target")] if made.unlabelled else []),
        ("task", f"{made.task}: {made.why_task}"),
        ("split", made.split),
        ("inputs", ", ".join(f"{name} ({kind})" for name, kind in made.inputs.items())),
        *(("left out", f"{name}: {why}") for name, why in made.left_out.items()),
        *(("gate", f"{metric} {bound}") for metric, bound in made.gates.items()),
        *(("wrote", one) for one in made.files),
        ("next", f"shopfloor submit pipelines/training.py --use-case {made.use_case}"),
    ]
    for title, text in lines:
        render.out.print(f"{title:<10}{text}", markup=False)

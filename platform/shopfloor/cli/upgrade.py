"""The command that brings a stack to other versions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.backup import KeyOption, StoreOption, in_words
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import JsonOption, YesOption, span_of

if TYPE_CHECKING:
    from shopfloor.flows.changeover import Part


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("upgrade")(upgrade)


def upgrade(
    context: typer.Context,
    store: StoreOption,
    key_file: KeyOption = None,
    image: Annotated[
        str, typer.Option(help="Platform image of a stack of containers; default: the one that compose's files name.")
    ] = "",
    wait: Annotated[str, typer.Option(help="Time that runs which go on may take to end, e.g. 30m.")] = "0s",
    rehearse: Annotated[bool, typer.Option(help="Try it first on a copy beside the live stack.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the databases and services to the versions that are installed, or to an image; or put everything back.

    Examines, backs up, rehearses beside the live stack, waits for runs that go on, stops MLflow, backs up again,
    migrates, starts, and asks each champion its golden requests. Where something fails, the databases are put back from
    the backup, and the exit code is 1. Cut short, the same command goes on.
    """
    from shopfloor.backup.sealing import read_key
    from shopfloor.errors import UsageError
    from shopfloor.flows import upgrade as flow
    from shopfloor.flows.backup import IMAGE

    settings = settings_from(context)
    if settings.in_containers and IMAGE in os.environ:
        raise UsageError(f"{IMAGE} is set in this shell, where it goes before compose's .env.", "Use --image instead.")
    wait_s = span_of(wait).total_seconds()
    examination = flow.examine(settings, image)
    if dry_run:
        if as_json:
            render.emit_json(flow.Examination, examination)
            return
        _show(examination.parts)
        for line in [*examination.problems, *(f"{writer} goes on" for writer in examination.writers)]:
            render.progress(line)
        if examination.unfinished:
            render.progress(f"An upgrade was cut short in its stage {examination.unfinished!r}.")
        elif not examination.needed:
            render.progress("There is nothing to do.")
        return
    if examination.needed and not examination.problems:
        render.confirm(f"{_in_words(examination.parts)}.", yes)
    with render.activity("Upgrading") as tell:
        result = flow.upgrade(settings, store, read_key(key_file), tell, image, wait_s, rehearse)
    if as_json:
        render.emit_json(flow.Upgraded, result)
    else:
        _show(result.parts)
        for champion in result.champions:
            render.progress(f"{champion.use_case}/{champion.version} {in_words(champion)}")
    if result.outcome == "nothing to do":
        render.progress("There is nothing to do.")
        return
    render.progress(f"MLflow did not answer for {result.without_mlflow_s:.0f} s. The backup is {result.backup}.")
    if result.problem:
        render.progress(f"Everything was put back: {result.problem}")
        raise typer.Exit(1)


def _show(parts: list[Part]) -> None:
    rows = [(part.name, part.present or "-", part.wanted, "changes" if part.differs() else "") for part in parts]
    render.emit_table(("what", "is", "wanted", ""), rows)


def _in_words(parts: list[Part]) -> str:
    return "; ".join(f"{part.name} will be {part.wanted}" for part in parts if part.differs())

"""Commands that free space: what nobody owns goes into a quarantine, and from there back or away."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import JsonOption, YesOption, span_of

OlderOption = Annotated[str, typer.Option("--older-than", help="Age, e.g. 12h or 7d.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(invoke_without_command=True)
    group.callback()(sweep)
    group.command("list")(list_quarantines)
    group.command("undo")(undo)
    group.command("empty")(empty)
    app.add_typer(group, name="gc")


def sweep(
    context: typer.Context,
    apply: Annotated[bool, typer.Option("--apply", help="Move what nobody owns into a quarantine.")] = False,
    older_than: OlderOption = "7d",
    as_json: JsonOption = False,
) -> None:
    """Show what artifacts, results, checkpoints and data versions take, and who owns them; free what nobody owns."""
    if context.invoked_subcommand:
        return
    from shopfloor.flows import gc as flow

    age = span_of(older_than)
    with render.activity("Asking who owns what"):
        result = flow.sweep(settings_from(context), age, apply)
    if as_json:
        render.emit_json(flow.Sweep, result)
        return
    rows = [
        (share.kind, share.owner or "nobody", share.files, render.megabytes(share.size_bytes))
        for share in result.shares
    ]
    render.emit_table(("what", "owner", "files", "size"), rows)
    for line in result.left_alone:
        render.progress(f"Left alone: {line}")
    if result.quarantine:
        render.progress(
            f"What nobody owned is in a quarantine. To bring it back: shopfloor gc undo {result.quarantine}"
        )
    elif apply:
        render.progress("There is nothing that nobody owns.")
    elif any(not share.owner for share in result.shares):
        render.progress("Nothing was moved; --apply moves what nobody owns into a quarantine.")


def list_quarantines(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show what waits to be deleted, the oldest first."""
    from shopfloor.backup.quarantine import Quarantine
    from shopfloor.flows import gc as flow

    rows = flow.quarantines(settings_from(context))
    if as_json:
        render.emit_json_list(Quarantine, rows)
        return
    now = dt.datetime.now(dt.UTC)
    cells = [
        (row.id, dt.timedelta(seconds=int((now - row.created).total_seconds())), row.files, row.size_bytes)
        for row in rows
    ]
    render.emit_table(
        ("quarantine", "age", "files", "size"), [(*cell[:3], render.megabytes(cell[3])) for cell in cells]
    )


def undo(context: typer.Context, quarantine: Annotated[str, typer.Argument(help="Id of the quarantine.")]) -> None:
    """Bring back what a quarantine holds. Exit code 1 where something new has the name of what it holds."""
    from shopfloor.flows import gc as flow

    stays = flow.undo(settings_from(context), quarantine)
    for name in stays:
        render.progress(f"Stays in the quarantine, as there is a new one: {name}")
    if stays:
        raise typer.Exit(1)


def empty(context: typer.Context, older_than: OlderOption = "7d", yes: YesOption = False) -> None:
    """Delete quarantines of at least this age for good."""
    from shopfloor.flows import gc as flow

    settings, latest = settings_from(context), dt.datetime.now(dt.UTC) - span_of(older_than)
    chosen = [one for one in flow.quarantines(settings) if one.created <= latest]
    if chosen:
        size = render.megabytes(sum(one.size_bytes for one in chosen))
        render.confirm(f"{sum(one.files for one in chosen)} files, {size}, will be deleted for good.", yes)
        flow.empty(settings, chosen)
    render.progress(f"{len(chosen)} quarantines deleted")

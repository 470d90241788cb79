"""Commands for backups of a stack: create, list, verify, prune, restore, drill."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import JsonOption, YesOption

if TYPE_CHECKING:
    from shopfloor.flows.backup import Answers, Restoration

StoreOption = Annotated[
    str,
    typer.Option("--store", help="Directory or s3:// prefix that holds the backups.", envvar="SHOPFLOOR_BACKUP_STORE"),
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key-file", help="File with the key that seals the secrets; or the key in $SHOPFLOOR_BACKUP_KEY."),
]
DumpsOption = Annotated[
    Path | None,
    typer.Option(help="Of a cluster: directory of the dumps that pg_dump wrote, or that pg_restore is to load."),
]
TextfileOption = Annotated[
    Path | None, typer.Option(help="File that gets the numbers for Prometheus's node exporter, e.g. x.prom.")
]
BackupArgument = Annotated[str, typer.Argument(help="Id of the backup or its beginning; `latest` for the newest.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    backup = typer.Typer(help="Copy a stack into a store of backups, and bring it back.", no_args_is_help=True)
    backup.command("create")(create)
    backup.command("list")(list_backups)
    backup.command("verify")(verify)
    backup.command("prune")(prune)
    backup.command("restore")(restore)
    backup.command("drill")(drill)
    app.add_typer(backup, name="backup")


def create(
    context: typer.Context,
    store: StoreOption,
    key_file: KeyOption = None,
    dumps: DumpsOption = None,
    textfile: TextfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy databases, models, artifacts and data into a store; what it has already is not copied again."""
    from shopfloor.backup.create import Created
    from shopfloor.backup.create import create as make
    from shopfloor.backup.sealing import read_key
    from shopfloor.flows import backup as flow

    settings = settings_from(context)
    with render.activity("Making a backup") as tell:
        result = make(settings, store, read_key(key_file), tell, dumps)
    if textfile:
        flow.write_created(textfile, result)
    for line in result.left_out:
        render.progress(f"Not in the backup: {line}")
    if as_json:
        render.emit_json(Created, result)
        return
    size, new = render.megabytes(result.size_bytes), render.megabytes(result.new_bytes)
    render.progress(f"Backup of {result.files} files, {size}, {new} of them new, in {result.seconds:.1f} s")
    typer.echo(result.id)


def list_backups(context: typer.Context, store: StoreOption, as_json: JsonOption = False) -> None:
    """Show the backups of a store, the newest first."""
    from shopfloor.backup.store import Store, Summary

    summaries = Store(settings_from(context), store).summaries()
    if as_json:
        render.emit_json_list(Summary, summaries)
        return
    rows = [
        (
            row.id,
            dt.timedelta(seconds=int(row.age_s)),
            row.files,
            render.megabytes(row.size_bytes),
            *(row.counts.get(name, "-") for name in ("runs", "model_versions", "aliases")),
            "sealed" if row.secrets else "none",
            row.problem,
        )
        for row in summaries
    ]
    render.emit_table(("backup", "age", "files", "size", "runs", "versions", "aliases", "secrets", ""), rows)


def verify(
    context: typer.Context,
    store: StoreOption,
    backup: BackupArgument = "latest",
    textfile: TextfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every file of a backup again. Exit code 1 where one is missing or altered, each of which is named."""
    from shopfloor.backup.store import Store, Verified
    from shopfloor.flows import backup as flow

    with render.activity("Reading the backup"):
        result = Store(settings_from(context), store).verify(backup)
    if textfile:
        flow.write_verified(textfile, result)
    if as_json:
        render.emit_json(Verified, result)
    else:
        for problem in result.problems:
            typer.echo(problem)
        render.progress(f"{result.id}: {result.files} files read, {len(result.problems)} of them missing or altered")
    if result.problems:
        raise typer.Exit(1)


def prune(
    context: typer.Context,
    store: StoreOption,
    keep: Annotated[int, typer.Option(min=1, help="How many whole backups stay, of each stack in the store.")],
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove older backups, and the files that no other backup holds. The newest whole one always stays."""
    from shopfloor.backup.prune import Pruning
    from shopfloor.backup.prune import prune as remove
    from shopfloor.backup.store import Store

    def ask(planned: Pruning) -> None:
        if planned.removed or planned.objects:
            size = render.megabytes(planned.size_bytes)
            names = ", ".join(planned.removed) or "no backup"
            render.confirm(f"This removes {names}, and {planned.objects} files of {size} that no other holds.", yes)

    result = remove(Store(settings_from(context), store), keep, ask)
    if as_json:
        render.emit_json(Pruning, result)
        return
    for backup_id in result.removed:
        typer.echo(backup_id)
    size = render.megabytes(result.size_bytes)
    render.progress(f"{len(result.removed)} backups removed, {size} freed; {len(result.kept)} are kept")


def restore(
    context: typer.Context,
    store: StoreOption,
    backup: BackupArgument = "latest",
    key_file: KeyOption = None,
    dumps: DumpsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a backup back into an empty stack, start it, and ask each champion its golden requests.

    Exit code 1 where one does not answer as it did. With --dumps nothing is started or asked: the files come back into
    a cluster's buckets, and its databases as dumps.
    """
    from shopfloor.backup.sealing import read_key
    from shopfloor.flows import backup as flow
    from shopfloor.settings import load_settings

    settings = load_settings(context.obj.profile)  # its secrets may come with the backup
    with render.activity("Restoring") as tell:
        if dumps is not None:
            render.progress(f"{flow.restore_files(settings, store, backup, dumps, tell)} is back but for its databases")
            return
        result = flow.restore(settings, store, backup, read_key(key_file), tell)
    _show(result, as_json)


def drill(
    context: typer.Context,
    store: StoreOption,
    backup: BackupArgument = "latest",
    key_file: KeyOption = None,
    textfile: TextfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rehearse a restore beside the live stack: how old the data are, how long it takes, what the champions answer.

    Exit code 1 where one does not answer as it did.
    """
    from shopfloor.backup.sealing import read_key
    from shopfloor.errors import ConflictError, ShopfloorError
    from shopfloor.flows import backup as flow
    from shopfloor.settings import load_settings

    try:
        with render.activity("Rehearsing a restore") as tell:
            result = flow.drill(load_settings(context.obj.profile), store, backup, read_key(key_file), tell)
    except ShopfloorError as error:
        if textfile and not isinstance(error, ConflictError):  # another one is at work, and tells
            flow.write_metrics(textfile, None)
        raise
    if textfile:
        flow.write_metrics(textfile, result)
    _show(result, as_json)


def _show(result: Restoration, as_json: bool) -> None:
    """Show what a restore came to; exit code 1 where a champion does not answer as it did."""
    if as_json:
        from shopfloor.flows.backup import Restoration

        render.emit_json(Restoration, result)
    else:
        for champion in result.champions:
            name = f"{champion.use_case}/{champion.version}".rstrip("/")
            typer.echo(f"{name}\t{in_words(champion)}")
        if not result.champions:
            render.progress("The backup has no champion of this project to ask.")
        age = dt.timedelta(seconds=int(result.age_s))
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in result.counts.items())
        render.progress(f"{result.id}: {result.files} files, {render.megabytes(result.size_bytes)}, {counts}")
        render.progress(f"The data were {age} old; restored in {result.seconds:.0f} s.")
        for command in result.next:
            render.progress(f"To fill the online store again: {command}")
    if not result.succeeded:
        raise typer.Exit(1)


def in_words(champion: Answers) -> str:
    """Return how a champion answered its golden requests."""
    if champion.problem:
        return champion.problem
    if champion.largest_difference is None:
        return "answers; it was registered without golden requests"
    exactly = "exactly" if champion.largest_difference == 0 else f"within {champion.largest_difference:.1g}"
    return f"answers its {champion.rows} golden requests {exactly} as offline"

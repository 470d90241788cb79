"""Commands for backups of a stack: create, list, verify."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import JsonOption

StoreOption = Annotated[
    str,
    typer.Option("--store", help="Directory or s3:// prefix that holds the backups.", envvar="SHOPFLOOR_BACKUP_STORE"),
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key-file", help="File with the key that seals the secrets; or the key in $SHOPFLOOR_BACKUP_KEY."),
]
BackupArgument = Annotated[str, typer.Argument(help="Id of the backup or its beginning; `latest` for the newest.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    backup = typer.Typer(help="Copy a stack into a store of backups, and bring it back.", no_args_is_help=True)
    backup.command("create")(create)
    backup.command("list")(list_backups)
    backup.command("verify")(verify)
    app.add_typer(backup, name="backup")


def create(context: typer.Context, store: StoreOption, key_file: KeyOption = None, as_json: JsonOption = False) -> None:
    """Copy databases, models, artifacts and data into a store; what it has already is not copied again."""
    from shopfloor.backup.create import Created
    from shopfloor.backup.create import create as make
    from shopfloor.backup.sealing import read_key

    settings = settings_from(context)
    with render.activity("Making a backup") as tell:
        result = make(settings, store, read_key(key_file), tell)
    for line in result.left_out:
        render.progress(f"Not in the backup: {line}")
    if as_json:
        render.emit_json(Created, result)
        return
    render.progress(
        f"Backup of {result.files} files, {_megabytes(result.size_bytes)}, {_megabytes(result.new_bytes)} of them new,"
        f" in {result.seconds:.1f} s"
    )
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
            _megabytes(row.size_bytes),
            *(row.counts.get(name, "-") for name in ("runs", "model_versions", "aliases")),
            "sealed" if row.secrets else "none",
            row.problem,
        )
        for row in summaries
    ]
    render.emit_table(("backup", "age", "files", "size", "runs", "versions", "aliases", "secrets", ""), rows)


def verify(
    context: typer.Context, store: StoreOption, backup: BackupArgument = "latest", as_json: JsonOption = False
) -> None:
    """Read every file of a backup again. Exit code 1 where one is missing or altered, each of which is named."""
    from shopfloor.backup.store import Store, Verified

    with render.activity("Reading the backup"):
        result = Store(settings_from(context), store).verify(backup)
    if as_json:
        render.emit_json(Verified, result)
    else:
        for problem in result.problems:
            typer.echo(problem)
        render.progress(f"{result.id}: {result.files} files read, {len(result.problems)} of them missing or altered")
    if result.problems:
        raise typer.Exit(1)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"

"""Commands for the object store and the secrets of a stack with real services: bootstrap, check, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    storage = typer.Typer(help="Make an S3 store ready, and try whether it does what we need.", no_args_is_help=True)
    storage.command("bootstrap")(bootstrap)
    storage.command("check")(check)
    app.add_typer(storage, name="storage")
    secrets = typer.Typer(help="Make the secrets of a stack with real services.", no_args_is_help=True)
    secrets.command("init")(init)
    app.add_typer(secrets, name="secrets")


def bootstrap(
    context: typer.Context,
    bucket: Annotated[list[str] | None, typer.Option(help="A further bucket; repeatable.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the buckets that the profile names, with versions and rules for what is old; can be repeated."""
    from shopfloor.stack import object_store

    rows = object_store.bootstrap(settings_from(context), bucket or [])
    if as_json:
        render.emit_json_list(object_store.Row, rows)
        return
    render.emit_table(("what", "verdict", ""), [(row.name, row.verdict, row.message) for row in rows])


def check(
    context: typer.Context,
    bucket: Annotated[str | None, typer.Option(help="Where to try. Default: the profile's first.")] = None,
    keys: Annotated[int, typer.Option(min=1, max=100_000, help="How many objects a listing must show.")] = 1_100,
    as_json: JsonOption = False,
) -> None:
    """Try the calls that the platform and its components make on the store. Exit code 1 when one fails."""
    from shopfloor.errors import UsageError
    from shopfloor.stack import object_store

    settings = settings_from(context)
    buckets = [bucket] if bucket else object_store.buckets(settings)
    if not buckets:
        raise UsageError(f"Profile {settings.profile!r} keeps nothing in an object store.", "Name a --bucket.")
    rows = object_store.check(settings, buckets[0], keys)
    if as_json:
        render.emit_json_list(object_store.Row, rows)
    else:
        render.emit_table(("what", "verdict", ""), [(row.name, row.verdict, row.message) for row in rows])
    if any(row.verdict == "fail" for row in rows):
        raise typer.Exit(1)


def init(
    directory: Annotated[Path, typer.Option(help="Where they are kept, one file each.")] = Path(".secrets"),
    env_file: Annotated[Path, typer.Option(help="Compose's variables; it gets the directory.")] = Path(".env"),
    team: Annotated[
        list[str] | None, typer.Option(help="A team of a cluster, which gets secrets of its own; repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make every secret that is missing; refuses one that is there and weak."""
    from shopfloor.stack import secrets, teams

    for name in team or []:
        teams.require_name(name)
    result = secrets.init(directory, env_file, team or [])
    if as_json:
        render.emit_json(secrets.SecretsMade, result)
        return
    render.progress(f"Made {len(result.made)} secrets in {result.directory}, kept {len(result.kept)}.")

"""Commands for the endpoints' bearer tokens: create, list, revoke."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import JsonOption, YesOption


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    tokens = typer.Typer(help="Say who may ask the endpoints.", no_args_is_help=True)
    tokens.command("create")(create)
    tokens.command("list")(list_)
    tokens.command("revoke")(revoke)
    app.add_typer(tokens, name="tokens")


def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose token it is.")],
    use_case: Annotated[list[str] | None, typer.Option(help="What it opens; repeatable. Default: all.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="How long it counts. Default: until it is revoked.")] = None,
) -> None:
    """Make a token and print it, once: only its hash is kept."""
    from shopfloor.serving.replica import tokens

    expires = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=days) if days else None
    render.out.print(tokens.create(_file(context), name, use_case or [], expires), markup=False, soft_wrap=True)


def list_(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the tokens by name: what each opens, and until when."""
    from shopfloor.serving.replica import tokens

    file = _file(context)
    entries = tokens.read(file) if file.exists() else []
    if as_json:
        from shopfloor.cli.documents import Token, Tokens

        listed = [Token(name=one.name, use_cases=sorted(one.use_cases), expires=one.expires) for one in entries]
        render.emit_json(Tokens, Tokens(tokens=listed))
        return
    rows = [(one.name, ",".join(sorted(one.use_cases)), str(one.expires or "")) for one in entries]
    render.emit_table(("name", "opens", "last day"), rows)


def revoke(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose token it is.")],
    yes: YesOption = False,
) -> None:
    """Remove a token; the endpoints know it within a second."""
    from shopfloor.serving.replica import tokens

    file = _file(context)
    render.confirm(f"Whoever asks with the token of {name} will be refused.", yes)
    tokens.revoke(file, name)


def _file(context: typer.Context) -> Path:
    from shopfloor.errors import UsageError
    from shopfloor.settings import NO_TOKENS

    file = settings_from(context).serve_tokens_file
    if file is None or file == NO_TOKENS:
        raise UsageError(
            "The endpoints ask for no tokens.", "Set serve_tokens_file in the profile, or SHOPFLOOR_SERVE_TOKENS_FILE."
        )
    return Path(file)

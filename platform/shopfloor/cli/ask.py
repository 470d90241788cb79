"""The `ask` command: what the endpoints answer, asked as any client asks them."""

from __future__ import annotations

from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_of_running_stack
from shopfloor.cli.options import JsonOption, use_case_name


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("ask")(ask)


def ask(
    context: typer.Context,
    use_case: Annotated[
        str | None,
        typer.Argument(
            help="A use case that has an endpoint; all of them where none is named.", callback=use_case_name
        ),
    ] = None,
    row: Annotated[
        str | None, typer.Option("--row", help="JSON of a row; the endpoint's own example where none is given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask endpoints for a prediction: what each predicts, its answer, the version that gave it, and its address."""
    from shopfloor.errors import UsageError
    from shopfloor.flows import asking

    settings = settings_of_running_stack(context)
    if use_case is None and row is not None:
        raise UsageError("--row goes to one endpoint.", "Name its use case: shopfloor ask NAME --row '{...}'")
    answers = asking.ask_all(settings) if use_case is None else [asking.ask(settings, use_case, row)]
    if as_json:
        render.emit_json_list(asking.Answer, answers)
        return
    render.emit_table(
        ("use case", "predicts", "answer", "version", "address"),
        [
            (one.use_case, one.description, asking.in_words(one.prediction), one.version, one.endpoint)
            for one in answers
        ],
    )

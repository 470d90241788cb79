"""Commands for features; definitions and registry are Feast's, and `feast` works on them."""

from __future__ import annotations

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import DataRevOption, JsonOption, UseCaseArgument


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    features = typer.Typer(help="Features that the endpoints look up.", no_args_is_help=True)
    features.callback()(_group)
    features.command("materialize")(materialize)
    app.add_typer(features, name="features")


def materialize(
    context: typer.Context,
    use_case: UseCaseArgument,
    data_rev: DataRevOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put the newest feature values of a data version into the online store; doing it again changes nothing."""
    from shopfloor.data.materialization import Materialized, materialize_version

    with render.activity(f"Materializing the features of {use_case}"):
        result = materialize_version(settings_from(context), use_case, data_rev)
    if as_json:
        render.emit_json(Materialized, result)
        return
    rows = [(view.name, view.rows, view.newest.isoformat() if view.newest else "-") for view in result.views]
    render.emit_table(("view", "rows", "newest"), rows)


def _group() -> None:
    """Keep the verb, which typer would leave out of a group that has only one."""

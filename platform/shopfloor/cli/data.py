"""Commands for data versions; everything else about data is `dvc`, as its users know it."""

from __future__ import annotations

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import DataRevOption, JsonOption, UseCaseArgument


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    data = typer.Typer(help="Prepare and show data versions; use dvc for the rest.", no_args_is_help=True)
    data.command("prepare")(prepare)
    data.command("show")(show)
    app.add_typer(data, name="data")


def prepare(context: typer.Context, use_case: UseCaseArgument, as_json: JsonOption = False) -> None:
    """Bring the tables into the workspace (pull or make them) and fill an empty DVC remote; quick when all is there."""
    from shopfloor.data.versions import PreparedData
    from shopfloor.data.versions import prepare as prepare_data

    prepared = prepare_data(settings_from(context), use_case, render.progress)
    if as_json:
        render.emit_json(PreparedData, prepared)
    else:
        render.progress(f"Data of {use_case} are in place.")


def show(
    context: typer.Context,
    use_case: UseCaseArgument,
    data_rev: DataRevOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show the data version that a git revision names."""
    from shopfloor.data.resolution import resolve
    from shopfloor.records import DataVersion

    version = resolve(settings_from(context), use_case, data_rev)
    if as_json:
        render.emit_json(DataVersion, version)
        return
    render.out.print(f"{version.path} {version.md5} {version.commit}", markup=False)
    render.emit_table(("table", "md5", "bytes"), [(t.name, t.md5, t.size_bytes) for t in version.tables])

"""Commands that look at registered models: list, show."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shopfloor.cli import render

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    models = typer.Typer(help="Look at registered models and their passports.", no_args_is_help=True)
    models.command("list")(list_)
    models.command("show")(show)
    app.add_typer(models, name="models")


def list_(context: typer.Context, as_json: JsonOption = False) -> None:
    """List every model version with its aliases."""
    client = _client(context)
    rows = [
        {
            "model": version.name,
            "version": str(version.version),
            "aliases": sorted(client.get_model_version(version.name, version.version).aliases),
            "run_id": version.run_id,
            "description": version.description or "",
        }
        for version in client.search_model_versions(order_by=["name ASC", "version_number DESC"])
    ]
    if as_json:
        render.emit_json({"versions": rows})
        return
    render.emit_table(
        ("model", "version", "aliases", "run"),
        [(row["model"], row["version"], ",".join(row["aliases"]), row["run_id"]) for row in rows],
    )


def show(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model, `model/version` or `model@alias`; default: its champion.")],
    as_json: JsonOption = False,
) -> None:
    """Show the passport of a model version: what it was made of and how it was judged."""
    from shopfloor import registry
    from shopfloor.errors import NotFoundError

    client = _client(context)
    name, _, version = model.partition("/")
    if not version:
        name, _, alias = name.partition("@")
        found = registry.alias_version(client, name, alias or registry.CHAMPION)
        if found is None:
            raise NotFoundError(
                f"Model {name!r} has no {alias or registry.CHAMPION}.", "`shopfloor models list` shows what there is."
            )
        version = found
    passport = registry.read_passport(client, name, version)
    if as_json:
        render.emit_json(passport)
        return
    for field, value in passport.model_dump(mode="json").items():
        if field != "gates":
            render.out.print(f"{field:<16}{value}", markup=False)
    render.emit_table(
        ("gate", "bound", "value", "verdict"),
        [(gate.gate, gate.bound, gate.value, "met" if gate.passed else "missed") for gate in passport.gates],
    )


def _client(context: typer.Context) -> Any:
    from shopfloor import tracking
    from shopfloor.cli.main import settings_of_running_stack

    return tracking.connect(settings_of_running_stack(context))

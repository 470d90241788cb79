"""Commands for registered models: list, show, import, promote, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_of_running_stack
from shopfloor.cli.options import (
    JsonOption,
    ReasonOption,
    TaskName,
    UseCaseArgument,
    VersionArgument,
    YesOption,
    require_version,
    use_case_name,
)

if TYPE_CHECKING:
    from shopfloor.records import Passport
    from shopfloor.serving.deploy.champion import Change, History
    from shopfloor.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    models = typer.Typer(help="Look at registered models, and say which version answers.", no_args_is_help=True)
    models.command("list")(list_)
    models.command("show")(show)
    models.command("import")(import_)
    models.command("promote")(promote)
    models.command("rollback")(rollback)
    app.add_typer(models, name="models")


def list_(context: typer.Context, as_json: JsonOption = False) -> None:
    """List every model version with its aliases."""
    from shopfloor.cli.documents import ModelVersion, ModelVersions
    from shopfloor.runs import recorder as tracking
    from shopfloor.serving.assignment import SUFFIX

    client = tracking.connect(settings_of_running_stack(context, "mlflow"))
    versions = [
        ModelVersion(
            model=version.name,
            version=str(version.version),
            aliases=sorted(client.get_model_version(version.name, version.version).aliases),
            run_id=version.run_id or "",
            description=version.description or "",
        )
        for version in client.search_model_versions(order_by=["name ASC", "version_number DESC"])
        if not version.name.endswith(SUFFIX)
    ]
    if as_json:
        render.emit_json(ModelVersions, ModelVersions(versions=versions))
        return
    render.emit_table(
        ("model", "version", "aliases", "run"),
        [(one.model, one.version, ",".join(one.aliases), one.run_id) for one in versions],
    )


def show(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A model, `model/version` or `model@alias`; default: its champion.", callback=require_version
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show the passport of a model version: what it was made of and how it was judged."""
    from shopfloor.cli.documents import VersionPassport
    from shopfloor.registry import passport as registry
    from shopfloor.runs import recorder as tracking
    from shopfloor.serving.deploy import champion, rollout

    settings = settings_of_running_stack(context, "mlflow")
    name, version = named_version(settings, model, "champion")
    passport = registry.read_passport(tracking.connect(settings), name, version)
    changes = champion.history(rollout.registry(settings), name, version)
    if as_json:
        render.emit_json(VersionPassport, VersionPassport.model_validate(passport.model_dump() | changes))
        return
    for title, text in passport_lines(passport, changes):
        render.out.print(f"{title:<16}{text}", markup=False)
    render.emit_table(
        ("gate", "bound", "value", "verdict"),
        [(gate.gate, gate.bound, gate.value, render.verdict(gate)) for gate in passport.gates],
    )


def passport_lines(passport: Passport, changes: History) -> list[tuple[str, str]]:
    """Return what a passport says, for a person: a title and a text for each line; its gates stand in a table."""
    steps = ", ".join(f"{step} {run_id}" for step, run_id in passport.step_run_ids.items())
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in sorted(passport.metrics.items()))
    params = ", ".join(f"{name} {_number(value)}" for name, value in passport.params.items())
    first = [
        ("version", f"{passport.version} of {passport.model}, made {passport.created:%Y-%m-%d %H:%M:%S}"),
        *(
            (change.replace("_", " "), ", ".join(f"{field} {value}" for field, value in record.items() if value))
            for change, record in changes.items()
        ),
        ("run", passport.run_id),
    ]
    data, origin = passport.data, passport.imported
    if origin is not None:
        columns = ", ".join(f"{name} {kind}" for name, kind in passport.features.items())
        return [
            *first,
            ("imported", f"from {origin.source}, {origin.kind}, by {origin.by}"),
            ("sha256", origin.sha256),
            ("columns", columns or "none that have names"),
            ("golden rows", str(origin.golden_rows)),
        ]
    version = f"{data.path} {data.md5}, {'git ' + data.commit if data.commit else 'of the workspace'}" if data else ""
    tables = ", ".join(f"{table.name} {table.md5[:8]}" for table in data.tables) if data else ""
    return [
        *first,
        ("steps", steps),
        ("code", passport.git_commit + (", with uncommitted changes" if passport.git_dirty else "")),
        ("data", version),
        ("tables", tables),
        (
            "checks",
            f"{passport.checks}, {'the' if passport.checks_passed else 'not all'} critical ones met",
        ),
        ("features", f"{passport.feature_service}: {', '.join(passport.features)}"),
        ("parameters", f"{params} (trial {passport.trial_id})"),
        ("metrics", numbers),
        ("compared with", f"version {passport.champion}" if passport.champion else "no champion"),
        ("model", passport.model_hash),
        ("lock", passport.lock_hash),
        ("run key", passport.run_key),
        *([("cost", passport.cost.in_words())] if passport.cost else []),
    ]


def import_(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="An MLflow model (directory or URI), or a file of ONNX, XGBoost, LightGBM or scikit-learn."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Use case that it becomes a version of.", callback=use_case_name)],
    example: Annotated[
        Path | None, typer.Option(help="JSON file of rows that it takes: they give the types, and golden requests.")
    ] = None,
    task: Annotated[
        TaskName | None, typer.Option(help="What it predicts, where neither the model nor the use case says it.")
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Load a pickle: that runs whatever code its maker put in, as you."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a version of a model that was trained elsewhere, with a use_case.yaml where there is none.

    The model is loaded and asked its example before anything is written. The same command again changes nothing.
    """
    from shopfloor.flows import importing

    settings = settings_of_running_stack(context, "mlflow")
    kind = task.value if task else None
    version = importing.import_model(settings, source, name, example, kind, allow_code, render.progress)
    if as_json:
        render.emit_json(importing.ImportedVersion, version)
        return
    golden = f"{version.golden_rows} golden rows" if version.golden_rows else "no golden rows: --example gives them"
    render.out.print(
        f"Version {version.version} of {name}, {version.task}, {len(version.columns)} columns, {golden}. "
        f"`shopfloor deploy {name}@{version.version}` lets it answer at {version.endpoint}.",
        markup=False,
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def promote(
    context: typer.Context,
    model: VersionArgument,
    reason: ReasonOption = "",
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a version the champion: endpoint, alias and record change together, or not at all."""
    from shopfloor.registry.compatibility import concern
    from shopfloor.runs.mlflow import version_of
    from shopfloor.serving import assignment as assignments
    from shopfloor.serving.deploy import champion, rollout

    settings = settings_of_running_stack(context)
    name, version = named_version(settings, model)
    version_of(rollout.registry(settings), name, version)
    answering = assignments.read(rollout.registry(settings), name).assignment.champion
    if refused := concern(settings, name, version, answering):
        render.progress(refused)
    render.confirm(f"Version {version} of {name} will answer all requests.", yes)
    with render.activity(f"Promoting version {version} of {name}"):
        change = champion.promote_version(settings, name, version, reason)
    _show_change(change, as_json)


def rollback(
    context: typer.Context,
    use_case: UseCaseArgument,
    reason: ReasonOption = "",
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the champion before the present one champion again."""
    from shopfloor.serving.deploy import champion

    settings = settings_of_running_stack(context)
    render.confirm(f"The champion of {use_case} before the present one will answer all requests.", yes)
    with render.activity(f"Rolling {use_case} back"):
        change = champion.roll_back(settings, use_case, reason)
    _show_change(change, as_json)


def named_version(settings: Settings, model: str, default_alias: str = "challenger") -> tuple[str, str]:
    """Return the name and the version of `model`, `model/version`, `model@version` or `model@alias`.

    Raises:
        NotFoundError: No version has that alias.
    """
    from shopfloor.errors import NotFoundError
    from shopfloor.serving.assignment import resolve

    name, _, version = model.partition("/")
    if version:
        return name, version
    name, _, alias = name.partition("@")
    if target := resolve(settings, name, f"@{alias or default_alias}"):
        return name, target
    if alias.isdigit():  # no alias, so that it can only mean the number
        return name, alias
    reference = f"alias {alias!r}" if alias else default_alias
    raise NotFoundError(f"Model {name!r} has no {reference}.", "`shopfloor models list` shows what there is.")


def _show_change(change: Change, as_json: bool) -> None:
    from shopfloor.serving.deploy.champion import Change as ChangeOfChampion

    if as_json:
        render.emit_json(ChangeOfChampion, change)
        return
    before = f", before it version {change.before}" if change.before else ""
    render.out.print(f"Version {change.champion} is the champion of {change.use_case}{before}.", markup=False)

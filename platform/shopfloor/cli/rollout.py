"""Commands for a version on trial: deploy, rollout status, rollout run."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_of_running_stack
from shopfloor.cli.models import named_version
from shopfloor.cli.options import JsonOption, UseCaseArgument, VersionArgument

NO_GATES: tuple[None] = (None,)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("deploy")(deploy)
    group = typer.Typer(help="Try a version with real requests, and judge it.", no_args_is_help=True)
    group.command("status")(status)
    group.command("run")(run)
    app.add_typer(group, name="rollout")


def deploy(
    context: typer.Context,
    model: VersionArgument,
    canary: Annotated[float, typer.Option(help="Percent of the requests that it answers.", min=0, max=100)] = 0,
    shadow: Annotated[bool, typer.Option("--shadow", help="It answers copies of the others, for nobody.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Load a version beside the champion, and give it its part of the requests."""
    from shopfloor.flows import rollout as canaries
    from shopfloor.serving.deploy.rollout import Traffic, endpoint

    settings = settings_of_running_stack(context)
    use_case, version = named_version(settings, model)
    with render.activity(f"Deploying version {version} of {use_case}"):
        canaries.introduce(settings, use_case, version, Traffic(canary_percent=canary, shadow=shadow))
    address = endpoint(settings, use_case)
    if as_json:
        render.emit_json(
            {"use_case": use_case, "version": version, "canary": canary, "shadow": shadow, "endpoint": address}
        )
        return
    share = f"answers {canary:g} % of the requests" if canary else "answers whoever asks for it"
    copies = ", and copies of the others" if shadow else ""
    render.out.print(f"Version {version} of {use_case} {share}{copies}: {address}", markup=False)


def status(
    context: typer.Context,
    use_case: UseCaseArgument,
    since: Annotated[str, typer.Option(help="How far to look back: 90s, 15m, 2h, 3d.")] = "1h",
    as_json: JsonOption = False,
) -> None:
    """Show bound, value and verdict for the champion and the version on trial."""
    from shopfloor.flows import rollout as canary

    found = canary.status(settings_of_running_stack(context), use_case, dt.datetime.now(dt.UTC) - _span(since))
    if as_json:
        render.emit_json(found)
        return
    rows = [
        (
            f"{item.version} ({item.role})",
            f"{item.percent:g} %",
            item.numbers.requests,
            item.numbers.shadows,
            gate.gate if gate else "-",
            gate.bound if gate else "-",
            f"{gate.value:.4g}" if gate and gate.value is not None else "-",
            render.verdict(gate) if gate else "no gates",
        )
        for item in found.versions
        for gate in (item.gates or NO_GATES)
    ]
    render.emit_table(("version", "share", "requests", "shadows", "gate", "bound", "value", "verdict"), rows)


def run(
    context: typer.Context,
    model: VersionArgument,
    stages: Annotated[str, typer.Option(help="Percent of the requests, stage by stage.")] = "5,25,50,100",
    stage_timeout: Annotated[str, typer.Option(help="How long a stage waits for enough requests.")] = "10m",
    as_json: JsonOption = False,
) -> None:
    """Step a version through its stages to champion; a broken bound takes it back.

    Exit code 1 where it did not become champion.
    """
    from shopfloor.flows import rollout as canary

    settings = settings_of_running_stack(context)
    use_case, version = named_version(settings, model)
    try:
        percents = [float(stage) for stage in stages.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{stages!r} is no list of percents", param_hint="--stages") from error
    result = canary.run(settings, use_case, version, render.progress, percents, _span(stage_timeout).total_seconds())
    if as_json:
        render.emit_json(result)
    else:
        words = {"promoted": "is the champion", "rolled_back": "was taken back", "not_enough_data": "waits"}
        at = f" at {result.percent:g} %" if result.outcome != "promoted" else ""
        render.out.print(f"Version {version} of {use_case} {words[result.outcome]}{at}: {result.reason}.", markup=False)
    if result.outcome != "promoted":
        raise typer.Exit(1)


def _span(text: str) -> dt.timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no time: write 90s, 15m, 2h or 3d")
    return dt.timedelta(seconds=float(match[1]) * _UNITS_S[match[2]])

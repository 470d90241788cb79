"""Commands for endpoints: deploy, undeploy, and for a version on trial: rollout status, run, end, guard."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_of_running_stack
from shopfloor.cli.models import named_version
from shopfloor.cli.options import JsonOption, ReasonOption, UseCaseArgument, VersionArgument, YesOption, span_of

if TYPE_CHECKING:
    from shopfloor.serving.assignment import Entry
    from shopfloor.settings import Settings

NO_GATES: tuple[None] = (None,)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("deploy")(deploy)
    app.command("undeploy")(undeploy)
    group = typer.Typer(help="Try a version with real requests, and judge it.", no_args_is_help=True)
    group.command("status")(status)
    group.command("run")(run)
    group.command("end")(end)
    group.command("guard")(guard)
    app.add_typer(group, name="rollout")


def deploy(
    context: typer.Context,
    model: VersionArgument,
    canary: Annotated[float, typer.Option(help="Percent of the requests that it answers.", min=0, max=100)] = 0,
    shadow: Annotated[bool, typer.Option("--shadow", help="It answers copies of the others, for nobody.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Load a version beside the champion, and give it its part of the requests.

    The first version of an imported model becomes the champion.
    """
    from shopfloor.cli.documents import Deployed
    from shopfloor.flows import rollout as canaries
    from shopfloor.serving.deploy.rollout import Traffic, endpoint

    settings = settings_of_running_stack(context)
    use_case, version = named_version(settings, model)
    before = _confirm_instead(settings, use_case, version, yes)
    with render.activity(f"Deploying version {version} of {use_case}"):
        traffic = Traffic(canary_percent=canary, shadow=shadow)
        now = canaries.introduce(settings, use_case, version, traffic, before=before).assignment
    address = endpoint(settings, use_case)
    if as_json:
        champion = now.champion == version
        render.emit_json(
            Deployed,
            Deployed(
                use_case=use_case, version=version, canary=canary, shadow=shadow, endpoint=address, champion=champion
            ),
        )
        return
    if now.champion == version:
        render.out.print(f"Version {version} of {use_case} answers all requests: {address}", markup=False)
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

    report = canary.status(settings_of_running_stack(context), use_case, dt.datetime.now(dt.UTC) - span_of(since))
    if as_json:
        render.emit_json(canary.RolloutStatus, report)
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
        for item in report.versions
        for gate in (item.gates or NO_GATES)
    ]
    render.emit_table(("version", "share", "requests", "shadows", "gate", "bound", "value", "verdict"), rows)


def run(
    context: typer.Context,
    model: VersionArgument,
    stages: Annotated[str, typer.Option(help="Percent of the requests, stage by stage.")] = "5,25,50,100",
    stage_timeout: Annotated[str, typer.Option(help="How long a stage waits for enough requests.")] = "10m",
    detach: Annotated[bool, typer.Option("--detach", help="Judge in a Ray job: this terminal may close.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Step a version through its stages to champion; a broken bound takes it back.

    Exit code 1 where it did not become champion.
    """
    from shopfloor.cli.documents import TrialDetached
    from shopfloor.flows import rollout as canary

    settings = settings_of_running_stack(context)
    use_case, version = named_version(settings, model)
    try:
        percents = [float(stage) for stage in stages.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{stages!r} is no list of percents", param_hint="--stages") from error
    _confirm_instead(settings, use_case, version, yes)
    if detach:
        job = canary.detach(settings, use_case, version, percents, span_of(stage_timeout).total_seconds())
        if as_json:
            render.emit_json(TrialDetached, TrialDetached(use_case=use_case, version=version, job=job))
        else:
            render.out.print(f"The Ray job {job} judges it: {settings.ray_dashboard_url}/#/jobs/{job}", markup=False)
        return
    result = canary.run(settings, use_case, version, render.progress, percents, span_of(stage_timeout).total_seconds())
    if as_json:
        render.emit_json(canary.RolloutResult, result)
    else:
        words = {"promoted": "is the champion", "rolled_back": "was taken back", "not_enough_data": "waits"}
        at = f" at {result.percent:g} %" if result.outcome != "promoted" else ""
        render.out.print(f"Version {version} of {use_case} {words[result.outcome]}{at}: {result.reason}.", markup=False)
    if result.outcome != "promoted":
        raise typer.Exit(1)


def end(
    context: typer.Context,
    use_case: UseCaseArgument,
    reason: ReasonOption = "",
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """End the trial of a version: the champion answers all requests again."""
    from shopfloor.cli.documents import TrialEnded
    from shopfloor.flows import rollout as canary

    settings = settings_of_running_stack(context)
    before = _assigned(settings, use_case)
    if before.assignment.challenger:
        render.confirm(f"Version {before.assignment.challenger} of {use_case} will be off its endpoint.", yes)
    with render.activity(f"Ending the trial of {use_case}"):
        version = canary.end(settings, use_case, reason, before)
    if as_json:
        render.emit_json(TrialEnded, TrialEnded(use_case=use_case, version=version))
    else:
        render.out.print(f"Version {version} of {use_case} is off its endpoint.", markup=False)


def guard(context: typer.Context, use_case: UseCaseArgument, as_json: JsonOption = False) -> None:
    """Judge the champion for as long as `gates.live.watch_s` says, and roll it back where it breaks a bound.

    A promotion starts this by itself, as a Ray job. Exit code 1 where the champion was rolled back.
    """
    from shopfloor.cli.documents import Guarded
    from shopfloor.flows import rollout as canary

    result = canary.guard(settings_of_running_stack(context), use_case, render.progress)
    if as_json:
        outcome: Literal["kept", "rolled_back"] = "rolled_back" if result else "kept"
        render.emit_json(Guarded, Guarded(use_case=use_case, outcome=outcome, rollback=result))
    elif result is None:
        render.out.print(f"The champion of {use_case} stays.", markup=False)
    else:
        render.out.print(f"Version {result.version} of {use_case} was rolled back: {result.reason}.", markup=False)
    if result is not None:
        raise typer.Exit(1)


def undeploy(
    context: typer.Context,
    use_case: UseCaseArgument,
    reason: ReasonOption = "",
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove an endpoint; the model's versions stay, and `models promote` makes an endpoint again."""
    from shopfloor.cli.documents import Undeployed
    from shopfloor.flows import rollout as canary
    from shopfloor.serving.deploy.rollout import endpoint

    settings = settings_of_running_stack(context)
    render.confirm(f"The endpoint {endpoint(settings, use_case)} will answer nobody any more.", yes)
    with render.activity(f"Removing the endpoint of {use_case}"):
        removed = canary.remove(settings, use_case, reason)
    if as_json:
        render.emit_json(Undeployed, Undeployed(use_case=use_case, removed=removed))
    else:
        what = "was removed" if removed else "has no endpoint: nothing to do"
        render.out.print(f"{'The endpoint of ' if removed else ''}{use_case} {what}.", markup=False)


def _assigned(settings: Settings, use_case: str) -> Entry:
    from shopfloor.serving.assignment import read
    from shopfloor.serving.deploy.rollout import registry

    return read(registry(settings), use_case)


def _confirm_instead(settings: Settings, use_case: str, version: str, yes: bool) -> Entry:
    """Ask whether a version may take the place of another one on trial, and return what was asked about."""
    entry = _assigned(settings, use_case)
    other = entry.assignment.challenger
    if other not in {None, version}:
        render.confirm(f"Version {other} of {use_case} is on trial; version {version} takes its place.", yes)
    return entry

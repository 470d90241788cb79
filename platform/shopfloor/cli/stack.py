"""Commands for the embedded stack and what all commands run with: up, down, status, doctor, settings, env."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import JsonOption

if TYPE_CHECKING:
    from shopfloor.flows.promote import Standing
    from shopfloor.settings import Settings
    from shopfloor.stack.finding import Finding
    from shopfloor.stack.lifecycle import StackStatus

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def _port(name: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        help="Insist on this port; without it, the usual one or a free one.",
        min=1024,
        max=65535,
        envvar=f"SHOPFLOOR_{name}_PORT",
        show_default=False,
    )
    return option


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)
    app.command("doctor")(doctor)
    app.command("settings")(show_settings)
    app.command("env")(env)


def up(
    context: typer.Context,
    mlflow_port: Annotated[int | None, _port("MLFLOW")] = None,
    ray_port: Annotated[int | None, _port("RAY")] = None,
    dashboard_port: Annotated[int | None, _port("DASHBOARD")] = None,
    serve_port: Annotated[int | None, _port("SERVE")] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the local stack (MLflow, Ray) and bring the champions back; does nothing where it already runs.

    With another profile nothing is started: the endpoints that the registry has for its Ray cluster come back, as they
    were deployed. Exit code 1 where one does not.
    """
    from shopfloor.flows.promote import restore
    from shopfloor.settings import EMBEDDED
    from shopfloor.stack import lifecycle

    options = {
        "tracking_uri": mlflow_port,
        "ray_address": ray_port,
        "ray_dashboard_url": dashboard_port,
        "serve_url": serve_port,
    }
    ports = {field: port for field, port in options.items() if port is not None}
    settings = settings_from(context)
    if settings.profile != EMBEDDED and not ports:
        _bring_back(settings, as_json)
        return
    with render.activity("Looking at the stack") as tell:
        result = lifecycle.up(settings, tell, ports)
        settings = settings_from(context)
        restored = restore(settings, tell)
    for use_case, problem in restored.problems.items():
        render.progress(f"{use_case} is not as the registry has it: {problem}")
    if not result.started:
        render.progress("Everything runs already.")
    _show(lifecycle.status(settings), _standings(settings), as_json)


def _bring_back(settings: Settings, as_json: bool) -> None:
    """Let the endpoints of a cluster that somebody else starts answer as the registry has it."""
    from shopfloor.flows.promote import Restored, restore

    remedy = " To start them: docker compose up -d --wait" if settings.in_containers else ""
    render.progress(f"The services of profile {settings.profile!r} are not started from here.{remedy}")
    with render.activity("Bringing its endpoints back") as tell:
        restored = restore(settings, tell)
    for use_case, problem in restored.problems.items():
        render.progress(f"{use_case} is not as the registry has it: {problem}")
    if as_json:
        render.emit_json(Restored, restored)
    else:
        render.emit_table(("model", "champion"), restored.champions.items())
    if restored.problems:
        raise typer.Exit(1)


def down(context: typer.Context, as_json: JsonOption = False) -> None:
    """Stop what `up` started; data, runs and models stay."""
    from shopfloor.stack import lifecycle
    from shopfloor.stack.lifecycle import DownResult

    with render.activity("Stopping the stack"):
        result = lifecycle.down(settings_from(context))
    if as_json:
        render.emit_json(DownResult, result)
        return
    render.progress(f"Stopped {result.processes} processes." if result.processes else "Nothing ran.")


def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show each service: address, health, version, memory. Exit code 1 when one is not healthy."""
    from shopfloor.stack import lifecycle

    settings = settings_from(context)
    stack = lifecycle.status(settings)
    _show(stack, _standings(settings) if stack.healthy else [], as_json)
    if not stack.healthy:
        render.progress("Start what is missing: shopfloor up")
        raise typer.Exit(1)


def doctor(context: typer.Context, as_json: JsonOption = False) -> None:
    """Examine the machine, the installation and the configuration. Exit code 1 when something must be mended."""
    from shopfloor.stack.doctor import examine
    from shopfloor.stack.finding import Finding

    findings = examine(context.obj.profile)
    if as_json:
        render.emit_json_list(Finding, findings)
    else:
        for finding in findings:
            _show_finding(finding)
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(1)


def show_settings(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show every setting's value, and where it comes from."""
    from shopfloor.settings import load_sourced_settings, profile_file

    sourced = load_sourced_settings(context.obj.profile)
    values = sourced.values()
    if as_json:
        from shopfloor.cli.documents import AllSettings, Setting

        plain = {name: value if isinstance(value, int | float | None) else str(value) for name, value in values.items()}
        document = {name: Setting(value=value, source=sourced.sources[name]) for name, value in plain.items()}
        render.emit_json(AllSettings, AllSettings(document))
        return
    file = profile_file(sourced.settings.project_root, sourced.settings.profile)
    words = {"profile": str(file), "argument": "option", "stack": "running stack"}
    rows = [
        (
            name,
            "-" if value is None else value,
            f"SHOPFLOOR_{name.partition('.')[0].upper()}" if source == "environment" else words.get(source, source),
        )
        for name, value in values.items()
        for source in [sourced.sources[name]]
    ]
    render.emit_table(("setting", "value", "source"), rows)


def env(context: typer.Context, as_json: JsonOption = False) -> None:
    """Print what your own `mlflow`, `ray` and Python need to reach the services: eval "$(shopfloor env)"."""
    import shlex

    from shopfloor.environment import direct_loopback

    settings = settings_from(context)
    own = {name: value for name, value in settings.environment().items() if not name.startswith("SHOPFLOOR_")}
    if ":" in settings.ray_address:
        own["RAY_ADDRESS"] = settings.ray_address
    own |= {"RAY_API_SERVER_ADDRESS": settings.ray_dashboard_url, **direct_loopback(os.environ)}
    if as_json:
        from shopfloor.cli.documents import Variables

        render.emit_json(Variables, Variables(own))
        return
    for name, value in sorted(own.items()):
        typer.echo(f"export {name}={shlex.quote(value)}")


def _standings(settings: Settings) -> list[Standing]:
    from shopfloor.errors import ServiceError
    from shopfloor.flows.promote import standings

    try:
        return standings(settings)
    except ServiceError as error:
        render.progress(f"Nobody can say who answers: {error}")
        return []


def _show(stack: StackStatus, standings: list[Standing], as_json: bool) -> None:
    if as_json:
        from shopfloor.cli.documents import Stack

        render.emit_json(Stack, Stack(**vars(stack), models=standings))
        return
    rows = [
        (
            service.name,
            service.health,
            service.address,
            service.version or "-",
            f"{service.memory_bytes / 1024**2:.0f} MiB" if service.memory_bytes else "-",
            service.pid or "-",
            dt.timedelta(seconds=int(service.uptime_s)),
            service.note,
        )
        for service in stack.services
    ]
    render.emit_table(("service", "health", "address", "version", "memory", "pid", "up", ""), rows)
    if stack.applications:
        applications = [(item.name, item.state, item.address, item.message) for item in stack.applications]
        render.emit_table(("application", "state", "address", ""), applications)
    if standings:
        models = [
            (item.use_case, item.champion or "-", item.answers or "-", item.challenger or "-", _judged(item))
            for item in standings
        ]
        render.emit_table(("model", "champion", "answers", "challenger", ""), models)


def _judged(item: Standing) -> str:
    if item.champion != item.answers:
        return "the endpoint does not answer with the champion; `shopfloor up` mends it"
    return f"the challenger has {item.canary_percent:g} % of the requests" if item.canary_percent else ""


def _show_finding(finding: Finding) -> None:
    render.out.print(f"{finding.verdict:<5}", style=_COLOURS[finding.verdict], end="")
    render.out.print(f"{finding.subject}: {finding.message}", markup=False)
    if finding.remedy:
        render.out.print(f"     {finding.remedy}", markup=False)

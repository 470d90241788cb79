"""Commands for the embedded stack: up, down, status, doctor."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from shopfloor.cli import render

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Port = Annotated[int | None, typer.Option(help="Insist on this port.", min=1, max=65535)]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)
    app.command("doctor")(doctor)


def up(
    context: typer.Context,
    mlflow_port: Port = None,
    ray_port: Port = None,
    dashboard_port: Port = None,
    serve_port: Port = None,
    json_: JsonOption = False,
) -> None:
    """Start the local stack (MLflow, Ray) and bring the champions back; does nothing where it already runs."""
    from shopfloor.cli.main import settings_from
    from shopfloor.flows.promotion import restore
    from shopfloor.stack import services

    given = {
        "tracking_uri": mlflow_port,
        "ray_address": ray_port,
        "ray_dashboard_url": dashboard_port,
        "serve_url": serve_port,
    }
    ports = {name: port for name, port in given.items() if port is not None}
    services.up(settings_from(context), render.progress, ports)
    settings = settings_from(context)
    restore(settings, render.progress)
    _show(services.status(settings), json_)


def down(context: typer.Context) -> None:
    """Stop what `up` started; data, runs and models stay."""
    from shopfloor.cli.main import settings_from
    from shopfloor.stack import services

    count = services.down(settings_from(context))
    render.progress(f"Stopped {count} processes." if count else "Nothing runs.")


def status(context: typer.Context, json_: JsonOption = False) -> None:
    """Show each service: address, health, version, memory. Exit code 1 when one is not healthy."""
    from shopfloor.cli.main import settings_from
    from shopfloor.stack import services

    found = services.status(settings_from(context))
    _show(found, json_)
    if not found.healthy:
        if not json_:
            render.progress("Start what is missing: shopfloor up")
        raise typer.Exit(1)


def doctor(context: typer.Context, json_: JsonOption = False) -> None:
    """Examine the machine, the installation and the configuration. Exit code 1 when something must be mended."""
    from shopfloor.stack.doctor import examine

    findings = examine(context.obj.profile)
    if json_:
        render.emit_json(findings)
    else:
        for finding in findings:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.verdict]
            render.out.print(f"[{colour}]{finding.verdict:4}[/] {finding.subject}: ", end="")
            render.out.print(finding.message, markup=False)
            if finding.remedy:
                render.out.print(f"     {finding.remedy}", markup=False)
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(1)


def _show(found: object, as_json: bool) -> None:
    from shopfloor.stack.services import StackStatus

    assert isinstance(found, StackStatus)
    if as_json:
        render.emit_json(found)
        return
    rows = [
        (
            service.name,
            service.health,
            service.address,
            service.version,
            f"{service.memory_bytes / 1024**2:.0f} MiB",
            service.pid or "",
            dt.timedelta(seconds=int(service.uptime_s)),
        )
        for service in found.services
    ]
    render.emit_table(("service", "health", "address", "version", "memory", "pid", "up"), rows)
    if found.applications:
        render.emit_table(("application", "state"), found.applications.items())

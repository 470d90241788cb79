"""The `compile` command: what would be submitted, written to a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.context import settings_from
from shopfloor.cli.options import (
    CronOption,
    EngineName,
    FileArgument,
    FromOption,
    FunctionOption,
    NoCacheOption,
    ParameterOption,
    UseCaseOption,
)
from shopfloor.storage import write_atomically


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("compile")(compile_)


def compile_(
    context: typer.Context,
    file: FileArgument,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; `-` is stdout.")],
    engine: Annotated[EngineName, typer.Option(help="argo or kfp: what the file is for.")],
    use_case: UseCaseOption = None,
    parameter: ParameterOption = None,
    cron: CronOption = None,
    no_cache: NoCacheOption = False,
    from_step: FromOption = None,
    function: FunctionOption = None,
) -> None:
    """Write exactly what `submit` would send to Argo or Kubeflow Pipelines; asks no service and submits nothing."""
    from shopfloor.errors import UsageError
    from shopfloor.flows import dispatch
    from shopfloor.flows.submission import Submission

    request = Submission(
        file=file,
        use_case=use_case,
        given=parameter or [],
        use_cache=not no_cache,
        from_step=from_step,
        function=function,
    )
    text = dispatch.manifest(settings_from(context), engine.value, request, cron)
    if output == "-":
        sys.stdout.write(text)
        return
    target = Path(output).resolve()
    try:
        if target.exists() and not target.is_file():  # a pipe or a device keeps its name
            Path(output).write_text(text, encoding="utf-8")
        else:
            write_atomically(target, text, target.stat().st_mode & 0o777 if target.exists() else 0o644)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}.", "Name another file with -o.") from error
    render.progress(f"Wrote {output}")

"""Arguments and options that several commands take: one name, one meaning, one help text."""

from __future__ import annotations

import datetime as dt
import re
from enum import StrEnum
from typing import Annotated

import typer

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def use_case_name(value: str | None) -> str | None:
    """Refuse what can be no use case, before anybody looks for it in a folder, in MLflow or in Ray."""
    from shopfloor.use_case import require_name

    if value is not None:
        require_name(value)
    return value


def require_version(value: str) -> str:
    """Refuse what can name no model, `model/version` or `model@alias`: MLflow's names, without what its filters use.

    Raises:
        UsageError: It names none.
    """
    from shopfloor.errors import UsageError

    if not re.fullmatch(r"\w[\w .-]*(/\d{1,9}|@[\w-]{1,255})?", value, re.ASCII):
        raise UsageError(f"{value[:100]!r} names no version of a model.", "Write `model/version` or `model@alias`.")
    return value


def span_of(text: str) -> dt.timedelta:
    """Return the time that a text such as `90s` or `3d` names.

    Raises:
        typer.BadParameter: It names none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no time: write 90s, 15m, 2h or 3d")
    return dt.timedelta(seconds=float(match[1]) * _UNITS_S[match[2]])


UseCaseArgument = Annotated[
    str, typer.Argument(help="A folder in pipelines/ that holds a use_case.yaml.", callback=use_case_name)
]
UseCaseOption = Annotated[
    str | None,
    typer.Option("--use-case", help="A folder in pipelines/ that holds a use_case.yaml.", callback=use_case_name),
]
"""For a pipeline that may have none, and for lists that may be of one."""
FileArgument = Annotated[
    str, typer.Argument(help="Pipeline file, e.g. pipelines/training.py, or a compiled pipeline in YAML.")
]
VersionArgument = Annotated[
    str,
    typer.Argument(
        help="`model/version`, `model@version` or `model@alias`; default: the model's challenger.",
        callback=require_version,
    ),
]
RunArgument = Annotated[str, typer.Argument(help="Id of the run or its beginning; `latest` for the newest.")]
ParameterOption = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", help="A pipeline parameter as key=value; repeatable.")
]
DataRevOption = Annotated[str, typer.Option("--data-rev", help="A git revision; the workspace where none is given.")]
CronOption = Annotated[str | None, typer.Option("--cron", help="A schedule, e.g. '0 3 * * *'; for argo and kfp.")]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Run every step, also those already done.")]
FunctionOption = Annotated[
    str | None, typer.Option("--function", help="The pipeline, by its function, where the file defines several.")
]
FromOption = Annotated[
    str | None, typer.Option("--from", help="This step and what follows it run even where their results are known.")
]
MaxCostOption = Annotated[
    float | None,
    typer.Option(
        "--max-cost",
        min=0.01,
        help="Stop the run where it has cost so much; what it finished is kept. For --engine argo.",
    ),
]
WatchOption = Annotated[bool, typer.Option("--watch", help="Follow the run of another engine until it ends.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; without a terminal nothing is asked.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class TaskName(StrEnum):
    """What a model predicts."""

    binary = "binary"
    multiclass = "multiclass"
    regression = "regression"


class EngineName(StrEnum):
    """What runs a pipeline."""

    local = "local"
    ray = "ray"
    argo = "argo"
    kfp = "kfp"

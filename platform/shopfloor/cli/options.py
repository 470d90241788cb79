"""Arguments and options that several commands take: one name, one meaning, one help text."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

UseCaseArgument = Annotated[str, typer.Argument(help="A folder in pipelines/ that holds a use_case.yaml.")]
UseCaseOption = Annotated[
    str | None, typer.Option("--use-case", help="A folder in pipelines/ that holds a use_case.yaml.")
]
"""For a pipeline that may have none, and for lists that may be of one."""
FileArgument = Annotated[
    str, typer.Argument(help="Pipeline file, e.g. pipelines/training.py, or a compiled pipeline in YAML.")
]
VersionArgument = Annotated[
    str, typer.Argument(help="`model/version` or `model@alias`; default: the model's challenger.")
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
WatchOption = Annotated[bool, typer.Option("--watch", help="Follow the run of another engine until it ends.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; without a terminal nothing is asked.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class EngineName(StrEnum):
    """What runs a pipeline."""

    local = "local"
    ray = "ray"
    argo = "argo"
    kfp = "kfp"

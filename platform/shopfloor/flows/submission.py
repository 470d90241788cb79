"""A request for a run: the pipeline's file and parameters, and the data and the champion that they mean at that moment.

The same for a run of any engine, for a manifest that is only printed, and for a plan.
"""

from __future__ import annotations

import contextlib
from typing import Any

from shopfloor.errors import NotFoundError
from shopfloor.judging.gates import require_known
from shopfloor.pipeline.compilation import Compiled, compile_pipeline, parse_parameters, require_parameters, run_key
from shopfloor.records import Record
from shopfloor.registry import passport as registry
from shopfloor.runs import index as run_records
from shopfloor.runs.code_version import code_version
from shopfloor.runs.mlflow import RUN_KEY, Mlflow
from shopfloor.serving import assignment as assignments
from shopfloor.settings import Settings
from shopfloor.use_case import load_served_case


class Submission(Record):
    """What was asked for. It is recorded with the run, so that it can be asked for again."""

    file: str
    """Absolute path of the pipeline's file."""
    use_case: str | None
    given: list[str]
    """Parameters as the user gave them, `key=value`."""
    use_cache: bool = True
    from_step: str | None = None
    function: str | None = None
    """Name of one of the file's pipelines."""
    max_cost: float | None = None
    """What it may cost, in the currency of the profile's price table."""
    arguments: dict[str, Any] = {}
    """Every parameter that was given or resolved."""


def read(
    settings: Settings, file: str, use_case: str | None, parameters: list[str], function: str | None = None
) -> tuple[Compiled, dict[str, Any]]:
    """Compile a pipeline file and check what it is to be run with; asks no service.

    Returns:
        The pipeline, and its arguments as far as they were given.

    Raises:
        UsageError: It is not a pipeline, or a parameter or the use case is wrong.
    """
    compiled = compile_pipeline(settings, file, function)
    arguments = parse_parameters(compiled, parameters)
    if use_case is not None:
        arguments |= parse_parameters(compiled, [f"use_case={use_case}"])
    require_parameters(compiled, arguments)
    if "use_case" in arguments:
        require_known(settings, load_served_case(settings, arguments["use_case"]))
    return compiled, arguments


def resolve(settings: Settings, client: Any, compiled: Compiled, arguments: dict[str, Any]) -> str:
    """Fill in the data version and the champion as they are at this moment; return the run's key."""
    resolve_data(settings, compiled, arguments)
    key = run_key(settings, compiled, arguments)
    _resolve_champion(settings, client, compiled, arguments, key)
    return key


def origin(settings: Settings, key: str, submission: Submission) -> dict[str, str]:
    """Return the tags that say where a run comes from: its key, the code, what was asked for."""
    code = code_version(settings.project_root)
    return {
        RUN_KEY: key,
        "shopfloor.profile": settings.profile,
        run_records.COMMIT: code.commit,
        run_records.DIRTY: str(code.dirty).lower(),
        **run_records.submission_tags(submission.model_dump_json()),
    }


def resolve_data(settings: Settings, compiled: Compiled, arguments: dict[str, Any]) -> None:
    """Fill in the data version that `data_rev` names at this moment, so that the run's key holds the data's content."""
    declared = compiled.parameters
    if "data_version" in declared and "use_case" in arguments and not arguments.get("data_version"):
        from shopfloor.data.resolution import resolve

        arguments["data_version"] = resolve(settings, arguments["use_case"], arguments.get("data_rev", "")).md5


def _resolve_champion(settings: Settings, client: Any, compiled: Compiled, arguments: dict[str, Any], key: str) -> None:
    """Fill in the version to compare with: the champion.

    Where a run with this very key had made the champion, it is the version before: then nothing has changed.
    """
    declared = compiled.parameters
    if "champion" not in declared or "use_case" not in arguments or arguments.get("champion"):
        return
    model = arguments["use_case"]
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    version = assignments.read(mlflow, model).assignment.champion
    if version is not None:
        with contextlib.suppress(NotFoundError):
            passport = registry.read_passport(client, model, version)
            if passport.run_key == key:
                version = passport.champion
    arguments["champion"] = version or ""

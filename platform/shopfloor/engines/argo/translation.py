"""From KFP's intermediate representation to one Argo Workflow, with nothing asked of any server.

The same pipeline, arguments and settings always give the same manifest. What cannot be translated is refused with the
name of the task and the feature. `pipeline/conditions.py` lists what the workflow's expressions are made of.
"""

from __future__ import annotations

from typing import Any

from shopfloor.engines.argo import importers
from shopfloor.engines.argo.dag import Templates
from shopfloor.engines.argo.launcher import protect
from shopfloor.engines.argo.source import ENVELOPE_SUFFIX, Source, UnsupportedFeature, read
from shopfloor.engines.argo.values import constant
from shopfloor.engines.argo.workflow import cron_workflow, settled, workflow
from shopfloor.errors import UsageError
from shopfloor.pipeline.ir import Json, artifacts, as_json, broken, defaults, parameters, type_of
from shopfloor.settings import Settings

__all__ = ["UnsupportedFeature", "cron_workflow", "translate"]

_TYPES: dict[str, tuple[type, ...]] = {
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "STRING": (str,),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


def translate(
    ir: dict[str, Any],
    platforms: dict[str, Any],
    arguments: dict[str, Any],
    settings: Settings,
    run_id: str | None = None,
    use_cache: bool = True,
) -> dict[str, Any]:
    """Return the Argo Workflow that runs a compiled pipeline.

    Args:
        ir: KFP's `PipelineSpec` as JSON.
        platforms: KFP's platform configuration (`{"platforms": {"kubernetes": ...}}`), or empty.
        arguments: Values of the pipeline's parameters; of an input artifact, its URI.
        settings: Say how runs are made on the cluster.
        run_id: MLflow run that records it.
        use_cache: Whether steps may reuse results.

    Returns:
        The manifest, as plain JSON.

    Raises:
        UsageError: The IR is broken, an argument is missing or wrong, or the workflow would be too large.
        UnsupportedFeature: The pipeline uses what the engine does not translate.
    """
    source = read(ir, platforms)
    workflow_arguments, absent = _arguments(source, arguments)
    importers.check(source, source.root, defaults(source.root) | arguments)
    default_root = source.spec.default_pipeline_root or f"{settings.artifact_root}/kfp"
    templates = Templates(source, settings, run_id, use_cache, f"{protect(default_root)}/{{{{workflow.name}}}}")
    try:
        root = templates.dag(f"{source.name}/", source.root, absent)
        manifest = workflow(source, settings, templates, root, workflow_arguments, run_id)
    except RecursionError as error:
        raise broken("it nests too deeply") from error
    return settled(manifest)


def _arguments(source: Source, arguments: dict[str, Any]) -> tuple[list[Json], frozenset[str]]:
    """Return the workflow's arguments, and the inputs of the pipeline that have no value."""
    declared, declared_artifacts, default_values = (
        parameters(source.root),
        artifacts(source.root),
        defaults(source.root),
    )
    unknown = sorted(arguments.keys() - declared.keys() - declared_artifacts.keys())
    if unknown:
        names = ", ".join([*declared, *declared_artifacts])
        remedy = f"It has {names}." if names else "It has no parameters."
        raise UsageError(f"Pipeline {source.name!r} has no parameter {unknown[0]!r}.", remedy)
    workflow_arguments: list[Json] = []
    absent: set[str] = set()
    for name, definition in declared.items():
        kind = type_of(definition)
        value = arguments.get(name)
        if value is None:
            value = default_values.get(name)
        if value is None:
            if not definition.is_optional:
                raise UsageError(f"Pipeline {source.name!r} needs {name}.", f"Give it with -p {name}=value.")
            absent.add(name)
            continue
        types = _TYPES.get(kind, (object,))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types and object not in types):
            raise UsageError(f"Parameter {name!r} must be {kind}, not {value!r}.", f"Write -p {name}=...")
        workflow_arguments.append({"name": name, "value": constant(value, kind).text})
    for name, definition in declared_artifacts.items():
        uri = arguments.get(name)
        if uri is None:
            if not definition.is_optional:
                raise UnsupportedFeature(source.name, f"the input artifact {name!r} without a URI")
            absent.add(name)
            continue
        if not isinstance(uri, str) or "://" not in uri or definition.is_artifact_list:
            raise UnsupportedFeature(source.name, f"the input artifact {name!r} that is not given as one URI")
        envelope = {"name": name, "type": as_json(definition.artifact_type), "uri": uri, "metadata": {}, "key": "none"}
        workflow_arguments.append({"name": name + ENVELOPE_SUFFIX, "value": constant(envelope, "STRUCT").text})
    return workflow_arguments, frozenset(absent)

"""What a task is given: KFP's inputs as values of Argo, known now or made by an expression of the task's DAG."""

from __future__ import annotations

from shopfloor.engines.argo import source as ir
from shopfloor.engines.argo.containers import type_of
from shopfloor.engines.argo.launcher import ABSENT, encode
from shopfloor.engines.argo.source import ALWAYS, ENVELOPE_SUFFIX, Json, UnsupportedFeature, broken
from shopfloor.engines.argo.values import (
    NO_ARTIFACT,
    Value,
    constant,
    filled,
    final_status,
    from_input,
    from_task,
    from_task_if_any,
    given_inputs,
    holds_placeholder,
    if_succeeded,
    selected,
)


def arguments(
    dag: Json, name: str, task: Json, component: Json, absent: frozenset[str], pipeline_root: str
) -> dict[str, Value]:
    """Return what a task is given; an input that refers to something without a value is left out.

    Args:
        dag: Component around the task.
        name: The task's name.
        task: The task.
        component: Its component.
        absent: Inputs of the DAG that have no value.
        pipeline_root: Value of `{{$.pipeline_root}}`.
    """
    declared = ir.parameters(component)
    found: dict[str, Value] = {}
    waiting = given_inputs(task, "parameters")
    # Constants may embed the others.
    for embedding in (False, True):
        for input_name, spec in waiting.items():
            if holds_placeholder(spec.get("runtimeValue", {}).get("constant")) != embedding:
                continue
            value = value_of(dag, name, task, spec, declared.get(input_name), absent, found, pipeline_root)
            if value is not None:
                found[input_name] = value
    for input_name, spec in given_inputs(task, "artifacts").items():
        if "taskOutputArtifact" in spec:
            made = spec["taskOutputArtifact"]
            producer, key = made["producerTask"], made["outputArtifactKey"] + ENVELOPE_SUFFIX
            if _may_have_none(dag, task, producer):
                found[input_name] = if_succeeded(producer, from_task_if_any(producer, key), NO_ARTIFACT)
            else:
                found[input_name] = from_task(producer, key)
        elif spec.get("componentInputArtifact") and spec["componentInputArtifact"] not in absent:
            found[input_name] = from_input(spec["componentInputArtifact"] + ENVELOPE_SUFFIX)
    return found


def value_of(
    dag: Json,
    name: str,
    task: Json,
    spec: Json,
    definition: Json | None,
    absent: frozenset[str],
    others: dict[str, Value],
    pipeline_root: str,
) -> Value | None:
    """Return what KFP's `InputParameterSpec` stands for in a DAG, or `None` where that has no value.

    Args:
        dag: Component around the task.
        name: The task's name.
        task: The task.
        spec: What the input is given.
        definition: The input as its component declares it; `None` for one that only texts embed.
        absent: Inputs of the DAG that have no value.
        others: The task's other inputs.
        pipeline_root: Value of `{{$.pipeline_root}}`.
    """
    kind = type_of(definition or {})
    if "taskFinalStatus" in spec:
        return final_status(spec["taskFinalStatus"].get("producerTask", ""))
    selector = spec.get("parameterExpressionSelector")
    if "taskOutputParameter" in spec:
        producer, key = (spec["taskOutputParameter"][part] for part in ("producerTask", "outputParameterKey"))
        if not _may_have_none(dag, task, producer):
            value = from_task(producer, key)
            return selected(value, selector, kind, name) if selector else value
        value = from_task_if_any(producer, key)
        value = selected(value, selector, kind, name) if selector else value
        return if_succeeded(producer, value, _default(definition, kind))
    if "componentInputParameter" in spec:
        above = spec["componentInputParameter"]
        if above in absent:
            return None
        if above not in ir.parameters(dag):
            raise broken(f"task {name!r} refers to the input {above!r}, which nobody declares")
        value = from_input(above)
    elif "constant" in spec.get("runtimeValue", {}):
        given = spec["runtimeValue"]["constant"]
        if given is None:
            return None
        value = filled(given, others, name, pipeline_root) if holds_placeholder(given) else constant(given, kind)
    else:
        raise UnsupportedFeature(name, f"an input that is given as {', '.join(spec) or 'nothing'}")
    return selected(value, selector, kind, name) if selector else value


def _may_have_none(dag: Json, task: Json, producer: str) -> bool:
    """Tell whether a task runs also where one whose output it takes has failed, or has not run."""
    always: bool = task.get("triggerPolicy", {}).get("strategy") == ALWAYS
    return always or bool(dag["dag"]["tasks"].get(producer, {}).get("triggerPolicy", {}).get("condition"))


def _default(definition: Json | None, kind: str) -> str:
    """Return what an input has whose producer gave nothing."""
    if definition is None:
        return ""
    return encode(definition["defaultValue"], kind) if "defaultValue" in definition else ABSENT

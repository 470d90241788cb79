"""What a task is given: KFP's inputs as values of Argo, known now or made by an expression of the task's DAG."""

from __future__ import annotations

from shopfloor.engines.argo.launcher import ABSENT, encode
from shopfloor.engines.argo.source import ENVELOPE_SUFFIX, UnsupportedFeature
from shopfloor.engines.argo.values import (
    NO_ARTIFACT,
    Value,
    constant,
    filled,
    final_status,
    from_input,
    from_task,
    from_task_if_any,
    holds_placeholder,
    if_succeeded,
    selected,
)
from shopfloor.pipeline import ir
from shopfloor.pipeline.ir import Message, Origin, broken


def arguments(
    dag: Message, name: str, task: Message, component: Message, absent: frozenset[str], pipeline_root: str
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
    values: dict[str, Value] = {}
    # Constants may embed the others.
    for embedding in (False, True):
        for input_name, origin in ir.inputs(task, "parameters").items():
            if (origin.kind == "constant" and holds_placeholder(origin.value)) != embedding:
                continue
            value = value_of(dag, name, task, origin, declared.get(input_name), absent, values, pipeline_root)
            if value is not None:
                values[input_name] = value
    for input_name, origin in ir.inputs(task, "artifacts").items():
        if origin.kind == "output":
            key = origin.name + ENVELOPE_SUFFIX
            if _may_have_none(dag, task, origin.task):
                values[input_name] = if_succeeded(origin.task, from_task_if_any(origin.task, key), NO_ARTIFACT)
            else:
                values[input_name] = from_task(origin.task, key)
        elif origin.kind == "input" and origin.name not in absent:
            values[input_name] = from_input(origin.name + ENVELOPE_SUFFIX)
    return values


def value_of(
    dag: Message,
    name: str,
    task: Message,
    origin: Origin,
    definition: Message | None,
    absent: frozenset[str],
    others: dict[str, Value],
    pipeline_root: str,
) -> Value | None:
    """Return what an input is given in a DAG, or `None` where that has no value.

    Args:
        dag: Component around the task.
        name: The task's name.
        task: The task.
        origin: What the input is given.
        definition: The input as its component declares it; `None` for one that only texts embed.
        absent: Inputs of the DAG that have no value.
        others: The task's other inputs.
        pipeline_root: Value of `{{$.pipeline_root}}`.
    """
    kind = "STRING" if definition is None else ir.type_of(definition)
    if origin.kind == "status":
        return final_status(origin.task)
    if origin.kind == "output":
        if not _may_have_none(dag, task, origin.task):
            return _part(from_task(origin.task, origin.name), origin, kind, name)
        value = _part(from_task_if_any(origin.task, origin.name), origin, kind, name)
        return if_succeeded(origin.task, value, _default(definition, kind))
    if origin.kind == "input":
        if origin.name in absent:
            return None
        if origin.name not in ir.parameters(dag):
            raise broken(f"task {name!r} refers to the input {origin.name!r}, which nobody declares")
        return _part(from_input(origin.name), origin, kind, name)
    if origin.kind == "other":
        raise UnsupportedFeature(name, f"an input that is given as {origin.name}")
    if origin.value is None:
        return None
    embeds = holds_placeholder(origin.value)
    value = filled(origin.value, others, name, pipeline_root) if embeds else constant(origin.value, kind)
    return _part(value, origin, kind, name)


def _part(value: Value, origin: Origin, kind: str, task: str) -> Value:
    return selected(value, origin.selector, kind, task) if origin.selector else value


def _may_have_none(dag: Message, task: Message, producer: str) -> bool:
    """Tell whether a task runs also where one whose output it takes has failed, or has not run."""
    return ir.waits_for_all(task) or bool(dag.dag.tasks[producer].trigger_policy.condition)


def _default(definition: Message | None, kind: str) -> str:
    """Return what an input has whose producer gave nothing."""
    if definition is None:
        return ""
    return encode(ir.value(definition.default_value), kind) if definition.HasField("default_value") else ABSENT

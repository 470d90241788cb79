"""What a DAG and a loop give on: one task's output, that of the first of several which ran, or a list of all."""

from __future__ import annotations

import json

from shopfloor.engines.argo.launcher import ABSENT, NOWHERE
from shopfloor.engines.argo.source import ENVELOPE_SUFFIX, Source
from shopfloor.engines.argo.values import NO_ARTIFACT, Value, from_task
from shopfloor.pipeline import ir
from shopfloor.pipeline.conditions import literal
from shopfloor.pipeline.ir import Json, Message

ITERATION = "iteration"
"""Name of the one task in a loop's template."""


def of_dag(source: Source, component: Message, as_json: bool) -> list[Json]:
    """Return the output parameters of a DAG's template; what did not run gives `ABSENT`, or no artifact.

    Args:
        source: The pipeline.
        component: The DAG's component.
        as_json: Whether strings are given as JSON, as a loop needs them of its body.
    """
    parameters: list[Json] = []
    for output in ir.outputs(component, "parameters"):
        selectors = ir.selectors(component, "parameters", output)
        quoted = as_json and kind_of(source, component, selectors) == "STRING"
        parameters.append(_first(component, output, selectors, ABSENT, quoted))
    for output in ir.outputs(component, "artifacts"):
        selectors = ir.selectors(component, "artifacts", output)
        default = _no_artifacts(NOWHERE) if is_list(source, component, selectors) else NO_ARTIFACT
        envelopes = [(task, key + ENVELOPE_SUFFIX) for task, key in selectors]
        parameters.append(_first(component, output + ENVELOPE_SUFFIX, envelopes, default, False))
    return parameters


def of_loop(output: str, prefix: str) -> Json:
    """Return the output of a loop: the list of what its iterations gave; one that gave nothing is left out.

    Argo lists the texts of parameters, and parses them where all are lists or objects. So each is JSON when it comes,
    and what still is a text in the list is parsed here.

    Args:
        output: Name of the body's output.
        prefix: What the keys of the artifacts in the list have in common; empty for a parameter.
    """
    name = output + (ENVELOPE_SUFFIX if prefix else "")
    values = f"fromJSON({from_task(ITERATION, name).expression})"
    if prefix:
        default = _no_artifacts(prefix)
        before, after = default[: -len("[]}")], "}"
        full = f"toJson(filter({values}, #.key != {literal(NOWHERE)} || #.uri != ''))"
        full = f"{literal(before)} + {full} + {literal(after)}"
    else:
        default = "[]"
        absent = f"[{literal(ABSENT)}, {literal(json.dumps(ABSENT, ensure_ascii=False))}]"
        full = f"toJson(map(filter({values}, !(# in {absent})), type(#) == 'string' ? fromJSON(#) : #))"
    expression = f"tasks['{ITERATION}'].status == 'Succeeded' ? {full} : {literal(default)}"
    return {"name": name, "valueFrom": {"expression": expression, "default": default}}


def _first(component: Message, output: str, selectors: list[tuple[str, str]], default: str, quoted: bool) -> Json:
    values: list[tuple[str, Value]] = [(task, from_task(task, key)) for task, key in selectors]
    tasks = component.dag.tasks
    if len(values) == 1 and not quoted and not tasks[values[0][0]].trigger_policy.condition:
        return {"name": output, "valueFrom": {"parameter": values[0][1].text, "default": default}}
    expression = literal(default)
    for task, value in reversed(values):
        picked = f"toJson({value.expression})" if quoted else value.expression
        expression = f"(tasks['{task}'].status == 'Succeeded' ? {picked} : {expression})"
    return {"name": output, "valueFrom": {"expression": expression, "default": default}}


def kind_of(source: Source, component: Message, selectors: list[tuple[str, str]]) -> str:
    """Return the type of a DAG's output parameter: that of the task which gives it, however deep it stands.

    What a group around it declares is the type of the list into which a loop further up collects.
    """
    if not selectors:
        return "STRING"
    task = component.dag.tasks[selectors[0][0]]
    if ir.iterator(task) is not None:
        return "LIST"
    inner = source.component(task)
    if ir.is_dag(inner):
        return kind_of(source, inner, ir.selectors(inner, "parameters", selectors[0][1]))
    return ir.type_of(ir.outputs(inner, "parameters")[selectors[0][1]])


def is_list(source: Source, component: Message, selectors: list[tuple[str, str]]) -> bool:
    """Tell whether an output artifact is a list; the body of a loop declares one where it gives a single artifact."""
    for name, key in selectors:
        task = component.dag.tasks[name]
        inner = source.component(task)
        if ir.iterator(task) is not None or (
            ir.is_dag(inner) and is_list(source, inner, ir.selectors(inner, "artifacts", key))
        ):
            return True
    return False


def _no_artifacts(prefix: str) -> str:
    return json.dumps({"prefix": prefix, "items": []})

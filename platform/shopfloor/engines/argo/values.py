"""What Argo is told of a value: the text of a constant, a tag or an expression for what is known only at run time."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from shopfloor.engines.argo.launcher import PLACEHOLDER, encode, parts, protect
from shopfloor.engines.argo.source import UnsupportedFeature
from shopfloor.pipeline.conditions import literal

ROOT = "/tmp/shopfloor-step"  # noqa: S108  a volume of the pod's own
WORKSPACE = "/kfp-workspace"
_SELECTOR = re.compile(r"""parseJson\(string_value\)((?:\[(?:"[^"]*"|'[^']*')\])+)""")
_KEY = re.compile(r"""\[(?:"([^"]*)"|'([^']*)')\]""")
NO_ARTIFACT = json.dumps({"name": "", "type": {}, "uri": "", "metadata": {}, "key": "none"})
"""Envelope of an artifact that nobody made."""


@dataclass(frozen=True)
class Value:
    """A value in the two forms that Argo takes."""

    text: str
    """Literal text of an argument, with `{{...}}` where something is filled in."""
    expression: str
    """The same value within an expression."""


def constant(value: Any, kind: str) -> Value:
    """Return a constant of a parameter's type."""
    text = encode(value, kind)
    return Value(text, literal(text))


def from_input(name: str) -> Value:
    """Return an input of the template."""
    return Value(f"{{{{inputs.parameters.{name}}}}}", f"inputs.parameters['{name}']")


def from_task(task: str, name: str) -> Value:
    """Return an output of a task."""
    return Value(f"{{{{tasks.{task}.outputs.parameters.{name}}}}}", f"tasks['{task}'].outputs.parameters['{name}']")


def from_task_if_any(task: str, name: str) -> Value:
    """Return an output of a task that may have none; what stands around it must ask whether the task succeeded."""
    # Argo puts a task off for ever whose expressions name an output that is not there, also in a branch not taken.
    # It does not look into a name that is computed.
    return computed(f"tasks['{task}']['out' + 'puts'].parameters['{name}']")


def if_succeeded(task: str, value: Value, otherwise: str) -> Value:
    """Return `value` where a task succeeded, else the text `otherwise`."""
    return computed(f"(tasks['{task}'].status == 'Succeeded' ? {value.expression} : {literal(otherwise)})")


def computed(expression: str) -> Value:
    """Return the value of an expression."""
    return Value(f"{{{{={expression}}}}}", expression)


def selected(value: Value, selector: str, kind: str, task: str) -> Value:
    """Return a part of a JSON value, as `parseJson(string_value)["key"]` picks it.

    Raises:
        UnsupportedFeature: The selector is of another form.
    """
    match = _SELECTOR.fullmatch(selector.strip())
    if match is None:
        raise UnsupportedFeature(task, f"the expression {selector!r}")
    keys = [first or second for first, second in _KEY.findall(match[1])]
    path = "$" + "".join(f".{key}" if key.isidentifier() else f"['{key}']" for key in keys)
    picked = f"jsonpath({value.expression}, {literal(path)})"
    return computed(picked if kind == "STRING" else f"toJson({picked})")


def final_status(task: str) -> Value:
    """Return KFP's `PipelineTaskFinalStatus` of a task, as JSON."""
    # The name of the workflow comes from Kubernetes: nothing in it needs an escape.
    head = json.dumps({"pipelineTaskName": task})[:-1] + ', "pipelineJobResourceName": "'
    failed = json.dumps({"state": "FAILED", "error": {"code": 1, "message": f"Task {task} failed."}})
    succeeded = json.dumps({"state": "SUCCEEDED", "error": {}})
    status = f"tasks['{task}'].status"
    end = (
        f"({status} == 'Succeeded' || {status} == 'Skipped' ? "
        f"{literal(', ' + succeeded[1:])} : {literal(', ' + failed[1:])})"
    )
    return computed(f"{literal(head)} + workflow.name + {literal(chr(34))} + {end}")


def facts(pipeline_root: str) -> dict[str, Value]:
    """Return what KFP's placeholders say of a run, but for what each task and pod has of its own.

    Args:
        pipeline_root: Value of `{{$.pipeline_root}}`.
    """
    workflow, uid, created = (
        Value(f"{{{{workflow.{fact}}}}}", f"workflow.{fact}") for fact in ("name", "uid", "creationTimestamp.RFC3339")
    )
    return {
        "pipeline_job_name": workflow,
        "pipeline_job_resource_name": workflow,
        "pipeline_job_uuid": uid,
        "pipeline_job_create_time_utc": created,
        # Argo knows a scheduled time only of what a CronWorkflow made. It does not look into a name that is computed.
        "pipeline_job_schedule_time_utc": computed(f"(workflow['scheduled' + 'Time'] ?? {created.expression})"),
        "pipeline_root": Value(pipeline_root, literal(pipeline_root)),
        "workspace_path": constant(WORKSPACE, "STRING"),
    }


def embedded(text: str, inputs: dict[str, Value], task: str, pipeline_root: str) -> Value:
    """Return a constant string in which KFP fills in other inputs of the task and facts of the run.

    Args:
        text: The constant.
        inputs: The task's inputs by name.
        task: Its name.
        pipeline_root: Value of `{{$.pipeline_root}}`.
    """
    known = {**facts(pipeline_root), "pipeline_task_name": constant(task, "STRING")}
    texts: list[str] = []
    expressions: list[str] = []
    at = 0
    for match in PLACEHOLDER.finditer(text):
        path = parts(match[1])
        value = inputs.get(path[2]) if path[:2] == ["inputs", "parameters"] and len(path) == 3 else None
        if value is None and len(path) == 1:
            value = known.get(path[0])
        if value is None:
            # `pipeline_task_uuid` and the like: known in the pod, where the launcher fills them in.
            continue
        before = protect(text[at : match.start()])
        texts += [before, value.text]
        expressions += [literal(before), value.expression] if before else [value.expression]
        at = match.end()
    rest = protect(text[at:])
    if rest or not expressions:
        expressions.append(literal(rest))
    return Value("".join([*texts, rest]), expressions[0] if len(expressions) == 1 else f"({' + '.join(expressions)})")


def holds_placeholder(constant: Any) -> bool:
    """Tell whether KFP fills something in somewhere in a constant."""
    return bool(PLACEHOLDER.search(constant if isinstance(constant, str) else json.dumps(constant)))


def filled(constant: Any, inputs: dict[str, Value], task: str, pipeline_root: str) -> Value:
    """Return a constant in whose texts KFP fills other inputs of the task and facts of the run in.

    Args:
        constant: The constant: text, or a list or dict that holds text.
        inputs: The task's inputs by name.
        task: Its name.
        pipeline_root: Value of `{{$.pipeline_root}}`.
    """
    if isinstance(constant, str):
        return embedded(constant, inputs, task, pipeline_root)
    pieces: list[str] = []

    def text(plain: str) -> None:
        pieces.append(literal(protect(plain)))

    def add(value: Any) -> None:
        if isinstance(value, str) and PLACEHOLDER.search(value):
            pieces.append(f"toJson({embedded(value, inputs, task, pipeline_root).expression})")
        elif isinstance(value, dict) and value:
            for number, (key, item) in enumerate(value.items()):
                text(", " if number else "{")
                add(key)
                text(": ")
                add(item)
            text("}")
        elif isinstance(value, list) and value:
            for number, item in enumerate(value):
                text(", " if number else "[")
                add(item)
            text("]")
        else:
            pieces.append(literal(encode(value, "STRUCT")))

    add(constant)
    return computed(f"({' + '.join(pieces)})")

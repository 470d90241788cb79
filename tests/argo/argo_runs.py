"""Runs a pipeline as a translated Workflow in the interpreter and tells what each step did."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shopfloor.engines.argo.launcher import ENVELOPE, decode, reveal
from shopfloor.engines.argo.outputs import ITERATION
from shopfloor.engines.argo.translation import translate
from shopfloor.settings import Settings

from tests.argo import interpreter
from tests.argo.dag import FAILED, ON_EXIT, Node
from tests.argo.steps import Artifact, Outcome, Step, content


def run(
    ir: dict[str, Any],
    platforms: dict[str, Any],
    arguments: dict[str, Any],
    settings: Settings,
    place: Path,
    secrets: dict[str, dict[str, str]] | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[Outcome, interpreter.Result]:
    """Translate and run a pipeline.

    Args:
        ir: KFP's `PipelineSpec` as JSON.
        platforms: Its platform configuration.
        arguments: Values of its parameters.
        settings: Of the cluster.
        place: Empty directory for what it leaves.
        secrets: Secrets and config maps of the namespace.
        environment: Variables of every container.
    """
    manifest = translate(ir, platforms, arguments, settings)
    result = interpreter.run(manifest, place, secrets, environment)
    name = manifest["metadata"]["generateName"] + "x1y2z"
    bucket = result.bucket / manifest["metadata"]["namespace"] / "workflows" / name
    return outcome_of(ir, result.nodes.values(), result.phase, bucket), result


def outcome_of(ir: dict[str, Any], nodes: Iterable[Node], phase: str, bucket: Path) -> Outcome:
    """Return what became of a pipeline by the nodes of its Workflow.

    Args:
        ir: KFP's `PipelineSpec` as JSON.
        nodes: The nodes, the workflow's own among them.
        phase: The workflow's.
        bucket: Directory that holds its artifacts.
    """
    handler_failed = False
    steps: dict[tuple[str, ...], Step] = {}
    outputs: dict[str, Any] = {}
    logs: list[str] = []
    for node in nodes:
        if node.attempt or node.kind not in {"Pod", "Retry", "DAG"}:
            continue
        handler_failed |= node.path[-1:] == (ON_EXIT,) and node.phase in FAILED
        path = tuple(_names(node.path, ir))
        component = _component(ir, path)
        if not node.path:
            outputs = _outputs(component, node, bucket) if node.phase == "Succeeded" else {}
        elif "dag" not in component:
            succeeded = node.phase == "Succeeded"
            steps[path] = Step(succeeded, _outputs(component, node, bucket) if succeeded else {})
            logs.append(f"--- {'/'.join(path)}: {node.phase} {node.message}\n{node.log()}")
    # As the engine has it: Argo itself lets a run succeed whose exit task failed.
    return Outcome(phase == "Succeeded" and not handler_failed, steps, outputs, "\n".join(logs))


def _names(path: tuple[str | int, ...], ir: dict[str, Any]) -> list[str]:
    """Return KFP's path of a node: a loop's task, the one task in its template and the number are one name."""
    names: list[str] = []
    for part in path:
        if isinstance(part, int):
            names[-1] += f"-iteration-{part}"
        elif part == ON_EXIT:
            group = names.pop()
            names.append(_handler(_component(ir, tuple(names)), group))
        elif part != ITERATION:
            names.append(part)
    return names


def _handler(component: dict[str, Any], group: str) -> str:
    """Return the exit task of a group."""
    return next(name for name, task in component["dag"]["tasks"].items() if group in task.get("dependentTasks", []))


def _component(ir: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    component: dict[str, Any] = ir["root"]
    for part in path:
        task = component["dag"]["tasks"][part.partition("-iteration-")[0]]
        component = ir["components"][task["componentRef"]["name"]]
    return component


def _outputs(component: dict[str, Any], node: Node, bucket: Path) -> dict[str, Any]:
    declared = component.get("outputDefinitions", {})
    outputs: dict[str, Any] = {}
    for name, definition in declared.get("parameters", {}).items():
        outputs[name] = decode(node.parameters[name], definition.get("parameterType", "STRING"))
    for name in declared.get("artifacts", {}):
        outputs[name] = _artifact(json.loads(reveal(node.parameters[name + ENVELOPE])), bucket)
    return outputs


def _artifact(envelope: dict[str, Any], bucket: Path) -> Any:
    if "items" in envelope:
        return [_artifact(item, bucket) for item in envelope["items"]]
    return Artifact(
        envelope["name"],
        envelope["type"].get("schemaTitle", ""),
        envelope["metadata"],
        content(bucket / envelope["key"]),
    )

"""Runs a pipeline as a translated Workflow on a real cluster and tells what each step did."""

import json
import re
from collections.abc import Iterator
from typing import Any

from shopfloor.engines.argo.outputs import ITERATION
from shopfloor.engines.argo.translation import translate

from tests.argo.argo_runs import outcome_of
from tests.argo.dag import ON_EXIT, Node
from tests.argo.steps import Outcome
from tests.support.cluster import Cluster


def run(
    ir: dict[str, Any],
    platforms: dict[str, Any],
    arguments: dict[str, Any],
    cluster: Cluster,
    pod: dict[str, Any] | None = None,
) -> Outcome:
    """Translate a pipeline, create its Workflow, and wait for the end.

    Args:
        ir: KFP's `PipelineSpec` as JSON.
        platforms: Its platform configuration.
        arguments: Values of its parameters.
        cluster: Where it runs.
        pod: What is changed in the specification of every pod, as somebody's policy may.
    """
    manifest = translate(ir, platforms, arguments, cluster.settings)
    if pod is not None:
        manifest["spec"]["podSpecPatch"] = json.dumps(pod)
    workflow = cluster.ended(cluster.create(manifest))
    status, name = workflow["status"], workflow["metadata"]["name"]
    bucket = cluster.bucket / cluster.namespace / "workflows" / name
    outcome = outcome_of(ir, nodes_of(workflow), status["phase"], bucket)
    if status["phase"] != "Succeeded":
        outcome.logs += cluster.log(name)
    return outcome


def nodes_of(workflow: dict[str, Any]) -> Iterator[Node]:
    """Yield the nodes of a real workflow in the form that the interpreter has for its own."""
    nodes = workflow["status"].get("nodes", {})
    retries = [node for node in nodes.values() if node["type"] == "Retry"]
    attempts = {child for node in retries for child in node.get("children", [])}
    for number, node in nodes.items():
        parameters = node.get("outputs", {}).get("parameters", [])
        yield Node(
            name=node["name"],
            kind=node["type"],
            path=tuple(_path(node, nodes)),
            phase=node["phase"],
            message=node.get("message", ""),
            parameters={item["name"]: item.get("value", "") for item in parameters},
            attempt=number in attempts,
        )


def _path(node: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> list[str | int]:
    """Return the tasks and the numbers of items from the entrypoint down to a node."""
    if not node.get("boundaryID"):
        return []
    path = _path(nodes[node["boundaryID"]], nodes)
    title = node["displayName"]
    # An item of a loop is called `iteration(2:its text)`, which may hold anything; an attempt `task(0)`.
    item = re.match(rf"{ITERATION}\((\d+):", title)
    if item:
        return [*path, ITERATION, int(item[1])]
    title = re.sub(r"(\(\d+\))+$", "", title)
    task = title.removesuffix(f".{ON_EXIT}")
    return [*path, task] if task == title else [*path, task, ON_EXIT]

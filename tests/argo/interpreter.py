"""Executes an Argo Workflow on this machine: Argo's controller in small, with processes for the containers.

It follows argo-workflows 4 (workflow/controller/{dag,operator,scope,steps,exit_handler}.go, workflow/common/util.go).
Where the supported versions 3.7 to 4.1 differ, it does what the strictest of them does: a task that names an output
which is not there is put off for ever, also where the name stands in a branch not taken, and a skipped task gives none.
Waiting is not waited for.
"""

import copy
import functools
import json
import re
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.argo import expressions, golang, manifest, pods
from tests.argo.dag import FAILED, Dag, Node, Scope
from tests.argo.expressions import UnknownFeature
from tests.argo.manifest import Json
from tests.argo.tags import ArgoError, substitute, tags


@dataclass
class Result:
    """What became of a workflow."""

    phase: str
    nodes: dict[str, Node]
    events: list[tuple[str, str]]
    """`started` and `finished`, and the node, in their order."""
    bucket: Path
    resources: list[tuple[str, Any]]
    """Action and manifest of each resource template, in their order."""
    outputs: dict[str, str]
    """Global output parameters."""

    def node(self, name: str) -> Node:
        """Return the node of a name below the workflow's own."""
        return next(node for path, node in self.nodes.items() if path.partition(".")[2] == name)

    def most_at_once(self, names: str) -> int:
        """Return how many of the nodes whose name matches ran at the same time."""
        running = most = 0
        for event, name in self.events:
            if re.search(names, name):
                running += 1 if event == "started" else -1
                most = max(most, running)
        return most


def run(
    workflow: Json,
    place: Path,
    secrets: dict[str, dict[str, str]] | None = None,
    environment: dict[str, str] | None = None,
    name: str = "",
    workers: int = 2,
) -> Result:
    """Run a Workflow to its end.

    Args:
        workflow: The manifest.
        place: Empty directory for its pods, volumes and bucket.
        secrets: Secrets and config maps of the namespace.
        environment: Variables of every container.
        name: Name of the workflow where the manifest has but its beginning.
        workers: How many processes may run at once.

    Raises:
        ArgoError: Argo would refuse the workflow when it is submitted.
        UnknownFeature: The interpreter does not know what it asks for.
    """
    manifest.admit(workflow)
    metadata = workflow.get("metadata", {})
    name = name or metadata.get("name") or metadata.get("generateName", "workflow-") + "x1y2z"
    machine = pods.Machine(place, secrets or {}, environment or {})
    return _Controller(workflow, name, machine, workers).run()


class _Controller:
    def __init__(self, workflow: Json, name: str, machine: pods.Machine, workers: int) -> None:
        self._spec = workflow["spec"]
        self._name = name
        self._machine = machine
        self.templates = {template["name"]: template for template in self._spec["templates"]}
        self._claims = [claim["metadata"]["name"] for claim in self._spec.get("volumeClaimTemplates", [])]
        self._nodes: dict[str, Node] = {}
        self._events: list[tuple[str, str]] = []
        self._resources: list[tuple[str, Any]] = []
        self.outputs: dict[str, str] = {}
        self._lock = threading.Lock()
        self.broken: Exception | None = None
        self._slots = threading.Semaphore(min(workers, int(self._spec.get("parallelism", workers))))
        created = "2026-11-20T00:00:00Z"
        parameters = self._spec.get("arguments", {}).get("parameters", [])
        self.globals: Scope = {
            "workflow.name": name,
            "workflow.uid": str(uuid.UUID(int=7)),
            "workflow.namespace": workflow.get("metadata", {}).get("namespace", "default"),
            "workflow.mainEntrypoint": self._spec["entrypoint"],
            "workflow.serviceAccountName": self._spec.get("serviceAccountName", "default"),
            "workflow.creationTimestamp": created,
            "workflow.creationTimestamp.RFC3339": created,
            "workflow.parameters": golang.dump(parameters),
            **{f"workflow.parameters.{item['name']}": item["value"] for item in parameters},
        }

    def run(self) -> Result:
        """Run the entrypoint, then the exit handler."""
        root = self.execute(self._name, self._spec["entrypoint"], self._spec.get("arguments", {}), ())
        phase = root.phase
        hook = self._spec.get("hooks", {}).get("exit") or (
            {"template": self._spec["onExit"]} if self._spec.get("onExit") else None
        )
        if hook and not self.broken:
            self.globals["workflow.status"] = phase
            failures = [node for node in self._nodes.values() if node.phase in FAILED and node.kind == "Pod"]
            self.globals["workflow.failures"] = golang.dump(
                [{"displayName": node.name.rpartition(".")[2], "message": node.message} for node in failures]
            )
            arguments = substitute(hook.get("arguments", {}), self.globals)
            ended = self.execute(f"{self._name}.onExit", hook["template"], arguments)
            # A workflow that succeeded is unsuccessful where its exit handler was.
            phase = ended.phase if ended.phase in FAILED else phase
        if self.broken:
            raise self.broken
        return Result(phase, self._nodes, self._events, self._machine.bucket, self._resources, self.outputs)

    def execute(
        self, name: str, template_name: str, arguments: Json, path: tuple[str | int, ...] = ("onExit",)
    ) -> Node:
        """Run a template; what goes wrong with it is the node's phase."""
        original = self.templates[template_name]
        kind = next(kind for kind in ("container", "containerSet", "dag", "resource", "suspend") if kind in original)
        kinds = {"container": "Pod", "containerSet": "Pod", "dag": "DAG"}
        node = Node(name, kinds.get(kind, kind.title()), path, template_name)
        retried = "retryStrategy" in original
        if retried:
            node.kind = "Retry"
        self.add(node)
        try:
            local: Scope = {"node.name": name}
            if kind in {"container", "containerSet", "resource"} and not retried:
                local["pod.name"] = node.pod = self._pod_name(name, template_name)
            template = self._filled(original, arguments, local)
            node.inputs = {item["name"]: item["value"] for item in template.get("inputs", {}).get("parameters", [])}
            if retried:
                self._retry(node, template, original)
            else:
                self._once(node, template, original)
        except ArgoError as error:
            node.phase, node.message = "Error", str(error)
        self.finish(node, original)
        return node

    def _once(self, node: Node, template: Json, original: Json) -> None:
        if "dag" in template:
            Dag(self, node, template).run()
            return
        unresolved = [tag for tag in tags(original) if tag.startswith("=") and tag in set(tags(template))]
        if unresolved:
            raise ArgoError(f"unresolved: {{{{{unresolved[0]}}}}}")
        if "container" in template or "containerSet" in template:
            self._pod(node, template)
        elif "resource" in template:
            self._resource(node, template)
        else:
            node.phase = "Succeeded"

    def _retry(self, node: Node, template: Json, original: Json) -> None:
        strategy = template["retryStrategy"]
        policy = strategy.get("retryPolicy", "OnFailure")
        if policy not in {"Always", "OnFailure", "OnError"}:
            raise UnknownFeature(f"the retry policy {policy!r}")
        backoff = strategy.get("backoff", {})
        wait, longest = seconds(backoff.get("duration", "0")), seconds(backoff.get("maxDuration", "0"))
        number = 0
        while True:
            kind = "DAG" if "dag" in template else "Pod"
            child = Node(f"{node.name}({number})", kind, node.path, node.template, inputs=node.inputs, attempt=True)
            local: Scope = {"retries": str(number)}
            if kind == "Pod":
                local["pod.name"] = child.pod = self._pod_name(child.name, node.template)
            self.add(child)
            node.children.append(child)
            try:
                self._once(child, _substituted(template, self.globals, local), original)
            except ArgoError as error:
                child.phase, child.message = "Error", str(error)
            self.finish(child, {})
            node.phase, node.message, node.exit_code = child.phase, child.message, child.exit_code
            node.parameters, node.artifacts, node.outputs = child.parameters, child.artifacts, child.outputs
            node.log = child.log
            phases = {"Always": FAILED, "OnFailure": ("Failed",), "OnError": ("Error",)}[policy]
            last = {"status": child.phase, "exitCode": str(child.exit_code or 0), "message": child.message}
            allowed = expressions.evaluate(strategy.get("expression", "true"), {"lastRetry": last})
            if child.phase not in phases or not allowed or number >= int(strategy["limit"]):
                return
            node.waited_s += wait * int(backoff.get("factor", 1)) ** number
            if longest and node.waited_s > longest:
                node.message = "Max duration limit exceeded"
                return
            number += 1

    def _pod(self, node: Node, template: Json) -> None:
        if "podSpecPatch" in template:
            try:
                node.patch = json.loads(template["podSpecPatch"])
            except ValueError as error:
                raise ArgoError(f"podSpecPatch is no JSON: {error}") from error
        with self._slots:
            self._event("started", node.pod)
            try:
                ended, node.log = pods.run(self._machine, node.pod, template, self._claims)
            finally:
                self._event("finished", node.pod)
        node.exit_code, node.parameters, node.artifacts = ended.exit_code, ended.parameters, ended.artifacts
        node.outputs = True
        if ended.exit_code:
            node.phase, node.message = "Failed", f"Error (exit code {ended.exit_code})"
        elif ended.problem:
            node.phase, node.message = "Error", ended.problem
        else:
            node.phase = "Succeeded"

    def _resource(self, node: Node, template: Json) -> None:
        import yaml

        text = template["resource"]["manifest"]
        try:
            resource = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ArgoError(f"the manifest is no YAML: {text}") from error
        with self._lock:
            self._resources.append((template["resource"]["action"], resource))
        for item in template.get("outputs", {}).get("parameters", []):
            value = resource
            for key in item["valueFrom"]["jsonPath"].strip("{}").split(".")[1:]:
                value = value[key]
            node.parameters[item["name"]] = str(value)
        node.outputs, node.phase = True, "Succeeded"

    def _filled(self, template: Json, arguments: Json, local: Scope) -> Json:
        """Return a template with its inputs and what they stand for."""
        filled = copy.deepcopy(template)
        parameters = {item["name"]: item for item in arguments.get("parameters", [])}
        for item in filled.get("inputs", {}).get("parameters", []):
            name = item["name"]
            value = parameters.get(name, {}).get("value", item.get("value", item.get("default")))
            if value is None:
                raise ArgoError(f"inputs.parameters.{name} was not supplied")
            item["value"] = value
        supplied = {item["name"]: item for item in arguments.get("artifacts", [])}
        for item in filled.get("inputs", {}).get("artifacts", []):
            if "s3" not in item:
                if item["name"] not in supplied and not item.get("optional"):
                    raise ArgoError(f"inputs.artifacts.{item['name']} was not supplied")
                item |= {
                    key: supplied.get(item["name"], {})[key] for key in {"s3"} & supplied.get(item["name"], {}).keys()
                }
        return _substituted(filled, self.globals, local)

    def _pod_name(self, node: str, template: str) -> str:
        code = functools.reduce(lambda total, byte: ((total ^ byte) * 16777619) % 2**32, node.encode(), 2166136261)
        return f"{self._name}-{template}-{code}"

    def add(self, node: Node) -> None:
        with self._lock:
            self._nodes[node.name] = node
        if node.kind != "Skipped":
            self._event("started", node.name)

    def finish(self, node: Node, template: Json) -> None:
        for item in template.get("outputs", {}).get("parameters", []):
            if item.get("globalName") and item["name"] in node.parameters:
                with self._lock:
                    self.outputs[item["globalName"]] = node.parameters[item["name"]]
        self._event("finished", node.name)

    def _event(self, event: str, name: str) -> None:
        with self._lock:
            self._events.append((event, name))


def _substituted(template: Json, global_: Scope, local: Scope) -> Json:
    """Replace a template's tags: first what all share, then its inputs."""
    # A mistake in one of the tags is found when what it stands in is used.
    half = substitute(template, global_ | local)
    inputs, outputs = half.get("inputs", {}), half.get("outputs", {})
    scope: Scope = global_ | local
    scope |= {f"inputs.parameters.{item['name']}": item["value"] for item in inputs.get("parameters", [])}
    scope["inputs.parameters"] = golang.dump(inputs.get("parameters", []))
    scope |= {
        f"inputs.artifacts.{item['name']}.path": item["path"] for item in inputs.get("artifacts", []) if "path" in item
    }
    scope |= {
        f"outputs.artifacts.{item['name']}.path": item["path"]
        for item in outputs.get("artifacts", [])
        if "path" in item
    }
    scope |= {
        f"outputs.parameters.{item['name']}.path": item["valueFrom"]["path"]
        for item in outputs.get("parameters", [])
        if "path" in item.get("valueFrom", {})
    }
    result: Json = substitute(half, scope)
    return result


def seconds(duration: str) -> float:
    """Return a duration as Argo reads it: seconds, or Go's notation."""
    if re.fullmatch(r"\d+", duration):
        return float(duration)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", duration)
    if "".join(number + unit for number, unit in parts) != duration:
        raise ArgoError(f"unable to parse {duration!r} as a duration")
    return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for number, unit in parts)

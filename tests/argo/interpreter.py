"""Executes an Argo Workflow on this machine: Argo's controller in small, with processes for the containers.

It follows argo-workflows 4 (workflow/controller/{dag,operator,scope,steps,exit_handler}.go, workflow/common/util.go).
Where the supported versions 3.7 to 4.1 differ, it does what the strictest of them does: a task that names an output
which is not there is put off for ever, also where the name stands in a branch not taken, and a skipped task gives none.
Waiting is not waited for.
"""

import copy
import functools
import json
import queue
import re
import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.argo import expressions, golang, manifest, pods
from tests.argo.expressions import ExpressionError, UnknownFeature
from tests.argo.manifest import Json
from tests.argo.tags import ArgoError, holds, substitute, tags

ON_EXIT = "onExit"
FAILED = ("Failed", "Error")
COMPLETED = ("Succeeded", *FAILED)
Known = dict[str, str | None]


@dataclass
class Node:
    """What became of one task, one item of a loop, one attempt, or the workflow."""

    name: str
    kind: str
    """Pod, DAG, Retry, TaskGroup, Skipped, Resource, Suspend."""
    path: tuple[str | int, ...] = ()
    """Task and, in a loop, number of the item, from the entrypoint down."""
    template: str = ""
    phase: str = "Running"
    message: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    """Output artifacts that are there: name to key."""
    outputs: bool = False
    """Whether it has outputs at all."""
    children: list["Node"] = field(default_factory=list)
    """Items of a loop, or attempts."""
    attempt: bool = False
    """Whether it is one of several attempts, which have a node above them."""
    exit_code: int | None = None
    pod: str = ""
    waited_s: float = 0.0
    """How long a retry would have waited in all."""
    log: Callable[[], str] = str
    patch: Any = None


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
        self._templates = {template["name"]: template for template in self._spec["templates"]}
        self._claims = [claim["metadata"]["name"] for claim in self._spec.get("volumeClaimTemplates", [])]
        self._nodes: dict[str, Node] = {}
        self._events: list[tuple[str, str]] = []
        self._resources: list[tuple[str, Any]] = []
        self._outputs: dict[str, str] = {}
        self._lock = threading.Lock()
        self._broken: Exception | None = None
        self._slots = threading.Semaphore(min(workers, int(self._spec.get("parallelism", workers))))
        created = "2026-11-20T00:00:00Z"
        parameters = self._spec.get("arguments", {}).get("parameters", [])
        self._globals: Known = {
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
        root = self._execute(self._name, self._spec["entrypoint"], self._spec.get("arguments", {}), ())
        phase = root.phase
        hook = self._spec.get("hooks", {}).get("exit") or (
            {"template": self._spec["onExit"]} if self._spec.get("onExit") else None
        )
        if hook and not self._broken:
            self._globals["workflow.status"] = phase
            failures = [node for node in self._nodes.values() if node.phase in FAILED and node.kind == "Pod"]
            self._globals["workflow.failures"] = golang.dump(
                [{"displayName": node.name.rpartition(".")[2], "message": node.message} for node in failures]
            )
            arguments = substitute(hook.get("arguments", {}), self._globals)
            ended = self._execute(f"{self._name}.onExit", hook["template"], arguments)
            # A workflow that succeeded is unsuccessful where its exit handler was.
            phase = ended.phase if ended.phase in FAILED else phase
        if self._broken:
            raise self._broken
        return Result(phase, self._nodes, self._events, self._machine.bucket, self._resources, self._outputs)

    def _execute(
        self, name: str, template_name: str, arguments: Json, path: tuple[str | int, ...] = ("onExit",)
    ) -> Node:
        """Run a template; what goes wrong with it is the node's phase."""
        original = self._templates[template_name]
        kind = next(kind for kind in ("container", "containerSet", "dag", "resource", "suspend") if kind in original)
        kinds = {"container": "Pod", "containerSet": "Pod", "dag": "DAG"}
        node = Node(name, kinds.get(kind, kind.title()), path, template_name)
        retried = "retryStrategy" in original
        if retried:
            node.kind = "Retry"
        self._add(node)
        try:
            local: Known = {"node.name": name}
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
        self._finish(node, original)
        return node

    def _once(self, node: Node, template: Json, original: Json) -> None:
        if "dag" in template:
            _Dag(self, node, template).run()
            return
        left = [tag for tag in tags(original) if tag.startswith("=") and tag in set(tags(template))]
        if left:
            raise ArgoError(f"unresolved: {{{{{left[0]}}}}}")
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
            local: Known = {"retries": str(number)}
            if kind == "Pod":
                local["pod.name"] = child.pod = self._pod_name(child.name, node.template)
            self._add(child)
            node.children.append(child)
            try:
                self._once(child, _substituted(template, self._globals, local), original)
            except ArgoError as error:
                child.phase, child.message = "Error", str(error)
            self._finish(child, {})
            node.phase, node.message, node.exit_code = child.phase, child.message, child.exit_code
            node.parameters, node.artifacts, node.outputs = child.parameters, child.artifacts, child.outputs
            node.log = child.log
            wanted = {"Always": FAILED, "OnFailure": ("Failed",), "OnError": ("Error",)}[policy]
            if child.phase not in wanted or number >= int(strategy["limit"]):
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
            made = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ArgoError(f"the manifest is no YAML: {text}") from error
        with self._lock:
            self._resources.append((template["resource"]["action"], made))
        for item in template.get("outputs", {}).get("parameters", []):
            value = made
            for key in item["valueFrom"]["jsonPath"].strip("{}").split(".")[1:]:
                value = value[key]
            node.parameters[item["name"]] = str(value)
        node.outputs, node.phase = True, "Succeeded"

    def _filled(self, template: Json, arguments: Json, local: Known) -> Json:
        """Return a template with its inputs and what they stand for."""
        filled = copy.deepcopy(template)
        given = {item["name"]: item for item in arguments.get("parameters", [])}
        for item in filled.get("inputs", {}).get("parameters", []):
            name = item["name"]
            value = given.get(name, {}).get("value", item.get("value", item.get("default")))
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
        return _substituted(filled, self._globals, local)

    def _pod_name(self, node: str, template: str) -> str:
        code = functools.reduce(lambda made, byte: ((made ^ byte) * 16777619) % 2**32, node.encode(), 2166136261)
        return f"{self._name}-{template}-{code}"

    def _add(self, node: Node) -> None:
        with self._lock:
            self._nodes[node.name] = node
        if node.kind != "Skipped":
            self._event("started", node.name)

    def _finish(self, node: Node, template: Json) -> None:
        for item in template.get("outputs", {}).get("parameters", []):
            if item.get("globalName") and item["name"] in node.parameters:
                with self._lock:
                    self._outputs[item["globalName"]] = node.parameters[item["name"]]
        self._event("finished", node.name)

    def _event(self, event: str, name: str) -> None:
        with self._lock:
            self._events.append((event, name))


class _Dag:
    """One execution of a DAG template."""

    def __init__(self, controller: _Controller, node: Node, template: Json) -> None:
        self._controller = controller
        self._node = node
        self._template = template
        self._dag = template["dag"]
        self._tasks = {task["name"]: task for task in self._dag["tasks"]}
        self._needs = {name: manifest.dependencies(task) for name, task in self._tasks.items()}
        limit = template.get("parallelism")
        self._limit = threading.Semaphore(int(limit)) if limit else None
        self._done: dict[str, Node] = {}

    def run(self) -> None:
        """Run the target tasks and what they wait for, and give the node its phase and outputs."""
        targets = self._dag["target"].split(" ") if self._dag.get("target") else manifest.leaves(self._dag)
        waiting = [
            name
            for name in self._tasks
            if name in targets or any(name in self._ancestors(target) for target in targets)
        ]
        ended: queue.Queue[Node | Exception] = queue.Queue()
        running = 0
        while waiting or running:
            for name in [name for name in waiting if all(other in self._done for other in self._needs[name])]:
                waiting.remove(name)
                threading.Thread(target=self._start, args=(name, ended), daemon=True).start()
                running += 1
            finished = ended.get()
            running -= 1
            if isinstance(finished, Exception):
                self._controller._broken = self._controller._broken or finished
                raise ArgoError(f"the interpreter gave up: {finished}") from finished
            self._done[finished.name[len(self._node.name) + 1 :]] = finished
        self._node.phase = self._outcome(targets)
        if self._node.phase == "Succeeded":
            self._outputs()

    def _start(self, name: str, ended: "queue.Queue[Node | Exception]") -> None:
        try:
            ended.put(self._task(name))
        except Exception as error:
            ended.put(error)

    def _task(self, name: str) -> Node:
        task = self._tasks[name]
        full, path = f"{self._node.name}.{name}", (*self._node.path, name)
        try:
            if not self._allowed(name):
                return self._skipped(full, path, task, "Omitted", "omitted: depends condition not met")
            known = self._controller._globals | self._scope(self._ancestors(name))
            task = self._without_absent(task, known)
            filled = substitute({key: value for key, value in task.items() if key != "hooks"}, known)
            loop = "withItems" in task or "withParam" in task
            if not loop:
                self._check_resolved(task, filled, known)
            tasks = self._expanded(filled) if loop else [(full, filled)]
        except (ArgoError, ExpressionError) as error:
            return self._skipped(full, path, task, "Error", str(error))
        if not loop:
            return self._one(full, path, tasks[0][1], name)
        if not tasks:
            return self._skipped(full, path, task, "Skipped", "Skipped, empty params")
        return self._group(full, path, task, name, tasks)

    def _group(
        self, full: str, path: tuple[str | int, ...], task: Json, name: str, tasks: list[tuple[str, Json]]
    ) -> Node:
        group = Node(full, "TaskGroup", path, task["template"])
        self._controller._add(group)
        problems: list[Exception] = []
        found: list[Node | None] = [None] * len(tasks)

        def one(index: int) -> None:
            try:
                item, filled = tasks[index]
                found[index] = self._one(f"{self._node.name}.{item}", (*path, index), filled, name)
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(len(tasks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        group.children = [node for node in found if node]
        failed = [node.phase for node in group.children if node.phase in FAILED]
        group.phase = failed[-1] if failed else "Succeeded"
        self._controller._finish(group, {})
        return group

    def _one(self, full: str, path: tuple[str | int, ...], task: Json, name: str) -> Node:
        try:
            if task.get("when") and not holds(task["when"]):
                return self._skipped(full, path, task, "Skipped", f"when '{task['when']}' evaluated false")
            arguments = self._arguments(task.get("arguments", {}), self._ancestors(name))
        except ArgoError as error:
            return self._skipped(full, path, task, "Error", str(error))
        with ExitStack() as stack:
            if self._limit:
                stack.enter_context(self._limit)
            node = self._controller._execute(full, task["template"], arguments, path)
        hook = self._tasks[name].get("hooks", {}).get("exit") or (
            {"template": task["onExit"]} if task.get("onExit") else None
        )
        if hook:
            known = self._controller._globals | self._scope(self._ancestors(name)) | self._of_task(name, node)
            given = substitute(hook.get("arguments", {}), known)
            # How it ends changes nothing of the task that it follows.
            self._controller._execute(f"{full}.onExit", hook["template"], given, (*path, ON_EXIT))
        return node

    def _skipped(self, full: str, path: tuple[str | int, ...], task: Json, phase: str, message: str) -> Node:
        node = Node(full, "Skipped", path, task["template"], phase, message)
        self._controller._add(node)
        return node

    def _allowed(self, name: str) -> bool:
        """Evaluate what a task depends on."""
        results = {}
        for other in self._needs[name]:
            node = self._done[other]
            phases = [child.phase for child in node.children] if node.kind == "TaskGroup" else []
            results[other.replace("-", "_")] = {
                "Succeeded": node.phase == "Succeeded",
                "Failed": node.phase == "Failed",
                "Errored": node.phase == "Error",
                "Skipped": node.phase == "Skipped",
                "Omitted": node.phase == "Omitted",
                "Daemoned": False,
                "AnySucceeded": "Succeeded" in phases,
                "AllFailed": bool(phases) and set(phases) == {"Failed"},
            }
        logic = manifest.logic(self._tasks[name]).replace("-", "_")
        if not logic:
            return True
        try:
            return expressions.evaluate(logic, results) is True
        except ExpressionError as error:
            raise ArgoError(f"unable to evaluate expression '{logic}': {error}") from error

    def _ancestors(self, name: str) -> list[str]:
        return manifest.ancestors(self._dag, name)

    def _scope(self, names: list[str]) -> Known:
        """Return what can be named of tasks that are done, and of the DAG's own inputs."""
        known: Known = {f"inputs.parameters.{name}": value for name, value in self._node.inputs.items()}
        for name in names:
            if name in self._done:
                known |= self._of_task(name, self._done[name])
        known |= {f"workflow.outputs.parameters.{name}": value for name, value in self._controller._outputs.items()}
        return known

    def _of_task(self, name: str, node: Node) -> Known:
        prefix = f"tasks.{name}"
        known: Known = {f"{prefix}.status": node.phase, f"{prefix}.id": node.name}
        if node.exit_code is not None:
            known[f"{prefix}.exitCode"] = str(node.exit_code)
        values: Known = dict(node.parameters)
        if node.kind == "TaskGroup":
            made = [child.parameters for child in node.children if child.outputs and child.phase == "Succeeded"]
            lists: dict[str, list[str]] = {}
            for parameters in made:
                for key, value in parameters.items():
                    lists.setdefault(key, []).append(value)
            values = {key: aggregated(found) for key, found in lists.items()}
            if made:
                known[f"{prefix}.outputs.parameters"] = golang.dump(made)
        elif node.phase in {"Skipped", "Omitted"}:
            declared = self._controller._templates[node.template].get("outputs", {}).get("parameters", [])
            values = {item["name"]: None for item in declared}
        return known | {f"{prefix}.outputs.parameters.{key}": value for key, value in values.items()}

    def _without_absent(self, task: Json, known: Known) -> Json:
        """Leave arguments out that are nothing but an output which is not there, where the template has a default."""
        template = self._controller._templates[task["template"]]
        defaults = {item["name"] for item in template.get("inputs", {}).get("parameters", []) if "default" in item}
        absent = {f"{{{{{key}}}}}" for key, value in known.items() if value is None}
        kept = [
            item
            for item in task.get("arguments", {}).get("parameters", [])
            if item["name"] not in defaults or item.get("value", "").replace(" ", "") not in absent
        ]
        return task | {"arguments": task["arguments"] | {"parameters": kept}} if "arguments" in task else task

    def _check_resolved(self, task: Json, filled: Json, known: Known) -> None:
        for tag in tags({key: value for key, value in task.items() if key != "hooks"}):
            paths = expressions.static_paths(json.loads(f'"{tag[1:]}"')) if tag.startswith("=") else set()
            there = {".".join(key.split(".")[: count + 1]) for key in known for count in range(key.count(".") + 1)}
            missing = sorted(path for path in paths if path.startswith("tasks.") and path not in there)
            if missing:
                raise ArgoError(f"failed to evaluate expression: {missing[0]} is missing")
        left = set(tags(filled))
        for tag in tags({key: value for key, value in task.items() if key != "hooks"}):
            if tag in left and (tag.startswith("=") or tag.strip().startswith(("tasks.", "inputs.", "workflow."))):
                raise ArgoError(f"failed to resolve {{{{{tag}}}}}")

    def _expanded(self, task: Json) -> list[tuple[str, Json]]:
        """Return one task for each item, with its name."""
        if "withItems" in task:
            items = golang.parse_items(json.dumps(task["withItems"]))
        else:
            try:
                items = golang.parse_items(task["withParam"])
            except ValueError as error:
                raise ArgoError(f"withParam value could not be parsed as a JSON list: {task['withParam']}") from error
        if items is not None and not isinstance(items, list):
            raise ArgoError(f"withParam value could not be parsed as a JSON list: {task['withParam']}")
        plain = {key: value for key, value in task.items() if key not in {"withItems", "withParam"}}
        found = []
        for index, item in enumerate(items or []):
            known: Known = {"item": item if isinstance(item, str) else golang.dump(item, sort=False)}
            if isinstance(item, dict):
                known["item"] = (
                    "{"
                    + ",".join(f"{golang.dump(key)}:{golang.dump(item[key], sort=False)}" for key in sorted(item))
                    + "}"
                )
                for key, value in item.items():
                    # A text in a map comes with JSON's escapes.
                    text = golang.dump(value, sort=False)
                    known[f"item.{key}"] = text[1:-1] if text[0] == '"' else text
            label = (
                ",".join(f"{key}:{known[f'item.{key}']}" for key in sorted(item))
                if isinstance(item, dict)
                else known["item"]
            )
            found.append((f"{task['name']}({index}:{label})", substitute(plain, known, strict=True)))
        return found

    def _arguments(self, arguments: Json, ancestors: list[str]) -> Json:
        """Return arguments with artifacts in place of references to them."""
        found = []
        for artifact in arguments.get("artifacts", []):
            if "from" not in artifact:
                found.append(artifact)
                continue
            reference = artifact["from"].removeprefix("{{").removesuffix("}}").strip()
            key = self._artifact(reference, ancestors)
            if key is not None:
                found.append({"name": artifact["name"], "s3": {"key": key}})
            elif not artifact.get("optional"):
                raise ArgoError(f"Unable to resolve: {{{{{reference}}}}}")
        return arguments | {"artifacts": found}

    def _artifact(self, reference: str, names: list[str]) -> str | None:
        parts = reference.split(".")
        if parts[0] == "inputs":
            own = {item["name"]: item for item in self._template.get("inputs", {}).get("artifacts", [])}
            return own.get(parts[2], {}).get("s3", {}).get("key")
        if parts[0] != "tasks" or parts[2:4] != ["outputs", "artifacts"]:
            raise UnknownFeature(f"an artifact from {reference!r}")
        return self._done[parts[1]].artifacts.get(parts[4]) if parts[1] in names and parts[1] in self._done else None

    def _outcome(self, targets: list[str]) -> str:
        """Return the phase of the DAG. A task that did not run counts as those before it."""

        def branch(name: str) -> str:
            node = self._done[name]
            if node.phase in COMPLETED:
                return node.phase
            before = [branch(other) for other in self._needs[name]]
            return next((phase for phase in before if phase in FAILED), "Succeeded")

        # Argo runs what can still run either way: with failFast it merely looks no further than the first failure.
        failed = [phase for phase in map(branch, targets) if phase in FAILED]
        if not failed:
            return "Succeeded"
        return failed[0] if self._dag.get("failFast", True) else failed[-1]

    def _outputs(self) -> None:
        known = self._scope(list(self._done))
        env = expressions.expand(dict(known))
        declared = self._template.get("outputs", {})
        for item in declared.get("parameters", []):
            origin = item.get("valueFrom", {})
            try:
                self._node.parameters[item["name"]] = _output(origin, known, env)
            except (ArgoError, ExpressionError) as error:
                if "default" not in origin:
                    raise ArgoError(str(error)) from error
                self._node.parameters[item["name"]] = origin["default"]
        for item in declared.get("artifacts", []):
            key = self._artifact(item["from"].removeprefix("{{").removesuffix("}}").strip(), list(self._done))
            if key is not None:
                self._node.artifacts[item["name"]] = key
            elif not item.get("optional"):
                raise ArgoError(f"Unable to resolve: {item['from']}")
        self._node.outputs = bool(declared.get("parameters") or declared.get("artifacts"))


def _output(origin: Json, known: Known, env: dict[str, Any]) -> str:
    if "expression" in origin:
        value = expressions.evaluate(origin["expression"], env)
        if value is None:
            raise ArgoError(f"failed to evaluate expression {origin['expression']!r}")
        return value if isinstance(value, str) else golang.dump(value)
    name = origin["parameter"].removeprefix("{{").removesuffix("}}").strip()
    if known.get(name) is None:
        raise ArgoError(f"Unable to resolve: {{{{{name}}}}}")
    return str(known[name])


def _substituted(template: Json, global_: Known, local: Known) -> Json:
    """Replace a template's tags: first what all share, then its inputs."""
    # A mistake in one of the tags is found when what it stands in is used.
    half = substitute(template, global_ | local)
    inputs, outputs = half.get("inputs", {}), half.get("outputs", {})
    known: Known = global_ | local
    known |= {f"inputs.parameters.{item['name']}": item["value"] for item in inputs.get("parameters", [])}
    known["inputs.parameters"] = golang.dump(inputs.get("parameters", []))
    known |= {
        f"inputs.artifacts.{item['name']}.path": item["path"] for item in inputs.get("artifacts", []) if "path" in item
    }
    known |= {
        f"outputs.artifacts.{item['name']}.path": item["path"]
        for item in outputs.get("artifacts", [])
        if "path" in item
    }
    known |= {
        f"outputs.parameters.{item['name']}.path": item["valueFrom"]["path"]
        for item in outputs.get("parameters", [])
        if "path" in item.get("valueFrom", {})
    }
    result: Json = substitute(half, known)
    return result


def aggregated(values: list[str]) -> str:
    """Return the list that a loop's output is: of JSON where all values are lists or objects, else of texts."""
    parsed = []
    for value in values:
        try:
            found = golang.parse(value)
        except ValueError:
            return golang.dump(values)
        if not isinstance(found, list | dict):
            return golang.dump(values)
        parsed.append(found)
    return golang.dump(parsed)


def seconds(duration: str) -> float:
    """Return a duration as Argo reads it: seconds, or Go's notation."""
    if re.fullmatch(r"\d+", duration):
        return float(duration)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", duration)
    if "".join(number + unit for number, unit in parts) != duration:
        raise ArgoError(f"unable to parse {duration!r} as a duration")
    return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for number, unit in parts)

"""One execution of a DAG template, as argo-workflows 4 does it (workflow/controller/dag.go, scope.go).

The controller is that of `interpreter.py`.
"""

import json
import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tests.argo import expressions, golang, manifest
from tests.argo.expressions import ExpressionError, UnknownFeature
from tests.argo.manifest import Json
from tests.argo.tags import ArgoError, holds, substitute, tags

ON_EXIT = "onExit"
FAILED = ("Failed", "Error")
COMPLETED = ("Succeeded", *FAILED)
Scope = dict[str, str | None]


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


class Dag:
    """One execution of a DAG template."""

    def __init__(self, controller: Any, node: Node, template: Json) -> None:
        self._controller = controller
        self._node = node
        self._template = template
        self._dag = template["dag"]
        self._tasks = {task["name"]: task for task in self._dag["tasks"]}
        self._needs = {name: manifest.dependencies(task) for name, task in self._tasks.items()}
        limit = template.get("parallelism")
        self._limit = threading.Semaphore(int(limit)) if limit else None
        self._nodes: dict[str, Node] = {}

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
            for name in [name for name in waiting if all(other in self._nodes for other in self._needs[name])]:
                waiting.remove(name)
                threading.Thread(target=self._start, args=(name, ended), daemon=True).start()
                running += 1
            finished = ended.get()
            running -= 1
            if isinstance(finished, Exception):
                self._controller.broken = self._controller.broken or finished
                raise ArgoError(f"the interpreter gave up: {finished}") from finished
            self._nodes[finished.name[len(self._node.name) + 1 :]] = finished
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
            scope = self._controller.globals | self._scope(self._ancestors(name))
            task = self._without_absent(task, scope)
            filled = substitute({key: value for key, value in task.items() if key != "hooks"}, scope)
            loop = "withItems" in task or "withParam" in task
            if not loop:
                self._check_resolved(task, filled, scope)
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
        self._controller.add(group)
        problems: list[Exception] = []
        nodes: list[Node | None] = [None] * len(tasks)

        def one(index: int) -> None:
            try:
                item, filled = tasks[index]
                nodes[index] = self._one(f"{self._node.name}.{item}", (*path, index), filled, name)
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(len(tasks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        group.children = [node for node in nodes if node]
        failed = [node.phase for node in group.children if node.phase in FAILED]
        group.phase = failed[-1] if failed else "Succeeded"
        self._controller.finish(group, {})
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
            node = self._controller.execute(full, task["template"], arguments, path)
        hook = self._tasks[name].get("hooks", {}).get("exit") or (
            {"template": task["onExit"]} if task.get("onExit") else None
        )
        if hook:
            scope = self._controller.globals | self._scope(self._ancestors(name)) | self._of_task(name, node)
            hook_arguments = substitute(hook.get("arguments", {}), scope)
            # How it ends changes nothing of the task that it follows.
            self._controller.execute(f"{full}.onExit", hook["template"], hook_arguments, (*path, ON_EXIT))
        return node

    def _skipped(self, full: str, path: tuple[str | int, ...], task: Json, phase: str, message: str) -> Node:
        node = Node(full, "Skipped", path, task["template"], phase, message)
        self._controller.add(node)
        return node

    def _allowed(self, name: str) -> bool:
        """Evaluate what a task depends on."""
        results = {}
        for other in self._needs[name]:
            node = self._nodes[other]
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

    def _scope(self, names: list[str]) -> Scope:
        """Return what can be named of tasks that are done, and of the DAG's own inputs."""
        scope: Scope = {f"inputs.parameters.{name}": value for name, value in self._node.inputs.items()}
        for name in names:
            if name in self._nodes:
                scope |= self._of_task(name, self._nodes[name])
        scope |= {f"workflow.outputs.parameters.{name}": value for name, value in self._controller.outputs.items()}
        return scope

    def _of_task(self, name: str, node: Node) -> Scope:
        prefix = f"tasks.{name}"
        scope: Scope = {f"{prefix}.status": node.phase, f"{prefix}.id": node.name}
        if node.exit_code is not None:
            scope[f"{prefix}.exitCode"] = str(node.exit_code)
        values: Scope = dict(node.parameters)
        if node.kind == "TaskGroup":
            iterations = [child.parameters for child in node.children if child.outputs and child.phase == "Succeeded"]
            lists: dict[str, list[str]] = {}
            for parameters in iterations:
                for key, value in parameters.items():
                    lists.setdefault(key, []).append(value)
            values = {key: aggregated(texts) for key, texts in lists.items()}
            if iterations:
                scope[f"{prefix}.outputs.parameters"] = golang.dump(iterations)
        elif node.phase in {"Skipped", "Omitted"}:
            declared = self._controller.templates[node.template].get("outputs", {}).get("parameters", [])
            values = {item["name"]: None for item in declared}
        return scope | {f"{prefix}.outputs.parameters.{key}": value for key, value in values.items()}

    def _without_absent(self, task: Json, scope: Scope) -> Json:
        """Leave arguments out that are nothing but an output which is not there, where the template has a default."""
        template = self._controller.templates[task["template"]]
        defaults = {item["name"] for item in template.get("inputs", {}).get("parameters", []) if "default" in item}
        absent = {f"{{{{{key}}}}}" for key, value in scope.items() if value is None}
        parameters = [
            item
            for item in task.get("arguments", {}).get("parameters", [])
            if item["name"] not in defaults or item.get("value", "").replace(" ", "") not in absent
        ]
        return task | {"arguments": task["arguments"] | {"parameters": parameters}} if "arguments" in task else task

    def _check_resolved(self, task: Json, filled: Json, scope: Scope) -> None:
        for tag in tags({key: value for key, value in task.items() if key != "hooks"}):
            paths = expressions.static_paths(json.loads(f'"{tag[1:]}"')) if tag.startswith("=") else set()
            there = {".".join(key.split(".")[: count + 1]) for key in scope for count in range(key.count(".") + 1)}
            missing = sorted(path for path in paths if path.startswith("tasks.") and path not in there)
            if missing:
                raise ArgoError(f"failed to evaluate expression: {missing[0]} is missing")
        unresolved = set(tags(filled))
        for tag in tags({key: value for key, value in task.items() if key != "hooks"}):
            if tag in unresolved and (
                tag.startswith("=") or tag.strip().startswith(("tasks.", "inputs.", "workflow."))
            ):
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
        tasks = []
        for index, item in enumerate(items or []):
            scope: Scope = {"item": item if isinstance(item, str) else golang.dump(item, sort=False)}
            if isinstance(item, dict):
                scope["item"] = (
                    "{"
                    + ",".join(f"{golang.dump(key)}:{golang.dump(item[key], sort=False)}" for key in sorted(item))
                    + "}"
                )
                for key, value in item.items():
                    # A text in a map comes with JSON's escapes.
                    text = golang.dump(value, sort=False)
                    scope[f"item.{key}"] = text[1:-1] if text[0] == '"' else text
            label = (
                ",".join(f"{key}:{scope[f'item.{key}']}" for key in sorted(item))
                if isinstance(item, dict)
                else scope["item"]
            )
            tasks.append((f"{task['name']}({index}:{label})", substitute(plain, scope, strict=True)))
        return tasks

    def _arguments(self, arguments: Json, ancestors: list[str]) -> Json:
        """Return arguments with artifacts in place of references to them."""
        artifacts = []
        for artifact in arguments.get("artifacts", []):
            if "from" not in artifact:
                artifacts.append(artifact)
                continue
            reference = artifact["from"].removeprefix("{{").removesuffix("}}").strip()
            key = self._artifact(reference, ancestors)
            if key is not None:
                artifacts.append({"name": artifact["name"], "s3": {"key": key}})
            elif not artifact.get("optional"):
                raise ArgoError(f"Unable to resolve: {{{{{reference}}}}}")
        return arguments | {"artifacts": artifacts}

    def _artifact(self, reference: str, names: list[str]) -> str | None:
        parts = reference.split(".")
        if parts[0] == "inputs":
            own = {item["name"]: item for item in self._template.get("inputs", {}).get("artifacts", [])}
            return own.get(parts[2], {}).get("s3", {}).get("key")
        if parts[0] != "tasks" or parts[2:4] != ["outputs", "artifacts"]:
            raise UnknownFeature(f"an artifact from {reference!r}")
        return self._nodes[parts[1]].artifacts.get(parts[4]) if parts[1] in names and parts[1] in self._nodes else None

    def _outcome(self, targets: list[str]) -> str:
        """Return the phase of the DAG. A task that did not run counts as those before it."""

        def branch(name: str) -> str:
            node = self._nodes[name]
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
        scope = self._scope(list(self._nodes))
        env = expressions.expand(dict(scope))
        declared = self._template.get("outputs", {})
        for item in declared.get("parameters", []):
            origin = item.get("valueFrom", {})
            try:
                self._node.parameters[item["name"]] = _output(origin, scope, env)
            except (ArgoError, ExpressionError) as error:
                if "default" not in origin:
                    raise ArgoError(str(error)) from error
                self._node.parameters[item["name"]] = origin["default"]
        for item in declared.get("artifacts", []):
            key = self._artifact(item["from"].removeprefix("{{").removesuffix("}}").strip(), list(self._nodes))
            if key is not None:
                self._node.artifacts[item["name"]] = key
            elif not item.get("optional"):
                raise ArgoError(f"Unable to resolve: {item['from']}")
        self._node.outputs = bool(declared.get("parameters") or declared.get("artifacts"))


def _output(origin: Json, scope: Scope, env: dict[str, Any]) -> str:
    if "expression" in origin:
        value = expressions.evaluate(origin["expression"], env)
        if value is None:
            raise ArgoError(f"failed to evaluate expression {origin['expression']!r}")
        return value if isinstance(value, str) else golang.dump(value)
    name = origin["parameter"].removeprefix("{{").removesuffix("}}").strip()
    if scope.get(name) is None:
        raise ArgoError(f"Unable to resolve: {{{{{name}}}}}")
    return str(scope[name])


def aggregated(values: list[str]) -> str:
    """Return the list that a loop's output is: of JSON where all values are lists or objects, else of texts."""
    parsed = []
    for value in values:
        try:
            item = golang.parse(value)
        except ValueError:
            return golang.dump(values)
        if not isinstance(item, list | dict):
            return golang.dump(values)
        parsed.append(item)
    return golang.dump(parsed)

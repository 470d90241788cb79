"""Walks through a compiled pipeline on this machine: which task runs when, with what, and under which name.

`kfp.local` runs one task after another, reads conditions as Python and keeps one result for each name, so that a task
of a loop hides what the others did. Here every execution has a name of its own, and what waits for nothing runs at
once. How one task runs is somebody else's: see `local.py`.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal

from shopfloor.errors import Failure, UsageError
from shopfloor.pipeline import conditions, ir

Values = dict[str, Any]
TaskState = Literal["SUCCEEDED", "FAILED", "SKIPPED"]
_GROUP = re.compile(r"(condition|condition-branches|for-loop|exit-handler)-\d+")
_PLACEHOLDER = re.compile(r"\{\{\$\.(?:inputs\.parameters\[(['\"])(?P<input>.+?)\1\]|\w+)\}\}")
_FIELD = re.compile(r"parseJson\(string_value\)\[\"(.+)\"\]")


class TaskFailed(Exception):
    """A task failed."""

    def __init__(self, why: Failure | str) -> None:
        """Take why, in words where no process said so."""
        super().__init__(str(why))
        self.failure = why if isinstance(why, Failure) else Failure(type(self).__name__, why)


@dataclass(frozen=True)
class Execution:
    """One execution of a task that is no group of tasks."""

    name: str
    """Unlike that of any other execution of the run, e.g. `train`, `train.0` in a loop, `inner.train`."""
    task: str
    """Name of the task in the pipeline."""
    spec: ir.Message
    """KFP's `PipelineTaskSpec`."""
    arguments: Values
    """Parameters as plain values, artifacts as the executions before gave them."""


@dataclass
class _Scope:
    """What is known within one group of tasks: its arguments, and what its tasks gave so far."""

    path: tuple[str, ...]
    arguments: Values
    parent: _Scope | None = None
    outputs: dict[str, Values] = field(default_factory=dict)
    states: dict[str, TaskState] = field(default_factory=dict)

    def output(self, task: str, key: str) -> Any:
        """Return an output of a task here or in a group around this one, else a KeyError."""
        scope: _Scope | None = self
        while scope is not None:
            if task in scope.states:
                return scope.outputs.get(task, {})[key]
            scope = scope.parent
        raise KeyError(task)


class Walk:
    """One walk through a pipeline."""

    def __init__(
        self,
        pipeline: ir.Pipeline,
        execute: Callable[[Execution], Values],
        stop: Callable[[], None],
        constants: Mapping[str, str],
        parallel: int,
    ) -> None:
        """Prepare a walk.

        Args:
            pipeline: What to walk through.
            execute: Runs one task, in a thread, and returns its outputs or raises `TaskFailed`.
            stop: Ends what runs, so that `execute` comes back.
            constants: What stands for KFP's placeholders, e.g. `{{$.pipeline_job_name}}`.
            parallel: How many tasks run at once.
        """
        self._pipeline = pipeline
        self._execute = execute
        self._stop = stop
        self._constants = constants
        self._parallel = parallel
        self._places = threading.BoundedSemaphore(parallel)
        self._ended = threading.Event()
        self.failures: list[str] = []
        """Reasons of tasks that failed, each with the task's name."""
        self._uses = Counter(pipeline.leaves(pipeline.root)[0])

    def run(self, arguments: Values) -> bool:
        """Walk to the end; independent tasks go on where one fails.

        Returns:
            Whether all tasks that had to run succeeded.

        Raises:
            ShopfloorError: From `execute`; nothing more was begun.
            KeyboardInterrupt: Somebody stopped the walk; nothing runs any more.
        """
        root = self._pipeline.root
        with ThreadPoolExecutor(1, "walk") as pool:
            future = pool.submit(self._group, root, _Scope((), _with_defaults(root, arguments)))
            try:
                return future.result()[0] != "FAILED"
            except BaseException:
                # The pool waits for its threads, and those for what runs.
                self._end()
                raise

    def _end(self) -> None:
        """Begin nothing more, and end what runs."""
        self._ended.set()
        self._stop()

    def _group(self, component: Any, scope: _Scope) -> tuple[TaskState, Values]:
        """Run the tasks of a group; a task begins when all that it waits for have ended."""
        waiting = dict(component.dag.tasks)
        running: dict[Future[tuple[TaskState, Values]], str] = {}
        with ThreadPoolExecutor(self._parallel, "walk") as pool:
            while waiting or running:
                unfinished = {*waiting, *running.values()}
                for name in [n for n, task in waiting.items() if unfinished.isdisjoint(task.dependent_tasks)]:
                    running[pool.submit(self._task, name, waiting.pop(name), scope)] = name
                if not running:
                    raise UsageError(
                        f"Tasks wait for one another: {', '.join(waiting)}.", "Compile the pipeline again."
                    )
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    state, scope.outputs[name] = future.result()
                    scope.states[name] = state
        return "FAILED" if "FAILED" in scope.states.values() else "SUCCEEDED", _group_outputs(component, scope)

    def _task(self, name: str, task: Any, scope: _Scope) -> tuple[TaskState, Values]:
        condition = task.trigger_policy.condition
        always = ir.waits_for_all(task)
        if self._ended.is_set() or (not always and any(scope.states.get(n) == "FAILED" for n in task.dependent_tasks)):
            return "FAILED", {}
        component = self._pipeline.component(task)
        try:
            arguments = self._arguments(task, scope)
            if condition and not _holds(condition, _with_defaults(component, arguments)):
                return "SKIPPED", {}
            if ir.iterator(task) is not None:
                return self._loop(name, task, component, arguments, scope)
            if ir.is_dag(component):
                return self._group(component, _Scope((*scope.path, name), _with_defaults(component, arguments), scope))
            declared = {*component.input_definitions.parameters, *component.input_definitions.artifacts}
            own = {n: value for n, value in _with_defaults(component, arguments).items() if n in declared}
            with self._places:
                if self._ended.is_set():
                    return "FAILED", {}
                execution = Execution(self._name(name, scope), name, task, own)
                return "SUCCEEDED", self._execute(execution)
        except TaskFailed as error:
            self.failures.append(f"{name}: {error}")
            return "FAILED", {}
        except BaseException:
            self._end()
            raise

    def _loop(self, name: str, task: Any, component: Any, arguments: Values, scope: _Scope) -> tuple[TaskState, Values]:
        """Run a group once for each item; its outputs are lists in the items' order, without those of skipped tasks."""
        items, item_input = _items(task, arguments)
        limit = min(self._parallel, task.iterator_policy.parallelism_limit or self._parallel)

        def one(number: int, item: Any) -> tuple[TaskState, Values]:
            own = {**arguments, item_input: item}
            return self._group(
                component, _Scope((*scope.path, name, str(number)), _with_defaults(component, own), scope)
            )

        with ThreadPoolExecutor(limit, "walk") as pool:
            results = list(pool.map(one, range(len(items)), items))
        declared = component.output_definitions
        names = [*declared.parameters, *declared.artifacts]
        collected = {n: [outputs[n] for _, outputs in results if n in outputs] for n in names}
        return "FAILED" if any(state == "FAILED" for state, _ in results) else "SUCCEEDED", collected

    def _name(self, task: str, scope: _Scope) -> str:
        """Return the name of an execution: the task's own, where it has but one."""
        numbers = [part for part in scope.path if part.isdigit()]
        groups = [part for part in scope.path if not part.isdigit() and not _GROUP.fullmatch(part)]
        return ".".join([*(groups if self._uses[task] > 1 else []), task, *numbers])

    def _arguments(self, task: Any, scope: _Scope) -> Values:
        """Return what a task is given; what no task gave is left out, so that a default counts."""
        values: Values = {}
        constants: list[str] = []
        for kind in ir.KINDS:
            for name, origin in ir.inputs(task, kind).items():
                try:
                    if origin.kind == "constant":
                        constants.append(name)
                        values[name] = origin.value
                    elif origin.kind == "output":
                        values[name] = scope.output(origin.task, origin.name)
                    elif origin.kind == "input":
                        values[name] = scope.arguments[origin.name]
                    else:
                        values[name] = self._final_status(origin.task, scope)
                except KeyError:
                    continue
                if selected := _FIELD.fullmatch(origin.selector):
                    values[name] = _field(values[name], selected[1])
        # Only what the pipeline itself says is filled in: what a task gave is no template.
        texts = {**self._constants, "{{$.pipeline_task_name}}": task.task_info.name}
        return values | {name: filled(values[name], values, texts) for name in constants}

    def _final_status(self, task: str, scope: _Scope) -> Values:
        state = scope.states.get(task, "SUCCEEDED")
        return {
            "state": state,
            "pipeline_job_resource_name": self._pipeline.name,
            "pipeline_task_name": task,
            "error": {"code": 1, "message": "; ".join(self.failures)} if state == "FAILED" else {},
        }


def _with_defaults(component: Any, arguments: Values) -> Values:
    """Return arguments with the defaults of the parameters that have no value."""
    return {name: value for name, value in ir.defaults(component).items() if name not in arguments} | arguments


def _holds(text: str, values: Mapping[str, Any]) -> bool:
    """Tell whether a condition holds; a parameter that no task gave has no value."""
    condition = conditions.parse(text)
    try:
        return bool(conditions.evaluate(condition, {**dict.fromkeys(conditions.parameters(condition)), **values}))
    except conditions.ConditionError as error:
        raise UsageError(
            f"The condition {text!r} cannot be decided: it meets {error}.",
            "Compare texts with texts and numbers with numbers.",
        ) from error


def filled(value: Any, values: Mapping[str, Any], constants: Mapping[str, str]) -> Any:
    """Return a constant with its placeholders replaced, wherever in it they stand."""
    if isinstance(value, str):

        def text(match: re.Match[str]) -> str:
            if match["input"] is None:
                return constants.get(match[0], match[0])
            argument = values.get(match["input"], "")
            return argument if isinstance(argument, str) else json.dumps(argument)

        return _PLACEHOLDER.sub(text, value)
    if isinstance(value, list):
        return [filled(item, values, constants) for item in value]
    if isinstance(value, dict):
        return {filled(k, values, constants): filled(v, values, constants) for k, v in value.items()}
    return value


def _field(value: Any, name: str) -> Any:
    content = json.loads(value) if isinstance(value, str) else value
    if not isinstance(content, dict) or name not in content:
        raise TaskFailed(f"{json.dumps(content)[:200]} has no field {name!r}.")
    return content[name]


def _items(task: Any, arguments: Values) -> tuple[list[Any], str]:
    """Return what a loop goes over, and the input that takes one of it."""
    if task.WhichOneof("iterator") == "artifact_iterator":
        iterator = task.artifact_iterator
        items = arguments.get(iterator.items.input_artifact)
    else:
        iterator = task.parameter_iterator
        kind = iterator.items.WhichOneof("kind")
        items = json.loads(iterator.items.raw) if kind == "raw" else arguments.get(iterator.items.input_parameter)
        items = json.loads(items) if isinstance(items, str) else items
    if not isinstance(items, list):
        raise TaskFailed(f"A loop goes over a list, not over {json.dumps(items)[:200]}.")
    return items, iterator.item_input


def _group_outputs(component: Any, scope: _Scope) -> Values:
    """Return what a group gives: of the alternatives of a `OneOf` the one that ran."""
    outputs: Values = {}
    for kind in ir.KINDS:
        for name in getattr(component.dag.outputs, kind):
            for task, key in ir.selectors(component, kind, name):
                if key in scope.outputs.get(task, {}):
                    outputs[name] = scope.outputs[task][key]
    return outputs

"""`plan`: for every step of a pipeline whether it would run or be reused, and why, before anything runs.

Walks the compiled pipeline with the same keys and the same result store as an engine. Where a step runs, what follows
it depends on outputs that nobody knows yet: it is reused only if they turn out the same. MLflow is asked by its REST
API, because its client takes longer to import than all of this takes; without it what depends on it is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shopfloor.errors import NotFoundError, ServiceError
from shopfloor.flows.promote import effect_holds
from shopfloor.flows.queue import QueueForecast, forecast
from shopfloor.flows.submission import read, resolve_data
from shopfloor.pipeline import conditions, ir
from shopfloor.pipeline.compilation import Compiled, run_key
from shopfloor.pipeline.keys import StepKey, component_key
from shopfloor.pipeline.results import ResultStore
from shopfloor.records import Record
from shopfloor.runs.mlflow import PARENT, RUN_KEY, Mlflow, RefusedError, tags_of
from shopfloor.serving import assignment as assignments
from shopfloor.settings import Settings

Action = Literal["reuse", "run", "skip", "unknown"]


class Change(Record):
    """A part of a step's key that is not what it was."""

    part: str
    """E.g. `code shopfloor.training.tuning`, `parameter trials`, `input features`, `use case search`, `lock`."""
    old: str | None
    """Value then; `None` where there was none."""
    new: str | None


class StepPlan(Record):
    """What would happen to one step."""

    step: str
    action: Action
    why: str
    """Reason, as a sentence."""
    changes: list[Change]


class Plan(Record):
    """What a submit would do."""

    pipeline: str
    parameters: dict[str, Any]
    notes: list[str]
    """Sentences on what could not be looked up."""
    steps: list[StepPlan]
    queue: QueueForecast | None = None
    """What the run would ask of the cluster's queue; none where the profile has no such, or nobody can say."""


@dataclass(frozen=True)
class _Unknown:
    """A value that a step will make."""

    step: str
    """Empty: nobody knows it at all."""


def plan(
    settings: Settings,
    file: str,
    use_case: str | None,
    parameters: list[str],
    use_cache: bool = True,
    from_step: str | None = None,
    function: str | None = None,
) -> Plan:
    """Say for every step whether `submit` with the same arguments would run it.

    Args:
        settings: The profile.
        file: Pipeline file.
        use_case: Value of the pipeline's parameter `use_case`.
        parameters: Further parameters as `key=value`.
        use_cache: Whether finished steps are reused at all.
        from_step: This step and what follows it run in any case.
        function: Which of the file's pipelines.

    Raises:
        UsageError: The pipeline, a parameter or the step is wrong.
    """
    compiled, arguments = read(settings, file, use_case, parameters, function)
    forced = compiled.from_step_on(from_step) if use_cache else frozenset(compiled.steps)
    resolve_data(settings, compiled, arguments)
    notes: list[str] = []
    values: dict[str, Any] = dict(arguments)
    if "champion" in compiled.parameters and "use_case" in arguments and not arguments.get("champion"):
        try:
            values["champion"] = _champion(settings, arguments["use_case"], run_key(settings, compiled, arguments))
        except ServiceError as error:
            notes.append(f"The champion is unknown: {error.message}")
            values["champion"] = _Unknown("")
    walk = _Walk(settings, compiled, forced)
    root = compiled.pipeline.root
    walk.dag(root, _with_defaults(root, values))
    if walk.silence and not notes:
        notes.append(f"What MLflow and Ray hold is unknown: {walk.silence}")
    plain_values = {name: value for name, value in values.items() if not isinstance(value, _Unknown)}
    order = {step: place for place, step in enumerate(compiled.steps)}
    steps = sorted(walk.steps, key=lambda step: order.get(step.step, len(order)))
    queue = None
    if settings.default_engine == "argo":
        reused = {step.step for step in steps if step.action == "reuse"}
        asked = forecast(settings, compiled, plain_values, reused)
        queue = asked if isinstance(asked, QueueForecast) else None
        notes += [asked] if isinstance(asked, str) else asked.notes
    return Plan(pipeline=compiled.name, parameters=plain_values, notes=notes, steps=steps, queue=queue)


class _Walk:
    """Goes through the DAGs of a pipeline in the order in which an engine would."""

    def __init__(self, settings: Settings, compiled: Compiled, forced: frozenset[str]) -> None:
        self.steps: list[StepPlan] = []
        self.silence = ""
        """Reason why a service could not be asked; empty where all answered."""
        self._settings = settings
        self._pipeline = compiled.pipeline
        self._forced = forced
        self._store = ResultStore(settings, effect_holds(settings))

    def dag(self, component: ir.Message, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Plan the tasks of a DAG and return its outputs."""
        task_outputs: dict[str, dict[str, Any] | None] = {}
        for name, task in ir.in_order(component):
            task_outputs[name] = self._task(name, task, arguments, task_outputs)
        return _dag_outputs(component, task_outputs)

    def _task(
        self,
        name: str,
        task: ir.Message,
        arguments: Mapping[str, Any],
        task_outputs: Mapping[str, dict[str, Any] | None],
    ) -> dict[str, Any] | None:
        """Plan a task and return its outputs as far as they are known, `None` where it is skipped."""
        component = self._pipeline.component(task)
        inputs = _with_defaults(component, _inputs(task, arguments, task_outputs))
        if condition := task.trigger_policy.condition:
            holds = _holds(condition, inputs)
            if holds is False:
                self._mark(component, name, "skip", "Its condition is not met.")
                return None
            if holds is None:
                waits = next((value.step for value in inputs.values() if isinstance(value, _Unknown)), "")
                self._mark(component, name, "unknown", f"Whether it runs depends on what {waits or 'comes'} gives.")
                return {}
        if ir.iterator(task) is not None:
            self._mark(component, name, "unknown", "A loop: each of its items is looked up when the run comes to it.")
            return {}
        if ir.is_dag(component):
            return self.dag(component, inputs)
        return self._leaf(name, component, inputs, task.caching_options.enable_cache)

    def _leaf(self, name: str, component: ir.Message, inputs: Mapping[str, Any], reusable: bool) -> dict[str, Any]:
        executor = self._pipeline.executor(component)
        outputs = {output: _Unknown(name) for kind in ir.KINDS for output in ir.outputs(component, kind)}
        if not executor.HasField("container"):
            self.steps.append(StepPlan(step=name, action="run", why="It is no container.", changes=[]))
            return outputs
        key = self._key(component, executor, inputs)
        last = self._store.last_parts(name, key.parts)
        unknown = {part: value for part, value in inputs.items() if isinstance(value, _Unknown)}
        changes = _changes(last, key.parts, {f"input {part}" for part in unknown} | {f"parameter {p}" for p in unknown})
        if name in self._forced:
            return self._run(name, "Asked for.", changes, outputs)
        if not reusable:
            return self._run(name, "The pipeline lets nobody reuse its results.", changes, outputs)
        if unknown and last is not None and not changes:
            part, value = next(iter(unknown.items()))
            same = f"{value.step} gives the same {part} again" if value.step else f"the {part} is the same"
            return self._run(name, f"Unless {same}.", [], outputs)
        if unknown:
            return self._run(name, "It has not run yet." if last is None else _in_words(changes), changes, outputs)
        # An older result counts as much as the newest: the store is asked, whatever changed since.
        try:
            result = self._store.find(key.key)
        except ServiceError as error:
            self.silence = error.message
            self.steps.append(StepPlan(step=name, action="unknown", why=error.message, changes=[]))
            return outputs
        if result.outputs is not None:
            why = "An earlier result fits." if changes else "Nothing that it depends on changed."
            self.steps.append(StepPlan(step=name, action="reuse", why=why, changes=[]))
            return dict(result.outputs)
        if result.reason:
            return self._run(name, f"{result.reason}.", changes, outputs)
        why = "It has not run yet." if last is None else _in_words(changes) if changes else "No result is kept."
        return self._run(name, why, changes, outputs)

    def _run(self, name: str, why: str, changes: list[Change], outputs: dict[str, Any]) -> dict[str, Any]:
        self.steps.append(StepPlan(step=name, action="run", why=why, changes=changes))
        return outputs

    def _key(self, component: ir.Message, executor: ir.Message, inputs: Mapping[str, Any]) -> StepKey:
        declared = ir.artifacts(component)
        artifacts: dict[str, list[Any]] = {}
        parameters: dict[str, Any] = {}
        for name, value in inputs.items():
            if isinstance(value, _Unknown):
                continue
            if name in declared:
                artifacts[name] = value if isinstance(value, list) else [value]
            else:
                parameters[name] = value
        command, environment = ir.command_of(executor), ir.environment_of(executor)
        return component_key(self._settings, command, parameters, artifacts, environment)

    def _mark(self, component: ir.Message, name: str, action: Action, why: str) -> None:
        """Give every leaf under a task the same plan."""
        if not ir.is_dag(component):
            self.steps.append(StepPlan(step=name, action=action, why=why, changes=[]))
            return
        for inner, task in ir.in_order(component):
            self._mark(self._pipeline.component(task), inner, action, why)


def _champion(settings: Settings, model: str, key: str) -> str:
    """Return the version to compare with, as `submit` would: not the one that a run with this very key made."""
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    champion = assignments.read(mlflow, model).assignment.champion
    version = champion and _ask(mlflow, "model-versions/get", "model_version", name=model, version=champion)
    if not version:
        return champion or ""
    run = _ask(mlflow, "runs/get", "run", run_id=version.get("run_id", ""))
    parent = tags_of(run["data"]).get(PARENT) if run else None
    maker = _ask(mlflow, "runs/get", "run", run_id=parent) if parent else run
    if maker and tags_of(maker["data"]).get(RUN_KEY) == key:
        params = {item["key"]: item["value"] for item in maker["data"].get("params", [])}
        return str(params.get("champion", ""))
    return str(version["version"])


def _ask(mlflow: Mlflow, path: str, expects: str, **parameters: str) -> dict[str, Any] | None:
    """Return MLflow's answer, `None` where what is asked for does not exist."""
    try:
        answer: dict[str, Any] = mlflow.get(path, expects, **parameters)
    except (NotFoundError, RefusedError):  # an empty id is refused as a wrong parameter
        return None
    return answer


def _with_defaults(component: ir.Message, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {**ir.defaults(component), **{name: value for name, value in arguments.items() if value is not None}}


def _inputs(
    task: ir.Message, arguments: Mapping[str, Any], task_outputs: Mapping[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """Return the values of a task's inputs, `_Unknown` for those that a step will make."""
    values: dict[str, Any] = {}
    for kind in ir.KINDS:
        for name, origin in ir.inputs(task, kind).items():
            if origin.kind == "output":
                values[name] = (task_outputs.get(origin.task) or {}).get(origin.name, _Unknown(origin.task))
            elif origin.kind == "input":
                values[name] = arguments.get(origin.name)
            else:
                values[name] = origin.value if origin.kind == "constant" else _Unknown("")
    return values


def _dag_outputs(component: ir.Message, task_outputs: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return the outputs of a DAG, each from the first of its possible sources that is not skipped."""
    outputs: dict[str, Any] = {}
    for kind in ir.KINDS:
        for name in getattr(component.dag.outputs, kind):
            for producer, key in ir.selectors(component, kind, name):
                producer_outputs = task_outputs.get(producer)
                if producer_outputs is not None:
                    outputs[name] = producer_outputs.get(key, _Unknown(producer))
                    break
    return outputs


def _changes(last: Mapping[str, str] | None, now: Mapping[str, str], open_: set[str]) -> list[Change]:
    """Return the parts that differ, but for those that nobody knows yet."""
    if last is None:
        return []
    return [
        Change(part=part, old=last.get(part), new=now.get(part))
        for part in sorted(last.keys() | now.keys())
        if part not in open_ and last.get(part) != now.get(part)
    ]


def _in_words(changes: list[Change]) -> str:
    parts = [change.part for change in changes]
    text = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
    return f"Changed: {text}."


def _holds(condition: str, inputs: Mapping[str, Any]) -> bool | None:
    """Tell whether a condition holds, `None` where nobody can tell yet."""
    unknown = {name for name, value in inputs.items() if isinstance(value, _Unknown)}
    try:
        tree = conditions.parse(condition)
        values = dict.fromkeys(conditions.parameters(tree), None) | dict(inputs)
        return conditions.evaluate(tree, {name: value for name, value in values.items() if name not in unknown})
    except conditions.ConditionError:
        return None

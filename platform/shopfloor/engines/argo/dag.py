"""DAG templates: one for each KFP DAG, with one Argo task per KFP task.

An optional input without a value is known before the run: a DAG that is used with and without one has two templates.
A loop is a template of its own around its body: it succeeds when there is nothing to loop over, holds the limit of
parallel iterations, and makes JSON lists of what the iterations give.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from shopfloor.engines.argo import executors, outputs
from shopfloor.engines.argo.arguments import arguments, value_of
from shopfloor.engines.argo.containers import Use, retry_strategy
from shopfloor.engines.argo.launcher import PLACEHOLDER, protect
from shopfloor.engines.argo.outputs import ITERATION
from shopfloor.engines.argo.source import ENVELOPE_SUFFIX, STEP_NAME, Source, UnsupportedFeature
from shopfloor.engines.argo.values import Value, computed, constant
from shopfloor.errors import UsageError
from shopfloor.pipeline import conditions, ir
from shopfloor.pipeline.ir import Json, Message, Origin, broken
from shopfloor.settings import Settings


@dataclass(frozen=True)
class Template:
    """A template and what its users must know of it."""

    name: str
    references: tuple[tuple[str, Origin], ...] = ()
    """Further inputs that it needs: name, and what they are given."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """Output artifact to the part of its key that all executions share; only where there is one such."""


class Templates:
    """Makes the templates of a workflow, each once."""

    def __init__(
        self, source: Source, settings: Settings, run_id: str | None, use_cache: bool, pipeline_root: str
    ) -> None:
        """Begin with no templates."""
        self._source = source
        self._settings = settings
        self._run_id = run_id
        self._use_cache = use_cache
        self._pipeline_root = pipeline_root
        self._templates: dict[tuple[object, ...], Template] = {}
        self._names: dict[str, str] = {}
        self._by_name: dict[str, Json] = {}
        self.pull_secrets: set[str] = set()

    @property
    def all(self) -> list[Json]:
        """The templates, each after those that it uses."""
        return list(self._by_name.values())

    def dag(
        self,
        name: str,
        component: Message,
        absent: frozenset[str],
        as_json: bool = False,
        retry: Json | None = None,
    ) -> Template:
        """Make the template of a DAG.

        Args:
            name: Name of its component.
            component: The component.
            absent: Its optional inputs that have no value.
            as_json: Whether outputs that are strings are given as JSON, as a loop needs them of its body.
            retry: How it is tried again as a whole.

        Raises:
            UnsupportedFeature: A task in it cannot be translated.
        """
        memo = ("dag", name, absent, as_json, json.dumps(retry))
        if memo not in self._templates:
            prefixes: dict[tuple[str, str], str] = {}
            tasks = {
                task_name: self._task(component, task_name, task, absent, prefixes)
                for task_name, task in ir.tasks(component).items()
            }
            for group, handler in _exit_handlers(component).items():
                # Argo runs hooks, and nothing else, when a workflow is stopped.
                hook = tasks.pop(handler)
                tasks[group]["hooks"] = {"exit": {key: hook[key] for key in ("template", "arguments") if key in hook}}
            dag: Json = {"tasks": list(tasks.values())}
            always = any(ir.waits_for_all(component.dag.tasks[name]) for name in tasks)
            if always or any("containerSet" in self._by_name[task["template"]] for task in tasks.values()):
                # What failed fails the DAG even where a later task was there to run all the same, after that task. Of a
                # pod with several containers Argo sees the containers alone, unless it is looked at by itself.
                dag |= {"target": " ".join(tasks), "failFast": False}
            template: Json = {"inputs": {"parameters": self._inputs(component, absent)}, "dag": dag}
            if retry:
                template["retryStrategy"] = retry
            if parameters := outputs.of_dag(self._source, component, as_json):
                template["outputs"] = {"parameters": parameters}
            shared = {}
            for output in ir.outputs(component, "artifacts"):
                output_prefixes = {prefixes.get(selector) for selector in ir.selectors(component, "artifacts", output)}
                if len(output_prefixes) == 1 and (prefix := output_prefixes.pop()):
                    shared[output] = prefix
            self._templates[memo] = Template(self._add(name, template), (), tuple(shared.items()))
        return self._templates[memo]

    def _add(self, title: str, template: Json) -> str:
        """Keep a template under a name; the same one is kept once."""
        if template.get("inputs") == {"parameters": []}:
            del template["inputs"]
        text = json.dumps(template, sort_keys=True)
        if text not in self._names:
            base = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:110] or "template"
            name, number = base, 2
            while name in self._by_name:
                name, number = f"{base}-{number}", number + 1
            self._names[text] = name
            self._by_name[name] = {"name": name, **template}
        return self._names[text]

    def _inputs(self, component: Message, absent: frozenset[str]) -> list[Json]:
        inputs: list[Json] = []
        defaults = ir.defaults(component)
        for name, definition in ir.parameters(component).items():
            if name not in absent:
                default = constant(defaults[name], ir.type_of(definition)).text if name in defaults else None
                inputs.append({"name": name} if default is None else {"name": name, "default": default})
        return inputs + [{"name": name + ENVELOPE_SUFFIX} for name in ir.artifacts(component) if name not in absent]

    def _task(
        self, dag: Message, name: str, task: Message, absent: frozenset[str], prefixes: dict[tuple[str, str], str]
    ) -> Json:
        """Return one task of a DAG."""
        component = self._source.component(task)
        values = arguments(dag, name, task, component, absent, self._pipeline_root)
        declared = {**ir.parameters(component), **ir.artifacts(component)}
        iterator, defaults = ir.iterator(task), ir.defaults(component)
        item = "" if iterator is None else iterator.item_input
        without = frozenset(name for name in declared if name not in values and name not in defaults and name != item)
        for input_name in sorted(without - {*task.inputs.parameters, *task.inputs.artifacts}):
            if not declared[input_name].is_optional:
                raise broken(f"task {name!r} lacks the input {input_name!r}")
        template = self._template(name, task, component, without, absent)
        for output, prefix in template.prefixes:
            prefixes[name, output] = prefix
        input_names = self._needed(template.name)
        texts = {
            input_name + (ENVELOPE_SUFFIX if input_name in ir.artifacts(component) else ""): value.text
            for input_name, value in values.items()
        }
        for extra, origin in template.references:
            ir.check_origin(self._source, dag, name, origin)
            value = value_of(dag, name, task, origin, None, absent, values, self._pipeline_root)
            if value is None:
                raise broken(f"a setting of task {name!r} takes the input {extra!r}, which has no value")
            texts[extra] = value.text
        texts[STEP_NAME] = name
        result: Json = {"name": name, "template": template.name}
        parameters = [{"name": key, "value": value} for key, value in sorted(texts.items()) if key in input_names]
        if parameters:
            result["arguments"] = {"parameters": parameters}
        if depends := self._depends(dag, task, template.references):
            result["depends"] = depends
        if condition := task.trigger_policy.condition:
            result["when"] = self._condition(name, condition, component, values)
        return result

    def _needed(self, template: str) -> set[str]:
        return {item["name"] for item in self._by_name[template].get("inputs", {}).get("parameters", [])}

    def _template(
        self, name: str, task: Message, component: Message, absent: frozenset[str], above_absent: frozenset[str]
    ) -> Template:
        """Return the template that a task uses."""
        if ir.iterator(task) is not None:
            return self._loop(name, task, component, absent, above_absent)
        if not ir.is_dag(component):
            return self._leaf(name, task, component, absent, above_absent)
        return self.dag(task.component_ref.name, component, absent, retry=retry_strategy(name, task, None))

    def _leaf(
        self, name: str, task: Message, component: Message, absent: frozenset[str], above_absent: frozenset[str]
    ) -> Template:
        varying = (task.inputs, above_absent) if self._varies(component) else ()
        parts = [
            part if isinstance(part, frozenset) else part.SerializeToString(deterministic=True)
            for part in (task.retry_policy, task.caching_options, *varying)
        ]
        memo = ("leaf", task.component_ref.name, absent, *parts)
        if memo not in self._templates:
            use = Use(
                self._source,
                self._settings,
                name,
                task,
                component,
                absent,
                above_absent,
                self._run_id,
                self._use_cache,
                self._pipeline_root,
            )
            leaf = executors.leaf(use)
            self.pull_secrets.update(leaf.pull_secrets)
            self._templates[memo] = Template(
                self._add(task.component_ref.name, leaf.template),
                tuple(leaf.references.items()),
                tuple((output, f"{leaf.key}/{output}") for output in ir.outputs(component, "artifacts")),
            )
        return self._templates[memo]

    def _varies(self, component: Message) -> bool:
        """Tell whether a task's inputs can change its template or be refused by it: then no two share it unseen."""
        executor = self._source.executor(component)
        container = executor.container
        launched = any("{{$}}" in word for word in ir.command_of(executor)) and not container.HasField("resources")
        fixed_image = not PLACEHOLDER.search(container.image)
        return not (launched and fixed_image) or component.executor_label in self._source.platform

    def _loop(
        self, name: str, task: Message, component: Message, absent: frozenset[str], above_absent: frozenset[str]
    ) -> Template:
        """Return the template of a loop over a task."""
        item = ir.iterator(task).item_input
        if item not in ir.parameters(component) | ir.artifacts(component):
            raise broken(f"the loop {name!r} has no input {item!r}")
        if not ir.is_dag(component) and component.HasField("output_definitions"):
            raise UnsupportedFeature(name, "a loop over a component with outputs, without a DAG around it")
        body = (
            self.dag(task.component_ref.name, component, absent, as_json=True)
            if ir.is_dag(component)
            else self._leaf(name, task, component, absent, above_absent)
        )
        item += ENVELOPE_SUFFIX if task.HasField("artifact_iterator") else ""
        input_names = self._needed(body.name)
        passed = [n for n in sorted(input_names | {key for key, _ in body.references}) if n not in {item, STEP_NAME}]
        parameters = [{"name": n, "value": f"{{{{inputs.parameters.{n}}}}}"} for n in passed]
        if item in input_names:
            parameters.append({"name": item, "value": "{{item}}"})
        if STEP_NAME in input_names:
            parameters.append({"name": STEP_NAME, "value": name})
        over, source = _items(name, task, absent)
        inputs = [{"name": n} for n in (*passed, *({source} - {"", *passed}))]
        inner: Json = {"name": ITERATION, "template": body.name, "withParam": over}
        if parameters:
            inner["arguments"] = {"parameters": parameters}
        template: Json = {"inputs": {"parameters": inputs}, "dag": {"tasks": [inner]}}
        if limit := task.iterator_policy.parallelism_limit:
            template["parallelism"] = limit
        prefixes = dict(body.prefixes)
        lists = [outputs.of_loop(output, "") for output in ir.outputs(component, "parameters")]
        for output in ir.outputs(component, "artifacts"):
            if output not in prefixes:
                raise UnsupportedFeature(name, f"the collected artifact {output!r}, which several tasks may make")
            lists.append(outputs.of_loop(output, prefixes[output]))
        if lists:
            template["outputs"] = {"parameters": lists}
        return Template(self._add(f"{task.component_ref.name}-loop", template), body.references, body.prefixes)

    def _depends(self, dag: Message, task: Message, references: tuple[tuple[str, Origin], ...]) -> str:
        """Return what a task waits for, and with which outcome."""
        before = ir.producers(task) | {origin.task for _, origin in references if origin.task}
        terms: list[str] = []
        for name in sorted(before):
            if ir.waits_for_all(task):
                terms.append(
                    f"({name}.Succeeded || {name}.Failed || {name}.Errored || {name}.Skipped || {name}.Omitted)"
                )
            elif dag.dag.tasks[name].trigger_policy.condition:
                terms.append(f"({name}.Succeeded || {name}.Skipped)")
            else:
                terms.append(f"{name}.Succeeded")
        return " && ".join(terms)

    def _condition(self, name: str, condition: str, component: Message, values: dict[str, Value]) -> str:
        declared, defaults = ir.parameters(component), ir.defaults(component)

        def argument(input_name: str) -> conditions.Argument | None:
            kind = ir.type_of(declared[input_name]) if input_name in declared else "STRING"
            if input_name in values:
                expression = values[input_name].expression
            elif defaults.get(input_name) is not None:
                expression = constant(defaults[input_name], kind).expression
            else:
                return None
            if kind in {"NUMBER_INTEGER", "NUMBER_DOUBLE"}:
                return conditions.Argument("number", f"asFloat({expression})")
            return conditions.Argument("text", expression)

        try:
            return computed(conditions.to_argo(conditions.parse(condition), argument, protect)).text
        except ValueError as error:
            raise UnsupportedFeature(name, f"the {error}") from error


def _items(name: str, task: Message, absent: frozenset[str]) -> tuple[str, str]:
    """Return over what a loop goes, and the input that its template needs for that."""
    items = ir.iterator(task).items
    if task.HasField("artifact_iterator"):
        if items.input_artifact not in task.inputs.artifacts or items.input_artifact in absent:
            raise broken(f"the loop {name!r} has no items")
        # What a loop in a loop collected is a list that holds lists.
        envelope = items.input_artifact + ENVELOPE_SUFFIX
        listed = f"fromJSON(inputs.parameters['{envelope}']).items"
        return computed(f"toJson(flatten(map({listed}, #.items ?? [#])))").text, envelope
    if items.WhichOneof("kind") == "raw":
        try:
            values = json.loads(items.raw)
        except ValueError as error:
            raise broken(f"the items of the loop {name!r} are no JSON") from error
        if not isinstance(values, list):
            raise broken(f"the items of the loop {name!r} are no list")
        if PLACEHOLDER.search(items.raw):
            raise UnsupportedFeature(name, "a placeholder among the items of a loop")
        return protect(items.raw), ""
    source = items.input_parameter
    if source not in task.inputs.parameters:
        raise broken(f"the loop {name!r} has no items")
    if source in absent:
        raise UsageError(f"The loop {name!r} is over an input without a value.", "Give the parameter a list.")
    return f"{{{{inputs.parameters.{source}}}}}", source


def _exit_handlers(component: Message) -> dict[str, str]:
    """Return the groups of tasks that an exit task follows, and that task."""
    tasks = ir.tasks(component)
    handlers: dict[str, str] = {}
    for name, task in tasks.items():
        before = ir.producers(task)
        if not ir.waits_for_all(task) or len(before) != 1 or ir.iterator(task) is not None:
            continue
        [group] = before
        # The compiler calls so what stands within `dsl.ExitHandler`.
        if not group.startswith("exit-handler-") or group in handlers:
            continue
        if not any(name in ir.producers(other) for other in tasks.values()) and not _gives(component, name):
            handlers[group] = name
    return handlers


def _gives(component: Message, task: str) -> bool:
    """Tell whether an output of a DAG is taken from a task."""
    return any(
        task == producer
        for kind in ("parameters", "artifacts")
        for output in ir.outputs(component, kind)
        for producer, _ in ir.selectors(component, kind, output)
    )

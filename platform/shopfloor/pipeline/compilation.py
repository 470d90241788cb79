"""From a pipeline file to what an engine runs: KFP's intermediate representation and checked arguments.

The file is a pipeline in Python, or one that somebody has compiled already: KFP's YAML of one or two documents.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from shopfloor.errors import NotFoundError, UsageError
from shopfloor.pipeline.ir import artifacts, in_order, mend, parameters, producers
from shopfloor.pipeline.keys import step_key
from shopfloor.settings import Settings

_TYPES = {
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "STRING": "text",
    "LIST": "a JSON list",
    "STRUCT": "a JSON object",
}
RESOLVED_AT_SUBMIT = ("champion", "data_rev")
"""Parameters that say where to look, not what is there: they do not count in the run's key."""


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline."""

    name: str
    spec: Any
    """KFP's `PipelineSpec` message."""
    ir: dict[str, Any]
    """The same as JSON."""
    steps: list[str]
    """Names of the leaf tasks, in an order that respects their dependencies."""
    edges: list[tuple[str, str]]
    """Which leaf task waits for which: (before, after)."""
    platforms: dict[str, Any]
    """KFP's platform configuration as JSON (`{"platforms": {"kubernetes": ...}}`), or empty."""
    file: Path
    """Where it stands, absolute."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The definitions of the pipeline's parameters by name."""
        return parameters(self.ir["root"])

    def from_step_on(self, step: str | None) -> frozenset[str]:
        """Return a step and all that follows it; nothing for no step.

        Raises:
            UsageError: There is no such step.
        """
        if step is None:
            return frozenset()
        if step not in self.steps:
            raise UsageError(f"Pipeline {self.name!r} has no step {step!r}.", f"It has {', '.join(self.steps)}.")
        found, queue = {step}, [step]
        while queue:
            before = queue.pop()
            after = {later for earlier, later in self.edges if earlier == before} - found
            found |= after
            queue += after
        return frozenset(found)

    def without_cache(self, steps: frozenset[str]) -> dict[str, Any]:
        """Return the IR in which these steps take no stored result."""
        if not steps:
            return self.ir
        ir: dict[str, Any] = json.loads(json.dumps(self.ir))
        for dag in (ir["root"], *ir["components"].values()):
            for name, task in dag.get("dag", {}).get("tasks", {}).items():
                if name in steps:
                    task["cachingOptions"] = {}
        return ir


def compile_pipeline(settings: Settings, file: str, function: str | None = None) -> Compiled:
    """Compile a pipeline that a Python file defines, or read one that was compiled before.

    Args:
        settings: Its project's modules can be imported by the file, and so can those beside it.
        file: Path of a Python or YAML file, relative to the working directory or the project.
        function: Which pipeline of a Python file; needed only where there are several that none of the others uses.

    Raises:
        NotFoundError: There is no such file, or no such pipeline in it.
        UsageError: It is not a pipeline, or more than one, or KFP refuses it.
    """
    path = next((p for p in (Path(file), settings.project_root / file) if p.is_file()), None)
    if path is None:
        known = ", ".join(
            f"pipelines/{p.name}" for p in sorted((settings.project_root / "pipelines").glob("[a-z]*.py"))
        )
        raise NotFoundError(f"There is no pipeline file {file}.", f"Known pipelines: {known}.")
    _import_kfp()
    if path.suffix == ".py":
        spec, platforms = _from_python(settings, path, file, function)
    elif path.suffix in {".yaml", ".yml", ".json"}:
        if function is not None:
            raise UsageError(f"{file} is one compiled pipeline.", "Leave --function out.")
        spec, platforms = _from_ir(path, file)
    else:
        raise UsageError(
            f"{file} is neither Python nor YAML.", "Name a file such as pipelines/training.py, or a compiled pipeline."
        )
    from google.protobuf import json_format

    mend(spec)
    ir = json_format.MessageToDict(spec)
    steps, edges = steps_and_edges(ir)
    return Compiled(
        name=spec.pipeline_info.name,
        spec=spec,
        ir=ir,
        steps=steps,
        edges=edges,
        platforms=json_format.MessageToDict(platforms),
        file=path.resolve(),
    )


def parse_parameters(compiled: Compiled, given: list[str]) -> dict[str, Any]:
    """Turn `key=value` texts into the pipeline's arguments; an input artifact is given as its address.

    Raises:
        UsageError: An unknown parameter, a value of the wrong type, a missing or doubled one.
    """
    declared, inputs = compiled.parameters, artifacts(compiled.ir["root"])
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"Parameter {text!r} has no value.", "Write it as key=value.")
        if name in inputs:
            values[name] = value
            continue
        if name not in declared:
            known = ", ".join(sorted([*declared, *inputs]))
            remedy = f"It has {known}." if known else "It has no parameters."
            raise UsageError(f"Pipeline {compiled.name!r} has no parameter {name!r}.", remedy)
        values[name] = _convert(name, value, declared[name]["parameterType"])
    return values


def refuse_artifacts(compiled: Compiled, arguments: dict[str, Any], engine: str) -> None:
    """Refuse input artifacts of a pipeline that is to run on an engine which cannot hand them on.

    Raises:
        UsageError: One is given.
    """
    given = artifacts(compiled.ir["root"]).keys() & arguments.keys()
    if given and engine != "argo":
        raise UsageError(
            f"The {engine} engine takes no artifact for the pipeline's input {min(given)!r}.",
            "Submit with --engine argo, or let the pipeline import it with dsl.importer.",
        )


def require_parameters(compiled: Compiled, values: dict[str, Any]) -> None:
    """Refuse a run that lacks a parameter without a default.

    Raises:
        UsageError: One is missing.
    """
    declared = compiled.parameters
    missing = [
        name
        for name, definition in declared.items()
        if name not in values and "defaultValue" not in definition and not definition.get("isOptional")
    ]
    if missing:
        hint = "Give it with --use-case." if missing == ["use_case"] else "Give them with -p key=value."
        raise UsageError(f"Pipeline {compiled.name!r} needs {', '.join(missing)}.", hint)


def run_key(settings: Settings, compiled: Compiled, arguments: dict[str, Any]) -> str:
    """Return the hash of all that goes into a run: the DAG, every step's code, the parameters, the data version."""
    what = {name: value for name, value in arguments.items() if name not in RESOLVED_AT_SUBMIT}
    code: dict[str, str] = {}
    for name, executor in sorted(compiled.ir["deploymentSpec"]["executors"].items()):
        container = executor.get("container", {})
        command = [*container.get("command", []), *container.get("args", [])]
        source = next((part for part in command if "\nfrom kfp import dsl" in part), "")
        function = command[command.index("--function_to_execute") + 1] if "--function_to_execute" in command else name
        known = {"use_case": arguments["use_case"]} if "use_case" in arguments else {}
        # What is not a Python function is all in its executor: the image, the command, the importer's address.
        code[name] = step_key(settings, source, function, known, {}).key if source else json.dumps(executor)
    text = json.dumps({"arguments": what, "code": code, "dag": compiled.ir["root"]["dag"]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _import_kfp() -> None:
    """Import KFP's SDK without its client, which comes when somebody asks for it.

    PATCH kfp 2.17: `import kfp` brings in the client and with it every model of Kubernetes: 0.5 of its 0.7 s.
    """
    if "kfp" in sys.modules:
        return
    stand_in: Any = ModuleType("kfp.client")
    stand_in.Client = None
    sys.modules["kfp.client"] = stand_in
    try:
        import kfp
    finally:
        del sys.modules["kfp.client"]

    def client(name: str) -> Any:
        if name != "Client":
            raise AttributeError(f"module 'kfp' has no attribute {name!r}")
        return importlib.import_module("kfp.client").Client

    del kfp.Client
    kfp.__getattr__ = client


def _from_python(settings: Settings, path: Path, file: str, function: str | None) -> tuple[Any, Any]:
    """Return the `PipelineSpec` and the `PlatformSpec` of a pipeline that a Python file defines."""
    from kfp.dsl.graph_component import GraphComponent

    pipelines = {
        id(value): (name, value)
        for name, value in vars(_load(settings, path)).items()
        if isinstance(value, GraphComponent) and function in {None, name}
    }
    chosen = [value for _, value in pipelines.values()]
    if len(chosen) > 1:
        chosen = [value for value in chosen if not any(_is_step_of(value, other) for other in chosen)]
    if function is not None and not chosen:
        raise NotFoundError(f"{file} defines no pipeline {function!r}.", "Name a function with @dsl.pipeline.")
    if len(chosen) > 1:
        names = ", ".join(name for name, value in pipelines.values() if value in chosen)
        raise UsageError(f"{file} defines {len(chosen)} pipelines: {names}.", "Choose one with --function.")
    if not chosen:
        raise UsageError(f"{file} defines 0 pipelines, not one.", "A pipeline is a function with @dsl.pipeline.")
    return chosen[0].pipeline_spec, chosen[0].platform_spec


def _is_step_of(inner: Any, outer: Any) -> bool:
    """Tell whether one pipeline is a step of another: KFP names the component of a step after it."""
    step = re.compile(re.escape(f"comp-{inner.pipeline_spec.pipeline_info.name}") + r"(-\d+)?")
    return inner is not outer and any(
        step.fullmatch(name) and component.HasField("dag") for name, component in outer.pipeline_spec.components.items()
    )


def _from_ir(path: Path, file: str) -> tuple[Any, Any]:
    """Return the `PipelineSpec` and the `PlatformSpec` that a compiled pipeline holds."""
    import yaml
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    remedy = "A compiled pipeline is what `kfp dsl compile` writes."
    try:
        text = path.read_text(encoding="utf-8")
        documents = list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not YAML: {_one_line(error)}.", remedy) from error
    pipeline, platforms = documents[0] if documents else None, documents[1] if len(documents) == 2 else {}
    if len(documents) > 2 or not isinstance(pipeline, dict) or not isinstance(platforms, dict):
        raise UsageError(f"{file} is not a compiled pipeline.", remedy)
    if not isinstance(pipeline.get("root"), dict) or "pipelineInfo" not in pipeline:
        kind = pipeline.get("kind") or ("KFP v1 component" if "implementation" in pipeline else "")
        raise UsageError(f"{file} is not a compiled pipeline" + (f" but a {kind}." if kind else "."), remedy)
    try:
        spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        platform = json_format.ParseDict(platforms, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise UsageError(f"{file} is not a compiled pipeline: {_one_line(error)}", remedy) from error
    unknown = [
        task.component_ref.name
        for component in [spec.root, *spec.components.values()]
        for task in component.dag.tasks.values()
        if task.component_ref.name not in spec.components
    ]
    if unknown or not spec.root.dag.tasks:
        what = f"it has no component {unknown[0]!r}" if unknown else "it has no tasks"
        raise UsageError(f"{file} is not a whole pipeline: {what}.", remedy)
    return spec, platform


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _load(settings: Settings, path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(f"_pipeline_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise UsageError(f"{path} is not a Python file.", "Name a file such as pipelines/training.py.")
    module = importlib.util.module_from_spec(specification)
    try:
        with _importable(settings, path.parent):
            specification.loader.exec_module(module)
    except Exception as error:
        raise UsageError(
            f"{path} cannot be loaded: {type(error).__name__}: {_one_line(error)}", "Mend the file."
        ) from error
    return module


@contextlib.contextmanager
def _importable(settings: Settings, folder: Path) -> Iterator[None]:
    """Let modules of the project be imported, and those beside a pipeline's file, which are forgotten afterwards."""
    root, beside = str(settings.project_root), str(folder.resolve())
    if root not in sys.path:
        sys.path.insert(0, root)
    before = set(sys.modules)
    # Behind all others: a file that happens to be called as a library is must not stand in for it.
    sys.path.append(beside)
    try:
        yield
    finally:
        sys.path.remove(beside)
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == Path(beside) and "." not in name:
                del sys.modules[name]


def _convert(name: str, text: str, kind: str) -> Any:
    try:
        if kind == "NUMBER_INTEGER":
            return int(text)
        if kind == "NUMBER_DOUBLE":
            return float(text)
        if kind == "BOOLEAN":
            return {"true": True, "false": False}[text.lower()]
        if kind in {"LIST", "STRUCT"}:
            value = json.loads(text)
            if not isinstance(value, list if kind == "LIST" else dict):
                raise ValueError
            return value
    except (ValueError, KeyError):
        raise UsageError(f"Parameter {name!r} must be {_TYPES[kind]}, not {text!r}.", f"Write -p {name}=...") from None
    return text


def steps_and_edges(ir: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the leaf tasks of a pipeline's IR in an order that they can run in, and which of them waits for which."""
    return _leaves(ir, ir["root"])


def _leaves(ir: dict[str, Any], dag: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the leaf tasks under a DAG, nested ones opened, and the edges between them."""
    steps: list[str] = []
    edges: list[tuple[str, str]] = []
    inside: dict[str, list[str]] = {}
    for name, task in in_order(dag):
        component = ir["components"][task["componentRef"]["name"]]
        if "dag" in component:
            inner_steps, inner_edges = _leaves(ir, component)
            heads = [step for step in inner_steps if step not in {after for _, after in inner_edges}]
            edges += inner_edges
        else:
            inner_steps = heads = [name]
        inside[name] = inner_steps
        steps += inner_steps
        for before in sorted(producers(task)):
            last = inside.get(before, [])[-1:]
            edges += [(step, head) for step in last for head in heads]
    return steps, edges

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
from typing import Any

from shopfloor.errors import NotFoundError, UsageError
from shopfloor.pipeline import ir
from shopfloor.pipeline.ir import Json, Pipeline, one_line
from shopfloor.pipeline.keys import step_key
from shopfloor.pipeline.sdk import import_kfp, mend
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
    pipeline: Pipeline
    """The pipeline as KFP's compiler made it."""
    steps: list[str]
    """Names of the leaf tasks, in an order that respects their dependencies."""
    edges: list[tuple[str, str]]
    """Pairs of leaf tasks of which the second waits for the first."""
    platforms: dict[str, Any]
    """KFP's platform configuration as JSON (`{"platforms": {"kubernetes": ...}}`), or empty."""
    file: Path
    """Absolute path of the pipeline file."""

    @property
    def ir(self) -> Json:
        """The pipeline as JSON."""
        return self.pipeline.as_json()

    @property
    def parameters(self) -> dict[str, Any]:
        """The definitions of the pipeline's parameters by name: KFP's `ParameterSpec`s."""
        return ir.parameters(self.pipeline.root)

    def from_step_on(self, step: str | None) -> frozenset[str]:
        """Return a step and all that follows it; nothing for no step.

        Raises:
            UsageError: There is no such step.
        """
        if step is None:
            return frozenset()
        if step not in self.steps:
            raise UsageError(f"Pipeline {self.name!r} has no step {step!r}.", f"It has {', '.join(self.steps)}.")
        steps, queue = {step}, [step]
        while queue:
            before = queue.pop()
            after = {later for earlier, later in self.edges if earlier == before} - steps
            steps |= after
            queue += after
        return frozenset(steps)

    def without_cache(self, steps: frozenset[str]) -> Json:
        """Return the IR, as JSON, in which these steps take no stored result."""
        spec = type(self.pipeline.spec)()
        spec.CopyFrom(self.pipeline.spec)
        for name, task in Pipeline(spec, {}).tasks():
            if name in steps:
                ir.forbid_cache(task)
        return Pipeline(spec, self.pipeline.executors).as_json()


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
        names = ", ".join(
            f"pipelines/{p.name}" for p in sorted((settings.project_root / "pipelines").glob("[a-z]*.py"))
        )
        raise NotFoundError(f"There is no pipeline file {file}.", f"Known pipelines: {names}.")
    import_kfp()
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
    mend(spec)
    # What stands in a file may have been changed since KFP's compiler wrote it.
    pipeline = ir.unchecked(spec) if path.suffix == ".py" else ir.checked(spec)
    steps, edges = pipeline.leaves(pipeline.root)
    return Compiled(
        name=pipeline.name,
        pipeline=pipeline,
        steps=steps,
        edges=edges,
        platforms=ir.as_json(platforms),
        file=path.resolve(),
    )


def parse_parameters(compiled: Compiled, texts: list[str]) -> dict[str, Any]:
    """Turn `key=value` texts into the pipeline's arguments; an input artifact is given as its address.

    Raises:
        UsageError: An unknown parameter, a value of the wrong type, a missing or doubled one.
    """
    declared, inputs = compiled.parameters, ir.artifacts(compiled.pipeline.root)
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"Parameter {text!r} has no value.", "Write it as key=value.")
        if name in inputs:
            values[name] = value
            continue
        if name not in declared:
            names = ", ".join(sorted([*declared, *inputs]))
            remedy = f"It has {names}." if names else "It has no parameters."
            raise UsageError(f"Pipeline {compiled.name!r} has no parameter {name!r}.", remedy)
        values[name] = _convert(name, value, ir.type_of(declared[name]))
    return values


def refuse_artifacts(compiled: Compiled, arguments: dict[str, Any], engine: str) -> None:
    """Refuse input artifacts of a pipeline that is to run on an engine which cannot hand them on.

    Raises:
        UsageError: One is given.
    """
    artifacts = ir.artifacts(compiled.pipeline.root).keys() & arguments.keys()
    if artifacts and engine != "argo":
        raise UsageError(
            f"The {engine} engine takes no artifact for the pipeline's input {min(artifacts)!r}.",
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
        if name not in values and not definition.HasField("default_value") and not definition.is_optional
    ]
    if missing:
        hint = "Give it with --use-case." if missing == ["use_case"] else "Give them with -p key=value."
        raise UsageError(f"Pipeline {compiled.name!r} needs {', '.join(missing)}.", hint)


def run_key(settings: Settings, compiled: Compiled, arguments: dict[str, Any]) -> str:
    """Return the hash of all that goes into a run: the DAG, every step's code, the parameters, the data version."""
    what = {name: value for name, value in arguments.items() if name not in RESOLVED_AT_SUBMIT}
    code: dict[str, str] = {}
    for name, executor in sorted(compiled.pipeline.executors.items()):
        command = ir.command_of(executor)
        source = next((part for part in command if "\nfrom kfp import dsl" in part), "")
        function = command[command.index("--function_to_execute") + 1] if "--function_to_execute" in command else name
        parameters = {"use_case": arguments["use_case"]} if "use_case" in arguments else {}
        # What is not a Python function is all in its executor: the image, the command, the importer's address.
        code[name] = (
            step_key(settings, source, function, parameters, {}).key
            if source
            else json.dumps(ir.as_json(executor), sort_keys=True)
        )
    text = json.dumps({"arguments": what, "code": code, "dag": ir.as_json(compiled.pipeline.root.dag)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _from_python(settings: Settings, path: Path, file: str, function: str | None) -> tuple[Any, Any]:
    """Return the `PipelineSpec` and the `PlatformSpec` of a pipeline that a Python file defines."""
    from kfp.dsl.graph_component import GraphComponent

    pipelines = {
        id(value): (name, value)
        for name, value in vars(_load(settings, path)).items()
        if isinstance(value, GraphComponent) and function in {None, name}
    }
    candidates = [value for _, value in pipelines.values()]
    if len(candidates) > 1:
        candidates = [value for value in candidates if not any(_is_step_of(value, other) for other in candidates)]
    if function is not None and not candidates:
        raise NotFoundError(f"{file} defines no pipeline {function!r}.", "Name a function with @dsl.pipeline.")
    if len(candidates) > 1:
        names = ", ".join(name for name, value in pipelines.values() if value in candidates)
        raise UsageError(f"{file} defines {len(candidates)} pipelines: {names}.", "Choose one with --function.")
    if not candidates:
        raise UsageError(f"{file} defines 0 pipelines, not one.", "A pipeline is a function with @dsl.pipeline.")
    return candidates[0].pipeline_spec, candidates[0].platform_spec


def _is_step_of(inner: Any, outer: Any) -> bool:
    """Tell whether one pipeline is a step of another: KFP names the component of a step after it."""
    step = re.compile(re.escape(f"comp-{inner.pipeline_spec.pipeline_info.name}") + r"(-\d+)?")
    return inner is not outer and any(
        step.fullmatch(name) and ir.is_dag(component) for name, component in outer.pipeline_spec.components.items()
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
        raise UsageError(f"{file} is not YAML: {one_line(error)}.", remedy) from error
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
        raise UsageError(f"{file} is not a compiled pipeline: {one_line(error)}", remedy) from error
    return spec, platform


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
            f"{path} cannot be loaded: {type(error).__name__}: {one_line(error)}", "Mend the file."
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

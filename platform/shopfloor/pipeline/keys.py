"""The content key of a step: what its result depends on, and nothing else.

A key is the hash of the step's code (the component's source and the modules of this repository that it imports), the
parts of the use case that it reads, its parameters, the content of its inputs (not their names or places) and the lock.
Comments, docstrings and formatting do not count. Engines look a key up in the result store (`results.py`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from shopfloor.settings import Settings
from shopfloor.storage import CONTENT_HASH, file_stamp, remembered
from shopfloor.use_case import UseCase, load_use_case

_PACKAGES = {"shopfloor": "platform/shopfloor", "components": "components", "pipelines": "pipelines"}


class StepKey(BaseModel):
    """A step's key and the parts that it is made of, so that `why` can be answered part by part."""

    model_config = ConfigDict(frozen=True)

    key: str
    parts: dict[str, str]
    """Part, e.g. `code shopfloor.training.tuning`, `parameter trials`, `input features`, to its hash or value."""


def step_key(
    settings: Settings,
    source: str,
    function: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
) -> StepKey:
    """Return the key of one execution of a component.

    Args:
        settings: Says where the project is.
        source: The component's own source, as it stands in the compiled pipeline.
        function: The component's function name; `components/<function>.py` says in READS what of the use case it reads.
        parameters: Input parameters by name, JSON values.
        inputs: Input artifacts by name, each the hash of its content.
        environment: Environment variables that the pipeline sets for the step.

    Raises:
        UsageError: The use case that the parameters name is broken.
    """
    parts = {"code": _hash(_normalized(source)), "lock": lock_hash(settings)}
    parts |= {f"code {name}": digest for name, digest in _imported_code(settings, source).items()}
    use_case = parameters.get("use_case")
    if isinstance(use_case, str) and use_case:
        parts |= _use_case_parts(settings, use_case, _reads(settings, function))
    parts |= {f"parameter {name}": json.dumps(value, sort_keys=True) for name, value in sorted(parameters.items())}
    parts |= {f"input {name}": content for name, content in sorted(inputs.items())}
    parts |= {f"environment {name}": value for name, value in sorted((environment or {}).items())}
    return StepKey(key=_hash(json.dumps(parts, sort_keys=True)), parts=parts)


def component_key(
    settings: Settings,
    command: Sequence[str],
    parameters: Mapping[str, Any],
    artifacts: Mapping[str, Sequence[Mapping[str, Any]]],
    environment: Mapping[str, str],
) -> StepKey:
    """Return the key of one execution of a KFP component, the same on every engine.

    Args:
        settings: Says where the project is.
        command: The component's command and arguments, as the compiled pipeline has them.
        parameters: Input parameters by name, defaults included; one without a value does not count.
        artifacts: Input artifacts by name, each a list of {"uri", "metadata"}.
        environment: Environment variables that the pipeline sets for the step.

    Raises:
        UsageError: The use case that the parameters name is broken.
    """
    inputs = {
        name: " ".join(
            str(item["metadata"].get(CONTENT_HASH) or f"{item['uri']} {json.dumps(item['metadata'], sort_keys=True)}")
            for item in items
        )
        for name, items in artifacts.items()
    }
    values = {name: plain(value) for name, value in parameters.items() if value is not None}
    # The component's source is the one multi-line argument of the command that KFP makes of a function.
    source = next((part for part in command if "\nfrom kfp import dsl" in part), repr(list(command)))
    flag = "--function_to_execute"
    function = command[command.index(flag) + 1] if flag in command[:-1] else ""
    return step_key(settings, source, function, values, inputs, environment)


def lock_hash(settings: Settings) -> str:
    """Return the hash of the runtime lock, or of nothing where the project has none."""
    file = settings.lock_file
    return _file_hash(file, file.stat().st_mtime_ns) if file.is_file() else _hash("")


def module_file(settings: Settings, module: str) -> Path | None:
    """Return the file of a module of this repository, `None` for any other module."""
    package, _, rest = module.partition(".")
    if package not in _PACKAGES:
        return None
    base = (
        settings.project_root.joinpath(_PACKAGES[package], *rest.split("."))
        if rest
        else (settings.project_root / _PACKAGES[package])
    )
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _use_case_parts(settings: Settings, name: str, reads: Iterable[str]) -> dict[str, str]:
    use_case = _use_case(settings, name)
    folder = settings.project_root / "pipelines" / name
    parts: dict[str, str] = {}
    for part in reads:
        if part.endswith(".py"):
            source = (folder / part).read_text(encoding="utf-8") if (folder / part).is_file() else ""
            parts[f"use case {part}"] = _hash(_normalized(source))
            parts |= {f"code {module}": digest for module, digest in _imported_code(settings, source).items()}
        else:
            parts[f"use case {part}"] = _hash(getattr(use_case, part).model_dump_json(by_alias=True))
    return parts


def _use_case(settings: Settings, name: str) -> UseCase:
    """Return a use case, read again only when its file changed."""
    file = settings.project_root / "pipelines" / name / "use_case.yaml"
    return _use_case_at(settings, name, file.stat().st_mtime_ns if file.is_file() else 0)


@functools.lru_cache(maxsize=64)
def _use_case_at(settings: Settings, name: str, mtime_ns: int) -> UseCase:
    return load_use_case(settings, name)


def _reads(settings: Settings, function: str) -> tuple[str, ...]:
    """Return READS of `components/<function>.py`, read without importing it; a foreign component has none."""
    file = settings.project_root / "components" / f"{function}.py"
    if not file.is_file():
        return ()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "READS" for t in node.targets):
            return tuple(ast.literal_eval(node.value))
    return ()


def _imported_code(settings: Settings, source: str) -> dict[str, str]:
    """Return the hash of every module of this repository that `source` imports, directly or through others."""
    found: dict[str, str] = {}
    queue = list(_imports(source))
    while queue:
        module = queue.pop()
        file = module_file(settings, module)
        if file is None or module in found:
            continue
        digest, imports = _module(settings, file)
        found[module] = digest
        queue += imports
    return dict(sorted(found.items()))


def _module(settings: Settings, file: Path) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a module's code and the modules that it imports; parsed again only when the file changed."""
    stamp = f"module {sys.version_info[:2]} {file_stamp(file)}"
    return _module_at(settings, stamp, file)


@functools.lru_cache(maxsize=4096)
def _module_at(settings: Settings, stamp: str, file: Path) -> tuple[str, tuple[str, ...]]:
    def parse() -> str:
        source = file.read_text(encoding="utf-8")
        return "\n".join([_hash(_normalized(source)), *_imports(source)])

    digest, *imports = remembered(settings, stamp, parse).split("\n")
    return digest, tuple(imports)


@functools.lru_cache(maxsize=64)
def _file_hash(file: Path, mtime_ns: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _imports(source: str) -> tuple[str, ...]:
    """Return the modules that `source` names in import statements, wherever they stand."""
    names: list[str] = []
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


@functools.lru_cache(maxsize=4096)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


@functools.lru_cache(maxsize=4096)
def _normalized(source: str) -> str:
    """Return `source` without what cannot change a result: comments, docstrings, line breaks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)


def plain(value: Any) -> Any:
    """Return a JSON value with whole numbers as such: what passes through KFP's messages comes out as floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""The content key of a step: what its result depends on, and nothing else.

A key is the hash of the step's code (the component's source and the modules of this repository that it imports, with
the files that lie beside those of a use case), the parts of the use case that it reads, its parameters, the content of
its inputs (not their names or places), the lock and Python's version. Comments, docstrings and formatting do not count.
Where the code does not say what it reads, everything that it could read counts. Engines look a key up in the result
store (`results.py`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from shopfloor.errors import UsageError
from shopfloor.settings import Settings
from shopfloor.storage import CONTENT_HASH, file_stamp, remembered
from shopfloor.use_case import ESTIMATORS, FILE_NAME, ServedCase, UseCase, load_served_case

_PACKAGES = {"shopfloor": "platform/shopfloor", "components": "components", "pipelines": "pipelines"}
_LOADERS = {
    "import_module",
    "__import__",
    "spec_from_file_location",
    "run_path",
    "run_module",
    "exec",
    "SourceFileLoader",
}
"""Functions with which code brings in code that no import statement names."""
_NO_DATA = {".py", ".pyc", ".md", ".ipynb"}
"""Files beside the code that it does not read: other code, which is followed by its imports, and what people read."""
_PARSING = threading.Lock()
"""Python 3.11 counts the depth of a syntax tree for all threads at once, and fails where two make one."""
_EVERYTHING = "*"
"""Stands for a module's name: all modules beside the one that imports it."""


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
    packages: str | None = None,
) -> StepKey:
    """Return the key of one execution of a component.

    Args:
        settings: Says where the project is.
        source: The component's own source, as it stands in the compiled pipeline.
        function: The component's function name; the file that defines it says in READS what of the use case it reads.
        parameters: Input parameters by name, JSON values.
        inputs: Input artifacts by name, each the hash of its content.
        environment: Environment variables that the pipeline sets for the step.
        packages: The command that installs packages for the step, if there is one.

    Raises:
        UsageError: The use case that the parameters name is broken.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    parts = {"code": _hash(_normalized(source)), "lock": lock_hash(settings), "python": python}
    modules = set(_imports(source))
    use_case = parameters.get("use_case")
    if isinstance(use_case, str) and use_case:
        reads = None if f".{_EVERYTHING}" in modules else _reads(settings, function)
        parts |= _use_case_parts(settings, use_case, reads)
        modules |= _use_case_code(settings, use_case, reads)
    parts |= _code_parts(settings, modules)
    if packages is not None:
        parts["packages"] = packages
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
    packages = next((part for part in command if "pip install" in part and part != source), None)
    return step_key(settings, source, function, values, inputs, environment, packages)


def lock_hash(settings: Settings) -> str:
    """Return the hash of the runtime lock, or of nothing where the project has none."""
    file = settings.lock_file
    return _data_hash(settings, str(file_stamp(file)), file) if file.is_file() else _hash("")


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


def _use_case_parts(settings: Settings, name: str, reads: Iterable[str] | None) -> dict[str, str]:
    """Return the hashes of the sections of a use case that a step reads; all of them where nobody says which."""
    use_case = _use_case(settings, name)
    for part in reads or ():
        if not part.endswith(".py") and part not in UseCase.model_fields:
            raise UsageError(
                f"A component's READS names {part!r}, which is no section of {FILE_NAME}.",
                f"Name one of {', '.join(UseCase.model_fields)}, or a file such as model.py.",
            )
    sections = [section for section in type(use_case).model_fields if reads is None or section in reads]
    return {
        f"use case {section}": _hash(
            value.model_dump_json(by_alias=True) if isinstance(value, BaseModel) else json.dumps(value)
        )
        for section in sections
        for value in [getattr(use_case, section)]
    }


def _use_case_code(settings: Settings, name: str, reads: Iterable[str] | None) -> set[str]:
    """Return the modules of a use case that a step reads; all of them where nobody says which."""
    package = f"pipelines.{name}"
    if reads is None:
        modules = set(_beside(settings, package))
    else:
        modules = {f"{package}.{part.removesuffix('.py')}" for part in reads if part.endswith(".py")}
    use_case = _use_case(settings, name)
    if isinstance(use_case, UseCase) and use_case.model.flavor == "sklearn" and (reads is None or "model.py" in reads):
        modules.add(ESTIMATORS)
    return modules


def _use_case(settings: Settings, name: str) -> ServedCase:
    """Return a use case, read again only when its file changed."""
    file = settings.project_root / "pipelines" / name / "use_case.yaml"
    return _use_case_at(settings, name, str(file_stamp(file)) if file.is_file() else "")


@functools.lru_cache(maxsize=64)
def _use_case_at(settings: Settings, name: str, stamp: str) -> ServedCase:
    return load_served_case(settings, name)


def _reads(settings: Settings, function: str) -> tuple[str, ...] | None:
    """Return READS of the file that defines a component, read without importing it; `None` where nobody says."""
    reads: list[str] = []
    has_reads = False
    for package in ("components", "pipelines"):
        for file in sorted((settings.project_root / _PACKAGES[package]).rglob("*.py")):
            names, declared = _component(settings, str(file_stamp(file)), file)
            if function in names and declared is not None:
                reads += declared
                has_reads = True
    return tuple(reads) if has_reads else None


@functools.lru_cache(maxsize=4096)
def _component(settings: Settings, stamp: str, file: Path) -> tuple[frozenset[str], tuple[str, ...] | None]:
    """Return the functions that a file defines, and its READS, `None` where it has none."""

    def parse() -> str:
        functions: list[str] = []
        reads: Any = None
        try:
            body = _parsed(file.read_text(encoding="utf-8")).body
        except (SyntaxError, UnicodeDecodeError):
            # Somebody is writing it: no component comes from it.
            body = []
        for node in body:
            if isinstance(node, ast.FunctionDef):
                functions.append(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if node.value is not None and any(isinstance(one, ast.Name) and one.id == "READS" for one in targets):
                    reads = ast.literal_eval(node.value)
        return json.dumps([functions, reads])

    functions, reads = json.loads(remembered(settings, f"component {stamp}", parse))
    return frozenset(functions), None if reads is None else tuple(reads)


def _code_parts(settings: Settings, modules: Iterable[str]) -> dict[str, str]:
    """Return the hash of each module of this repository that these are or lead to, and of the files beside them."""
    code: dict[str, str] = {}
    folders: set[Path] = set()
    visited: set[str] = set()
    queue = list(modules)
    while queue:
        module = queue.pop()
        if module in visited:
            continue
        visited.add(module)
        package, _, last = module.rpartition(".")
        if last == _EVERYTHING:
            queue += _beside(settings, package)
            continue
        file = module_file(settings, module)
        if file is None:
            continue
        digest, imports = _module(settings, module, file)
        code[module] = digest
        queue += imports
        if not module.startswith("shopfloor"):
            folders.add(file.parent)
    # A package that holds no code is no part of it.
    parts = {f"code {module}": digest for module, digest in sorted(code.items()) if digest != _NOTHING}
    for folder in sorted(folders):
        parts |= _data_parts(settings, folder)
    return parts


def _beside(settings: Settings, package: str) -> list[str]:
    """Return the modules of a package of this repository, those within it too."""
    name, _, rest = package.partition(".")
    if name not in _PACKAGES:
        return []
    root = settings.project_root / _PACKAGES[name]
    folder = root.joinpath(*rest.split(".")) if rest else root
    files = folder.rglob("*.py") if rest else folder.glob("*.py")
    return [".".join([name, *file.relative_to(root).with_suffix("").parts]).removesuffix(".__init__") for file in files]


def _data_parts(settings: Settings, folder: Path) -> dict[str, str]:
    """Return the hash of each file beside code that the code may read, such as SQL, JSON, YAML or CSV."""
    root = settings.project_root
    within = folder.glob("*") if folder.parent == root else folder.rglob("*")
    return {
        f"file {file.relative_to(root)}": _data_hash(settings, str(file_stamp(file)), file)
        for file in sorted(within)
        if file.is_file()
        and file.suffix not in _NO_DATA
        and file.name != FILE_NAME
        and not any(part.startswith((".", "__pycache__")) for part in file.relative_to(folder).parts)
    }


@functools.lru_cache(maxsize=4096)
def _data_hash(settings: Settings, stamp: str, file: Path) -> str:
    return remembered(settings, f"data {stamp}", lambda: hashlib.sha256(file.read_bytes()).hexdigest())


def _module(settings: Settings, module: str, file: Path) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a module's code and the modules that it imports; parsed again only when the file changed."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return _module_at(settings, f"module 2 {sys.version_info[:2]} {package} {file_stamp(file)}", package, file)


@functools.lru_cache(maxsize=4096)
def _module_at(settings: Settings, stamp: str, package: str, file: Path) -> tuple[str, tuple[str, ...]]:
    def parse() -> str:
        source = file.read_text(encoding="utf-8")
        return "\n".join([_hash(_normalized(source)), *_imports(source, package)])

    digest, *imports = remembered(settings, stamp, parse).split("\n")
    return digest, tuple(imports)


@functools.lru_cache(maxsize=4096)
def _imports(source: str, package: str = "") -> tuple[str, ...]:
    """Return the modules that `source` brings in, wherever it does, and the packages that they stand in.

    Args:
        source: Python.
        package: Package of the module, from which relative imports start; empty for a component's own source.
    """
    names: list[str] = []
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and _name(node.func) in _LOADERS:
            names.append(_loaded(node, package))
    packages = [".".join(parts[:end]) for name in names for parts in [name.split(".")] for end in range(1, len(parts))]
    return tuple(dict.fromkeys([*names, *packages]))


def _loaded(call: ast.Call, package: str) -> str:
    """Return the module that a call of a loader brings in: any beside it where the code does not name one."""
    first = call.args[0] if call.args else None
    if (
        _name(call.func) in {"import_module", "__import__", "run_module"}
        and isinstance(first, ast.Constant)
        and isinstance(first.value, str)
    ):
        return _absolute(first.value, package)
    # The library itself loads what READS names.
    return "" if package.startswith("shopfloor") else f"{package}.{_EVERYTHING}"


def _absolute(name: str, package: str) -> str:
    relative = name.lstrip(".")
    level = len(name) - len(relative)
    parts = package.split(".")[: len(package.split(".")) - level + 1] if level else []
    return ".".join([*filter(None, parts), *filter(None, [relative])])


def _name(function: ast.expr) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


@functools.lru_cache(maxsize=4096)
def _parsed(source: str) -> ast.Module:
    with _PARSING:
        return ast.parse(source)


@functools.lru_cache(maxsize=4096)
def _normalized(source: str) -> str:
    """Return `source` without what cannot change a result: comments, strings that only stand there, line breaks."""
    with _PARSING:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [statement for statement in block if not _is_text(statement)])
    return ast.dump(tree)


def _is_text(node: Any) -> bool:
    """Tell whether a statement is a string and nothing else: a docstring, or what is said of the name above it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def plain(value: Any) -> Any:
    """Return a JSON value with whole numbers as such: what passes through KFP's messages comes out as floats."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= 2**53 else value
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_NOTHING = _hash(_normalized(""))

"""From a model that somebody has to a registered version, and to the `use_case.yaml` that it answers by.

Everything is tried before anything is written: the model is loaded as a replica would load it, and answers its example.
Then come the version and, last, the file. Killed in between, the same command finds what is there and goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast, get_args

from shopfloor.errors import NotFoundError, UsageError, first_line
from shopfloor.records import Record
from shopfloor.registry import example as examples
from shopfloor.registry import foreign, imported, sources
from shopfloor.registry.example import Rows
from shopfloor.registry.foreign import Foreign
from shopfloor.registry.sources import Source
from shopfloor.runs.mlflow import CLASSES, connect, import_mlflow
from shopfloor.serving.assignment import myself
from shopfloor.serving.deploy.rollout import endpoint
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import AnswersDifferently, ServedModel, prepare
from shopfloor.settings import Settings
from shopfloor.storage import scratch, write_atomically
from shopfloor.use_case import FILE_NAME, ImportedCase, Task, load_served_case, require_name

GOLDEN_ROWS = 50
"""Rows of an example that become golden requests."""
_CASE = """\
# Written by `shopfloor models import`, to be changed as you like: docs/reference/use_case.md lists the keys.
name: {name}
description: {description}
# Versions come from outside: there is nothing to train here.
imported: true
task: {task}

gates:
  # What a version on trial must keep to; `shopfloor rollout run {name}/2` judges by it.
  live:
    min_requests: 200
    metrics:
      error_rate: {{max: 0.01}}
      p99_ms: {{max: 100}}

serving:
  replicas: 1
  # Of Ray's, for each replica: it mostly waits, and what it holds no search can have.
  cpus: 0.2
"""


class ImportedVersion(Record):
    """A version of a model that was trained elsewhere."""

    use_case: str
    version: str
    source: str
    """Path or URI of the model."""
    kind: str
    """Form in which it came, e.g. `an ONNX file`."""
    sha256: str
    """Hash of the file, or over all files of the directory."""
    task: str
    columns: dict[str, str]
    """Name of each input to MLflow's type of it; empty where it takes no rows of named columns."""
    golden_rows: int
    """Number of rows of the example that it must answer as it did."""
    file: str
    """Path of the `use_case.yaml`, relative to the project."""
    endpoint: str
    """Address where `shopfloor deploy` lets it answer."""


def import_model(
    settings: Settings,
    source: str,
    name: str,
    example: Path | None,
    task: str | None,
    allow_code: bool,
    progress: Callable[[str], None],
) -> ImportedVersion:
    """Make a version of a model that lies somewhere, and a use case where there is none of that name.

    Args:
        settings: Say where the project and MLflow are.
        source: A file, a directory, or a URI that MLflow reads.
        name: Name of the use case.
        example: File of rows; `None` where the model says itself what it takes.
        task: What it predicts; `None` where the model is to say it.
        allow_code: Somebody trusts its maker: loading it may run code.
        progress: Is told what happens.

    Raises:
        NotFoundError: There is no such model or file.
        UsageError: The name is taken, or it is no model that can be served, or does not fit its example.
        ServiceError: MLflow does not answer.
    """
    case = _case(settings, name)
    rows = examples.read(example) if example else None
    with scratch() as directory, _quietly():
        progress(f"Reading {source}")
        (directory / "source").mkdir()
        found = sources.fetch(settings, source, directory / "source")
        client = connect(settings)
        imported.refuse_taken(client, name)
        model = directory / "model"
        loaded = None
        if found.kind == "mlflow":
            served, requests = _of_mlflow(found, rows, example, model, allow_code)
        else:
            loaded = foreign.load(found, allow_code)
            served, requests = _of_file(found, loaded, rows, example, model)
        kind = _task(settings, name, case, found, task, loaded.task if loaded else _task_of(served))
        description = case.description if case else f"Imported from {found.file}."
        progress(f"Registering it as a version of {name}")
        inputs = imported.identity(found, rows, kind)
        version, passport = imported.register(settings, client, name, description, found, inputs, model, myself())
    if case is None:
        text = _CASE.format(name=name, description=json.dumps(description), task=kind)
        write_atomically(_file(settings, name), text, 0o644)
    return ImportedVersion(
        use_case=name,
        version=version,
        source=found.name,
        kind=sources.TITLES[found.kind],
        sha256=found.digest,
        task=kind,
        columns=passport.features,
        golden_rows=requests,
        file=str(_file(settings, name).relative_to(settings.project_root)),
        endpoint=endpoint(settings, name),
    )


def _file(settings: Settings, name: str) -> Path:
    return settings.project_root / "pipelines" / name / FILE_NAME


def _case(settings: Settings, name: str) -> ImportedCase | None:
    """Return the use case of imported models that has the name; `None` where the name is free.

    Raises:
        UsageError: It is no name, or that of a use case that trains its models, or of code.
    """
    require_name(name)
    try:
        case = load_served_case(settings, name)
    except NotFoundError:
        folder = _file(settings, name).parent
        if (folder.is_dir() and any(folder.glob("*.py"))) or folder.with_suffix(".py").exists():
            raise UsageError(f"pipelines/{name} holds code already.", "Take another name.") from None
        return None
    if not isinstance(case, ImportedCase):
        raise UsageError(f"{name} is a use case that trains its models, in pipelines/{name}.", "Take another name.")
    return case


def _of_mlflow(
    source: Source, rows: Rows | None, example: Path | None, model: Path, allow_code: bool
) -> tuple[ServedModel, int]:
    """Copy a model of MLflow's, with golden requests of the example; return it loaded, and how many they are."""
    if not allow_code:
        sources.refuse_code(source)
    signed = sources.has_signature(source)
    types = {}
    if rows and example and not signed:
        types = examples.types_of(example, rows, {})
    if not signed and not rows:
        raise _says_too_little(source, "no signature")
    imported.take_over(source, rows, types, model)
    served = _prepared(source, model)
    if rows and example:
        if served.rows is None:
            raise UsageError(f"{source.file} takes no rows of an example: {served.reason}.", "Leave --example out.")
        answers = _answers(source, served, rows[:GOLDEN_ROWS], example)
        imported.add_golden(model, rows[:GOLDEN_ROWS], answers)
        served = _prepared(source, model)
    return served, imported.golden_rows(model)


def _of_file(
    source: Source, loaded: Foreign, rows: Rows | None, example: Path | None, model: Path
) -> tuple[ServedModel, int]:
    """Save a loaded model as one of MLflow's, with golden requests of the example; see `_of_mlflow`."""
    if rows and example:
        rows = examples.in_order(example, rows, loaded.names, loaded.count, source.file)
        known = loaded.types if "" not in loaded.types else dict.fromkeys(rows[0], loaded.types[""])
        types = examples.types_of(example, rows, known)
    elif loaded.names is not None and (loaded.flavor != "sklearn"):
        types = {name: loaded.types.get(name, "double") for name in loaded.names}
    else:
        raise _says_too_little(source, "no types of its columns" if loaded.names else "no names of its columns")
    asked = rows[:GOLDEN_ROWS] if rows else examples.anything(types)
    try:
        answers = imported.save(loaded, asked, types, model)
    except UsageError:
        raise
    except Exception as error:  # each library has its own for rows that it does not take
        raise UsageError(
            f"{source.file} does not answer {example or 'a row of zeros'}: {first_line(error, 300)}.",
            "Give rows of the table that it was trained on.",
        ) from error
    served = _prepared(source, model)
    if rows and example:
        imported.add_golden(model, asked, _answers(source, served, asked, example) if answers is None else answers)
        served = _prepared(source, model)
    return served, imported.golden_rows(model)


def _says_too_little(source: Source, what: str) -> UsageError:
    return UsageError(
        f"{source.file} has {what}, and there is no example to tell them by.",
        'Give --example rows.json, a list of rows such as [{"age": 42, "plan": "basic"}].',
    )


def _prepared(source: Source, model: Path) -> ServedModel:
    """Return a saved model as a replica would load it.

    Raises:
        UsageError: It does not load, or answers its golden requests otherwise than its library does.
    """
    try:
        return prepare(source.file, "0", model)
    except AnswersDifferently as error:
        raise UsageError(
            f"{source.file} answers otherwise once MLflow has saved it: {first_line(error, 500)}.",
            "Log it by MLflow's flavor yourself, and import that.",
        ) from error
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        raise foreign.no_library(source, error.name.partition(".")[0]) from error
    except Exception as error:  # whatever MLflow or a library says
        raise UsageError(
            f"{source.file} does not load: {first_line(error, 300)}.", "Mend the model where it was made."
        ) from error


def _answers(source: Source, served: ServedModel, rows: Rows, example: Path) -> list[object]:
    """Return what a loaded model answers to rows.

    Raises:
        UsageError: It takes one of them not.
    """
    parsed = []
    for number, row in enumerate(rows, 1):
        body = json.dumps({name: value for name, value in row.items() if value is not None})
        try:
            parsed.append(served.parse(body.encode()))
        except BadRequest as error:
            raise UsageError(
                f"{example}: row {number}: {error.message}", "Give rows as its signature has them."
            ) from error
    try:
        return served.many(parsed)
    except Exception as error:  # whatever the library says
        raise UsageError(
            f"{source.file} does not answer the rows of {example}: {first_line(error, 300)}.",
            "Give rows of the table that it was trained on.",
        ) from error


def _task_of(served: ServedModel) -> Task | None:
    """Return what a model of MLflow's predicts, as far as it shows."""
    metadata: Mapping[str, object] = served.pyfunc.metadata.metadata or {}
    if CLASSES in metadata or isinstance(served.example_answer, str):
        return "multiclass"
    if isinstance(served.example_answer, list | dict):
        return "custom"
    with contextlib.suppress(NotImplementedError, AttributeError):  # a model of functions has no other within
        return foreign.task_of(served.pyfunc.get_raw_model())
    return None


def _task(
    settings: Settings, name: str, case: ImportedCase | None, source: Source, said: str | None, shown: Task | None
) -> Task:
    """Return what a model predicts: as somebody says, or it shows, or its use case has it; a number otherwise.

    Raises:
        UsageError: The use case has another task.
    """
    if said is not None and said not in get_args(Task):
        raise UsageError(f"There is no task {said!r}.", f"Take one of {', '.join(get_args(Task))}.")
    task: Task = cast(Task, said) or shown or (case.task if case else "regression")
    if case is not None and case.task != task:
        file = _file(settings, name).relative_to(settings.project_root)
        raise UsageError(f"{source.file} is a {task} model, and {file} says {case.task}.", "Take another name.")
    return task


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep to itself what MLflow and the libraries say of versions and formats while a model is tried."""
    import_mlflow()  # which sets the level of its logger
    loggers = [logging.getLogger(name) for name in ("mlflow", "shopfloor.serving.model")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)

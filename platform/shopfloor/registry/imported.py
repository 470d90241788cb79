"""A model that was trained elsewhere becomes a version: with signature, example, golden requests and passport.

All of it stands in a directory before the registry hears of it, so that a model that cannot be served leaves nothing
there. The same model with the same example is the same version: an import that was killed finds what it had made.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shopfloor.errors import UsageError
from shopfloor.judging import golden
from shopfloor.records import Imported, Passport
from shopfloor.registry import flavors
from shopfloor.registry.example import Rows, frame_of
from shopfloor.registry.foreign import Foreign
from shopfloor.registry.passport import find_passport, write_passport
from shopfloor.registry.sources import TITLES, Source
from shopfloor.runs import index as run_records
from shopfloor.runs.code_version import code_version
from shopfloor.runs.mlflow import CLASSES, EXTRA_FILES, import_mlflow
from shopfloor.runs.versions import CHALLENGER, CHAMPION, INPUTS, MODEL_HASH, tagged
from shopfloor.settings import Settings

IMPORTED = "shopfloor.imported"
"""Tag of a version, and of the run that made it: where the model came from."""
_MLMODEL = "MLmodel"
_EXAMPLE = {"artifact_path": "input_example.json", "type": "dataframe", "pandas_orient": "split"}
"""Where a model of MLflow's keeps an example, as its MLmodel says it."""


def identity(source: Source, example: Rows | None, task: str) -> str:
    """Return the hash of what makes an imported version what it is."""
    return hashlib.sha256(json.dumps([source.kind, source.digest, example, task]).encode()).hexdigest()


def refuse_taken(client: Any, name: str) -> None:
    """Let no import add to the versions that pipelines make.

    Raises:
        UsageError: A pipeline made one.
    """
    for version in client.search_model_versions(f"name = '{name}'"):
        if INPUTS in version.tags and IMPORTED not in version.tags:
            raise UsageError(f"Version {version.version} of {name} was made by a pipeline.", "Take another name.")


def save(foreign: Foreign, rows: Rows, types: Mapping[str, str], directory: Path) -> Any:
    """Write a loaded model as one of MLflow's, and return what its library answers to the rows.

    Args:
        foreign: The model.
        rows: What it is asked; the first is its example, and null in one of them says that a column may be missing.
        types: MLflow's types of the columns.
        directory: Where to; it must not be there.

    Returns:
        An answer for each row, as an endpoint sends it; `None` where only MLflow's flavor can ask the model.
    """
    mlflow = import_mlflow()
    frame = frame_of(rows, types)
    answers = foreign.answer(frame) if foreign.answer else None
    outputs = None
    if answers is not None:
        with contextlib.suppress(mlflow.MlflowException):  # it has no type of some texts
            outputs = mlflow.models.infer_signature(frame, answers).outputs
    flavors.module(foreign.flavor).save_model(
        foreign.model,
        str(directory),
        signature=mlflow.models.ModelSignature(_inputs(rows, types), outputs),
        input_example=frame.head(1),
        pip_requirements=flavors.requirements(foreign.flavor),
        metadata={CLASSES: list(foreign.classes)} if foreign.classes else None,
        **foreign.options,
    )
    return None if answers is None else golden.classified(answers, foreign.classes)


def take_over(source: Source, rows: Rows | None, types: Mapping[str, str], directory: Path) -> None:
    """Copy a model that MLflow saved, with a signature and an example by these rows where it has none of its own.

    Args:
        source: The model.
        rows: What it can be asked; `None` where nobody gave any.
        types: MLflow's types of the columns.
        directory: Where to; it must not be there.
    """
    mlflow = import_mlflow()
    shutil.copytree(source.path, directory)
    model = mlflow.models.Model.load(str(directory / _MLMODEL))
    if rows and model.signature is None:
        model.signature = mlflow.models.ModelSignature(_inputs(rows, types))
    if rows and model.saved_input_example_info is None:
        split = {"columns": list(rows[0]), "data": [list(rows[0].values())]}
        (directory / _EXAMPLE["artifact_path"]).write_text(json.dumps(split), encoding="utf-8")
        model.saved_input_example_info = dict(_EXAMPLE)
    model.save(str(directory / _MLMODEL))


def add_golden(directory: Path, rows: Rows, answers: Sequence[Any]) -> None:
    """Let a saved model bring rows and the answers to them along, as its golden requests."""
    folder = directory / EXTRA_FILES
    folder.mkdir(exist_ok=True)
    golden.write(golden.of(rows, answers), folder)


def golden_rows(directory: Path) -> int:
    """Return how many golden requests a saved model brings along."""
    requests = golden.read(directory)
    return len(requests.rows) if requests else 0


def register(
    settings: Settings,
    client: Any,
    name: str,
    description: str,
    source: Source,
    inputs: str,
    directory: Path,
    by: str,
) -> tuple[str, Passport]:
    """Make a version of a model that lies in a directory; one that an import made of the same before, is it.

    Args:
        settings: Say where the project is.
        client: Of MLflow.
        name: Name of the registered model.
        description: Of the model and of the version.
        source: Where it came from.
        inputs: Its `identity`.
        directory: The model as MLflow saves one.
        by: Who imports it.

    Returns:
        The version and its passport.
    """
    _ensure_model(client, name, description)
    versions = tagged(client, name, INPUTS, inputs)
    version = versions[-1] if versions else _make_version(client, name, description, source, inputs, directory)
    run_id = client.get_model_version(name, version).run_id
    passport = find_passport(client, run_id)
    if passport is None:
        passport = _passport(settings, name, version, run_id, source, directory, by)
        write_passport(client, run_id, passport)
    aliases = client.get_registered_model(name).aliases
    if aliases.get(CHAMPION) != version:
        client.set_registered_model_alias(name, CHALLENGER, version)
    return version, passport


def _make_version(client: Any, name: str, description: str, source: Source, inputs: str, directory: Path) -> str:
    experiment_id = run_records.experiment(client, name)
    run_id = _run(client, experiment_id, source, inputs)
    stored = client.create_logged_model(experiment_id, name="model", source_run_id=run_id)
    try:
        model = import_mlflow().models.Model.load(str(directory / _MLMODEL))
        model.model_id = model.model_uuid = stored.model_id
        model.artifact_path, model.run_id = stored.artifact_location, run_id
        model.save(str(directory / _MLMODEL))
        client.log_model_artifacts(stored.model_id, str(directory))
        client.finalize_logged_model(stored.model_id, "READY")
        version = client.create_model_version(
            name,
            source=f"models:/{stored.model_id}",
            run_id=run_id,
            tags={INPUTS: inputs, MODEL_HASH: source.digest, IMPORTED: source.name},
            description=description,
            model_id=stored.model_id,
        ).version
    except BaseException:
        with contextlib.suppress(Exception):  # the first error counts
            client.delete_logged_model(stored.model_id)
        raise
    first = tagged(client, name, INPUTS, inputs)[-1]
    if first != str(version):  # somebody imported the same at the same time
        client.delete_model_version(name, version)
    return first


def _run(client: Any, experiment_id: str, source: Source, inputs: str) -> str:
    """Return the run of an import; that of one that was killed, where there is one."""
    for run in client.search_runs([experiment_id], f"tags.`{INPUTS}` = '{inputs}'", max_results=1):
        return str(run.info.run_id)
    tags = {IMPORTED: source.name, INPUTS: inputs}
    run_id = str(client.create_run(experiment_id, run_name=f"import {source.file}", tags=tags).info.run_id)
    # It computes nothing, and one that is killed is not to look as if it went on.
    client.set_terminated(run_id)
    return run_id


def _ensure_model(client: Any, name: str, description: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _passport(
    settings: Settings, name: str, version: str, run_id: str, source: Source, directory: Path, by: str
) -> Passport:
    code = code_version(settings.project_root)
    signature = import_mlflow().models.Model.load(str(directory / _MLMODEL)).signature
    schema = signature.inputs if signature else None
    columns: dict[str, str] = {}
    if schema is not None and schema.has_input_names() and not schema.is_tensor_spec():
        columns = {one.name: getattr(one.type, "name", str(one.type)) for one in schema.inputs}
    return Passport(
        model=name,
        version=version,
        created=dt.datetime.now(dt.UTC),
        run_id=run_id,
        step_run_ids={},
        git_commit=code.commit,
        git_dirty=code.dirty,
        data=None,
        checks_passed=True,
        checks=0,
        feature_service="",
        features=columns,
        lock_hash="",
        params={},
        trial_id="",
        metrics={},
        champion=None,
        gates=[],
        model_hash=source.digest,
        content_hashes={},
        run_key="",
        imported=Imported(
            source=source.name,
            kind=TITLES[source.kind],
            sha256=source.digest,
            by=by,
            golden_rows=golden_rows(directory),
        ),
    )


def _inputs(rows: Rows, types: Mapping[str, str]) -> Any:
    from mlflow.types import ColSpec, Schema

    return Schema(
        [ColSpec(kind, name, required=all(row[name] is not None for row in rows)) for name, kind in types.items()]
    )

"""A model that met its gates becomes a version in the MLflow registry, with all that it takes to trace and to ask it.

The same model, made of the same features and tables, is the same version: a `register` that was killed after it made
the version finds it again, and a version's passport is written once.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shopfloor.attempts import SupersededError, require_newest
from shopfloor.judging import golden, offline
from shopfloor.records import REFERENCE_FILE, Checks, DataVersion, Evaluation, FeatureSet, Passport, Trial
from shopfloor.registry import flavors
from shopfloor.registry.passport import FILE, find_passport, write_passport
from shopfloor.runs import index as run_records
from shopfloor.runs.mlflow import CLASSES, COLUMNS, EXTRA_FILES, RUN_KEY, by_row, connect
from shopfloor.runs.versions import CHALLENGER, INPUTS, MODEL_HASH, tagged
from shopfloor.settings import Settings
from shopfloor.storage import CONTENT_HASH, EFFECT, Artifact, local_copy, publish
from shopfloor.use_case import UseCase, load_use_case

if TYPE_CHECKING:
    import pandas as pd

_STRANGER = "\u2205 a value that no row has"
MADE_OF = ("model", "features", "tables")
"""The artifacts that make a version what it is; how it was judged makes no other one of it."""


def register(settings: Settings, use_case_name: str, made_of: Mapping[str, Artifact], model_version: Artifact) -> str:
    """Make one model version, with signature, example, golden requests and passport; point the challenger alias at it.

    Args:
        settings: Say where the registry is and which run this is for.
        use_case_name: Also the name of the registered model.
        made_of: The artifacts `model`, `evaluation`, `features`, `checks` and `tables`.
        model_version: Gets the passport.

    Returns:
        The version; one that was made of the same before, where there is one.

    Raises:
        ServiceError: The MLflow server does not answer.
        SupersededError: A newer attempt at the step has begun; a version of this one is left to it or taken back.
        UsageError: The model cannot be registered with the flavor that use_case.yaml names.
    """
    use_case = load_use_case(settings, use_case_name)
    client = connect(settings)
    hashes = {name: str(artifact.metadata[CONTENT_HASH]) for name, artifact in made_of.items()}
    identity = [*(f"{name}={hashes[name]}" for name in MADE_OF), use_case.model.model_dump_json()]
    inputs = hashlib.sha256(";".join(identity).encode()).hexdigest()
    _ensure_model(client, use_case)
    versions = tagged(client, use_case_name, INPUTS, inputs)
    version = versions[0] if versions else _make_version(settings, client, use_case, made_of, inputs, hashes["model"])
    run_id = client.get_model_version(use_case_name, version).run_id
    passport = find_passport(client, run_id)
    if passport is None:
        passport = _passport(settings, client, use_case, made_of, hashes, version)
        require_newest(settings)
        write_passport(client, run_id, passport)
        _describe(client, use_case, passport, run_id)
    require_newest(settings)
    client.set_registered_model_alias(use_case_name, CHALLENGER, version)
    with publish(settings, model_version, "register") as directory:
        (directory / FILE).write_text(passport.model_dump_json(indent=1), encoding="utf-8")
    model_version.metadata[EFFECT] = {"kind": "model_version", "use_case": use_case_name, "version": version}
    return version


def _ensure_model(client: Any, use_case: UseCase) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(use_case.name, description=use_case.description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _make_version(
    settings: Settings, client: Any, use_case: UseCase, made_of: Mapping[str, Artifact], inputs: str, model_hash: str
) -> str:
    """Store the model in MLflow under the step's run, and make a version of it."""
    import mlflow
    from mlflow.models import ModelSignature

    mlflow.set_tracking_uri(settings.tracking_uri)
    code = use_case.code("model")
    model = code.load(local_copy(settings, made_of["model"].uri))
    example = _example(settings, made_of["features"])
    answers = code.predict(model, example)
    run_id = (
        settings.step_run_id
        or client.create_run(run_records.experiment(client, use_case.name), run_name="register").info.run_id
    )
    requests = offline.ask_offline(settings, use_case, made_of["features"].uri, model)
    reference = offline.reference(settings, use_case, made_of["features"].uri, model)
    trial = Trial.model_validate_json(_text(settings, made_of["model"], "best_trial.json"))
    features = FeatureSet.model_validate_json(_text(settings, made_of["features"], "feature_set.json"))
    closed = _closed(features, functools.partial(code.predict, model), example)
    described = {CLASSES: features.classes, COLUMNS: _described(features, closed)}
    with tempfile.TemporaryDirectory() as directory, mlflow.start_run(run_id=run_id, log_system_metrics=False):
        golden.write(requests, Path(directory))
        info = flavors.log(
            use_case.model,
            f"pipelines.{use_case.name}",
            model,
            name="model",
            params={name: str(value) for name, value in trial.params.items()},
            signature=ModelSignature(_inputs(features), _outputs(example, answers)),
            input_example=example.head(1),
            pip_requirements=flavors.requirements(use_case.model.flavor),
            metadata={key: value for key, value in described.items() if value} or None,
            **flavors.options(use_case.model, model, example, answers),
        )
        (Path(directory) / REFERENCE_FILE).write_text(reference.model_dump_json(), encoding="utf-8")
        for file in (golden.FILE, REFERENCE_FILE):
            client.log_model_artifact(info.model_id, str(Path(directory) / file), EXTRA_FILES)
    require_newest(settings)
    version = client.create_model_version(
        use_case.name,
        source=f"models:/{info.model_id}",
        run_id=run_id,
        tags={INPUTS: inputs, MODEL_HASH: model_hash},
        description=use_case.description,
        model_id=info.model_id,
    ).version
    try:
        require_newest(settings)  # MLflow takes no condition: what came too late is taken back
    except SupersededError:
        # The newer attempt has made its own, or finds this one and goes on with it.
        if len(tagged(client, use_case.name, INPUTS, inputs)) > 1:
            client.delete_model_version(use_case.name, version)
        raise
    return str(version)


def _inputs(features: FeatureSet) -> Any:
    """Return MLflow's schema of a row."""
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    def column(name: str) -> Any:
        lists = features.features[name] == "numbers"
        kind = Array(DataType.double) if lists else features.mlflow_type(name)
        return ColSpec(kind, name, name not in features.optional)

    return Schema([column(name) for name in features.features])


def _outputs(example: pd.DataFrame, answers: Any) -> Any:
    """Return MLflow's schema of answers; `None` of some that it has no type of."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import infer_signature

    try:
        return infer_signature(example, by_row(answers, len(example))).outputs
    except MlflowException:
        return None


def _closed(features: FeatureSet, predict: Callable[[pd.DataFrame], Any], example: pd.DataFrame) -> list[str]:
    """Return the texts that can have no other value than in the training set: the model answers no other."""
    closed = list(features.closed)
    for name in features.values:
        if name not in closed:
            try:
                predict(example.head(1).assign(**{name: _STRANGER}))
            except Exception:  # each library has its own
                closed.append(name)
    return closed


def _described(features: FeatureSet, closed: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what is known of columns and is not in MLflow's schema."""
    columns: dict[str, dict[str, Any]] = {name: {"values": values} for name, values in features.values.items()}
    for name in closed:
        columns[name]["closed"] = True
    for name, length in features.lengths.items():
        columns[name] = {"length": length}
    for name, kind in features.features.items():
        if kind in {"int", "bool"} and name in features.optional:
            columns[name] = {"kind": kind}
    return columns


def _example(settings: Settings, features: Artifact) -> pd.DataFrame:
    """Return rows of the training set, the first without a missing value so that the example works as it stands."""
    import pandas as pd

    directory = local_copy(settings, features.uri)
    names = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8")).features
    frame = pd.read_parquet(directory / "train.parquet", columns=list(names))
    complete = frame.dropna()
    rows = frame.head(1000)
    return pd.concat([complete.head(1), rows], ignore_index=True)


def _describe(client: Any, use_case: UseCase, passport: Passport, run_id: str) -> None:
    """Show on the version's page of MLflow what it is worth, and link it with its run."""
    import time

    from mlflow.entities import Metric

    # MLflow leaves model_id out of what it answers here.
    model_id = client.get_model_version(use_case.name, passport.version).source.rpartition("/")[2]
    now = int(time.time() * 1000)
    numbers = [Metric(name, value, now, 0, model_id=model_id) for name, value in passport.metrics.items()]
    client.log_batch(run_id, metrics=numbers)
    rows = [
        f"| {gate.gate} | {gate.bound} | {'' if gate.value is None else format(gate.value, '.4g')} "
        f"| {'met' if gate.passed else 'missed'} |"
        for gate in passport.gates
    ]
    run = client.get_run(passport.run_id or run_id)
    link = f"[The run that made it](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"
    table = ["| gate | bound | value | verdict |", "|---|---|---|---|", *rows] if rows else ["No gate bounds it."]
    text = "\n".join([use_case.description, "", *table, "", link])
    client.update_model_version(use_case.name, passport.version, description=text)


def _text(settings: Settings, artifact: Artifact, file: str) -> str:
    return (local_copy(settings, artifact.uri) / file).read_text(encoding="utf-8")


def _passport(
    settings: Settings,
    client: Any,
    use_case: UseCase,
    made_of: Mapping[str, Artifact],
    hashes: dict[str, str],
    version: str,
) -> Passport:
    evaluation = Evaluation.model_validate_json(_text(settings, made_of["evaluation"], "evaluation.json"))
    features = FeatureSet.model_validate_json(_text(settings, made_of["features"], "feature_set.json"))
    checks = Checks.model_validate_json(_text(settings, made_of["checks"], "checks.json"))
    trial = Trial.model_validate_json(_text(settings, made_of["model"], "best_trial.json"))
    steps: dict[str, str] = {}
    tags: dict[str, str] = {}
    cost = None
    if settings.run_id:
        run = client.get_run(settings.run_id)
        cost = run_records.whole_cost_of(settings, client, run)
        tags = run.data.tags
        steps = {step.name: step.run_id for step in run_records.steps_of(client, run) if step.run_id}
    lock = settings.lock_file
    return Passport(
        model=use_case.name,
        version=version,
        created=dt.datetime.now(dt.UTC),
        run_id=settings.run_id or "",
        step_run_ids=steps,
        # As the run was submitted: what was edited since is no part of it.
        git_commit=tags.get(run_records.COMMIT, ""),
        git_dirty=tags.get(run_records.DIRTY, "true") != "false",
        data=DataVersion.model_validate_json(_text(settings, made_of["tables"], "data_version.json")),
        checks_passed=checks.success,
        checks=len(checks.checks),
        feature_service=features.feature_service,
        features={**features.features},
        lock_hash=hashlib.sha256(lock.read_bytes() if lock.is_file() else b"").hexdigest(),
        params=trial.params,
        trial_id=trial.trial_id,
        metrics=evaluation.metrics,
        champion=evaluation.champion,
        gates=evaluation.gates,
        model_hash=hashes["model"],
        content_hashes=hashes,
        run_key=tags.get(RUN_KEY, ""),
        cost=cost,
    )

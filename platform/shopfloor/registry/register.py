"""Model versions in the MLflow registry: register with a passport, find by alias, show.

The same inputs make the same version: a `register` that was killed after it had made the version finds it again.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shopfloor.errors import NotFoundError
from shopfloor.judging import golden
from shopfloor.pipeline.keys import lock_hash
from shopfloor.pipeline.results import EFFECT
from shopfloor.records import Checks, DataVersion, Evaluation, FeatureSet, Passport, Trial
from shopfloor.runs import index as run_records
from shopfloor.runs import recorder as tracking
from shopfloor.settings import Settings
from shopfloor.storage import CONTENT_HASH, Artifact, local_copy, publish
from shopfloor.use_case import UseCase, load_use_case

if TYPE_CHECKING:
    import pandas as pd

CHAMPION = "champion"
"""Alias of the version that answers."""
CHALLENGER = "challenger"
"""Alias of the version on trial."""
INPUTS = "shopfloor.inputs"
"""Tag of a version: the hash of everything that it was made of."""
PASSPORT = "passport.json"
_SAVED_AS = {"pytorch": {"serialization_format": "pickle"}}
"""Where MLflow's own choice does not do: what it exports of PyTorch takes one tensor, and no row of named columns."""


def register(settings: Settings, use_case_name: str, made_of: Mapping[str, Artifact], model_version: Artifact) -> str:
    """Make one model version, with signature, example, golden requests and passport; point the challenger alias at it.

    Args:
        settings: Say where the registry is and which run this is for.
        use_case_name: Also the name of the registered model.
        made_of: The artifacts `model`, `evaluation`, `features`, `checks` and `tables`.
        model_version: Gets the passport.

    Returns:
        The version.

    Raises:
        ServiceError: The MLflow server does not answer.
    """
    use_case = load_use_case(settings, use_case_name)
    client = tracking.connect(settings)
    hashes = {name: str(artifact.metadata[CONTENT_HASH]) for name, artifact in made_of.items()}
    inputs = hashlib.sha256("".join(f"{name}={hashes[name]};" for name in sorted(hashes)).encode()).hexdigest()
    _ensure_model(client, use_case)
    version = _find(client, use_case_name, inputs)
    if version is None:
        model_id, run_id = _log_model(settings, client, use_case, made_of)
        version = client.create_model_version(
            use_case_name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags={INPUTS: inputs},
            description=use_case.description,
            model_id=model_id,
        ).version
    version = str(version)
    passport = _passport(settings, client, use_case, made_of, hashes, version)
    run_id = client.get_model_version(use_case_name, version).run_id
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / PASSPORT
        file.write_text(passport.model_dump_json(indent=1), encoding="utf-8")
        client.log_artifact(run_id, str(file))
    client.set_registered_model_alias(use_case_name, CHALLENGER, version)
    with publish(settings, model_version, "register") as directory_:
        (directory_ / PASSPORT).write_text(passport.model_dump_json(indent=1), encoding="utf-8")
    model_version.metadata[EFFECT] = {"kind": "model_version", "use_case": use_case_name, "version": version}
    return version


def alias_version(client: Any, model: str, alias: str) -> str | None:
    """Return the version that an alias names; `None` where the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def version_exists(client: Any, model: str, version: str) -> bool:
    """Tell whether the registry holds a version."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(model, version)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def read_passport(client: Any, model: str, version: str) -> Passport:
    """Return the passport of a model version.

    Raises:
        NotFoundError: There is no such version, or it was registered without a passport.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        run_id = client.get_model_version(model, version).run_id
    except MlflowException as error:
        raise NotFoundError(
            f"There is no version {version} of a model {model!r}.", "`shopfloor models list` shows what there is."
        ) from error
    try:
        with tempfile.TemporaryDirectory() as directory:
            file = download_artifacts(
                run_id=run_id, artifact_path=PASSPORT, dst_path=directory, tracking_uri=client.tracking_uri
            )
            return Passport.model_validate_json(Path(file).read_text(encoding="utf-8"))
    except (MlflowException, OSError) as error:
        raise NotFoundError(
            f"Version {version} of {model!r} has no passport.", "It was not registered by a pipeline; train it by one."
        ) from error


def git_state(project_root: Path) -> tuple[str, bool]:
    """Return the commit of the project and whether tracked files differ from it; ("", True) outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(project_root), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (subprocess.SubprocessError, OSError):
        return "", True


def _ensure_model(client: Any, use_case: UseCase) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(use_case.name, description=use_case.description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(client: Any, model: str, inputs: str) -> str | None:
    versions = client.search_model_versions(f"name = '{model}' and tag.`{INPUTS}` = '{inputs}'")
    return str(max(int(version.version) for version in versions)) if versions else None


def _log_model(settings: Settings, client: Any, use_case: UseCase, made_of: Mapping[str, Artifact]) -> tuple[str, str]:
    """Store the model in MLflow under the step's run; return the ids of the stored model and of the run."""
    import importlib

    import mlflow
    from mlflow.models import infer_signature

    mlflow.set_tracking_uri(settings.tracking_uri)
    code = use_case.code("model")
    model = code.load(local_copy(settings, made_of["model"].uri))
    example = _example(settings, made_of["features"])
    output = code.predict(model, example)
    signature = infer_signature(example, output)
    run_id = (
        settings.step_run_id
        or client.create_run(run_records.experiment(client, use_case.name), run_name="register").info.run_id
    )
    flavor = importlib.import_module(f"mlflow.{use_case.model.flavor}")
    requests = golden.ask_offline(settings, use_case, made_of["features"].uri, model)
    with tempfile.TemporaryDirectory() as directory, mlflow.start_run(run_id=run_id, log_system_metrics=False):
        info = flavor.log_model(
            model,
            name="model",
            signature=signature,
            input_example=example.head(1),
            pip_requirements=_requirements(use_case.model.flavor),
            extra_files=[str(golden.write(requests, Path(directory)))],
            **_SAVED_AS.get(use_case.model.flavor, {}),
        )
    return str(info.model_id), run_id


def _example(settings: Settings, features: Artifact) -> pd.DataFrame:
    """Return rows of the training set, the first without a missing value so that the example works as it stands."""
    import pandas as pd

    directory = local_copy(settings, features.uri)
    names = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8")).features
    frame = pd.read_parquet(directory / "train.parquet", columns=list(names))
    complete = frame.dropna()
    rows = frame.head(1000)
    # An optional feature shows in the signature only when the rows hold a missing one.
    missing = [frame[frame[name].isna()].head(1) for name in frame.columns if frame[name].isna().any()]
    return pd.concat([complete.head(1), rows, *missing], ignore_index=True)


def _requirements(flavor: str) -> list[str]:
    """Return the pinned packages that a server of the model needs; asking MLflow to guess them costs half a minute."""
    from importlib.metadata import PackageNotFoundError, version

    needed: dict[str, list[tuple[str, ...]]] = {
        "xgboost": [("xgboost-cpu", "xgboost")],
        "sklearn": [("scikit-learn",)],
        "pytorch": [("torch",)],
        "onnx": [("onnx",), ("onnxruntime", "onnxruntime-gpu")],
    }
    pinned = [f"mlflow=={version('mlflow')}", f"pandas=={version('pandas')}"]
    for alternatives in needed[flavor]:
        for package in alternatives:
            try:
                pinned.append(f"{package}=={version(package)}")
                break
            except PackageNotFoundError:
                continue
    return pinned


def _passport(
    settings: Settings,
    client: Any,
    use_case: UseCase,
    made_of: Mapping[str, Artifact],
    hashes: dict[str, str],
    version: str,
) -> Passport:
    def read(name: str, file: str) -> str:
        return (local_copy(settings, made_of[name].uri) / file).read_text(encoding="utf-8")

    evaluation = Evaluation.model_validate_json(read("evaluation", "evaluation.json"))
    features = FeatureSet.model_validate_json(read("features", "feature_set.json"))
    checks = Checks.model_validate_json(read("checks", "checks.json"))
    trial = Trial.model_validate_json(read("model", "best_trial.json"))
    steps: dict[str, str] = {}
    run_key = ""
    if settings.run_id:
        run = client.get_run(settings.run_id)
        run_key = run.data.tags.get("shopfloor.run_key", "")
        steps = {step.name: step.run_id for step in run_records.steps_of(client, run) if step.run_id}
    commit, dirty = git_state(settings.project_root)
    return Passport(
        model=use_case.name,
        version=version,
        created=dt.datetime.now(dt.UTC),
        run_id=settings.run_id or "",
        step_run_ids=steps,
        git_commit=commit,
        git_dirty=dirty,
        data=DataVersion.model_validate_json(read("tables", "data_version.json")),
        checks_passed=checks.success,
        checks=len(checks.checks),
        feature_service=features.feature_service,
        features=features.features,
        lock_hash=lock_hash(settings),
        params=trial.params,
        trial_id=trial.trial_id,
        metrics=evaluation.metrics,
        champion=evaluation.champion,
        gates=evaluation.gates,
        model_hash=hashes["model"],
        content_hashes=hashes,
        run_key=run_key,
    )

"""What a model is worth on the test set, beside the champions on the same rows, and whether its gates are met."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shopfloor.errors import ShopfloorError, first_line
from shopfloor.judging import gates, metrics, signature
from shopfloor.judging.curves import confusion, curves
from shopfloor.records import Evaluation, FeatureSet, SliceResult
from shopfloor.runs.mlflow import CLASSES, client_of, import_mlflow
from shopfloor.runs.versions import champions
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, Metrics, local_copy, publish, scratch
from shopfloor.use_case import UseCase, load_use_case

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """A registered version on the test set."""

    version: str
    inputs: signature.Inputs | None
    """Inputs by its signature; `None` where that does not name them."""
    predictions: metrics.Predictions | None
    """Its predictions; `None` where it cannot answer these rows."""
    note: str
    """Reason why it cannot."""


def evaluate(
    settings: Settings,
    use_case_name: str,
    features_uri: str,
    model_uri: str,
    champion: str,
    evaluation: Artifact,
    log: Metrics,
) -> bool:
    """Judge a model on the test split.

    Args:
        settings: Say where artifacts and the registry are.
        use_case_name: Its `evaluation` and `gates` sections say what to look at.
        features_uri: What `build_features` made.
        model_uri: What `tune` made.
        champion: Version of the registered model to compare with; empty means none. `gates.champion_window` adds
            champions before it.
        evaluation: Gets `evaluation.json`.
        log: Gets the metrics on all rows.

    Returns:
        Whether every gate is met; a missed one is no error.

    Raises:
        UsageError: A gate bounds an unknown metric, or one of another task or of a class that there is not.
        ShopfloorError: The model does not answer what its task asks for, e.g. one finite number a row.
    """
    import pandas as pd

    use_case = load_use_case(settings, use_case_name)
    known = gates.require_known(settings, use_case)
    directory = local_copy(settings, features_uri)
    features = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8"))
    metrics.require_classes(known, features.classes)
    named = {metric.name for metric in known}
    known = (*known, *(metric for metric in metrics.of_classes(features.classes) if metric.name not in named))
    test = pd.read_parquet(directory / "test.parquet")
    code = use_case.code("model")
    model = code.load(local_copy(settings, model_uri))
    truth = test[features.target].to_numpy()
    answers, classes = code.predict(model, test[list(features.features)]), features.classes
    predictions = metrics.predictions_of(use_case.task, answers, len(test), classes=classes)
    numbers = metrics.measure(truth, predictions, known)
    versions = _references(settings, use_case, champion)
    references = [_reference(settings, use_case, one, test, classes) for one in versions]
    theirs = {
        one.version: metrics.measure(truth, one.predictions, known) for one in references if one.predictions is not None
    }
    slices = by_slice(test, use_case.evaluation.slices, truth, predictions, known)
    first = references[0] if references else None
    version, note = (first.version, first.note) if first else (None, "")
    results = gates.judge(use_case.gates, known, numbers, slices, version, theirs, note)
    models = {"this model": predictions}
    if first is not None:
        inputs = signature.inputs_of_features(features)
        results.append(signature.judge_signature(use_case.gates, inputs, first.version, first.inputs))
        if first.predictions is not None:
            models[f"champion, version {first.version}"] = first.predictions
    record = Evaluation(
        task=use_case.task,
        rows=len(test),
        metrics=numbers,
        champion=version,
        champion_metrics=theirs.get(version, {}) if version else {},
        slices=slices,
        gates=results,
        passed=all(result.passed for result in results),
        headlines=[metric.name for metric in known if metric.headline],
        titles={metric.name: metric.title for metric in known if metric.name in numbers},
        curves=curves(use_case.task, truth, models),
        confusion=confusion(truth, predictions) if isinstance(predictions, metrics.Classified) else None,
        importance=code.importance(model) if hasattr(code, "importance") else {},
    )
    with publish(settings, evaluation, "evaluate") as target:
        (target / "evaluation.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    for name, value in numbers.items():
        log.log_metric(name, value)
    for result in results:
        logger.info("%s %s: %s", result.gate, result.bound, "met" if result.passed else "missed")
    return record.passed


def by_slice(
    test: pd.DataFrame,
    columns: list[str],
    truth: np.ndarray,
    predictions: metrics.Predictions,
    known: Sequence[metrics.Metric],
) -> list[SliceResult]:
    """Return the metrics of the rows that share a value of each of `columns`, the largest slices first."""
    results: list[SliceResult] = []
    for column in columns:
        positions = test.reset_index(drop=True).groupby(column, observed=True).indices
        for value, index in sorted(positions.items(), key=lambda item: -len(item[1])):
            numbers = metrics.measure(truth[index], predictions[index], known)
            results.append(SliceResult(column=column, value=str(value), rows=len(index), metrics=numbers))
    return results


def _references(settings: Settings, use_case: UseCase, champion: str) -> list[str]:
    """Return the versions that a model is compared with, the champion first."""
    if not champion:
        return []
    client = client_of(settings)
    earlier = champions(client, use_case.name, use_case.gates.champion_window) if use_case.gates.champion else []
    return [champion, *(version for version in earlier if version != champion)][: use_case.gates.champion_window]


def _reference(
    settings: Settings, use_case: UseCase, version: str, test: pd.DataFrame, classes: list[int | str]
) -> Reference:
    """Return what a registered version answers to the rows, or why it cannot."""
    mlflow = import_mlflow()
    mlflow.set_tracking_uri(settings.tracking_uri)
    # MLflow would leave its copy of the model behind; a model may read its files when it is asked.
    with scratch() as directory:
        model = mlflow.pyfunc.load_model(f"models:/{use_case.name}/{version}", dst_path=str(directory))
        return _answers(model, use_case, version, test, classes)


def _answers(model: Any, use_case: UseCase, version: str, test: pd.DataFrame, classes: list[int | str]) -> Reference:
    from mlflow.exceptions import MlflowException

    schema = model.metadata.get_input_schema()
    if schema is None or not schema.has_input_names():
        return Reference(version, None, None, f"version {version} has no signature that names its inputs")
    inputs = signature.inputs_of(schema)
    missing = [name for name in inputs if name not in test.columns]
    if missing:
        note = f"version {version} needs the feature {missing[0]!r}, which these rows lack"
        return Reference(version, inputs, None, note)
    theirs = (model.metadata.metadata or {}).get(CLASSES, classes)
    if theirs != classes:
        note = f"version {version} knows {len(theirs)} classes, these rows have {len(classes)}, or others"
        return Reference(version, inputs, None, note)
    try:
        answers = metrics.predictions_of(
            use_case.task, model.predict(test[list(inputs)]), len(test), f"Version {version}", classes
        )
    except (MlflowException, ShopfloorError) as error:
        return Reference(version, inputs, None, f"version {version} does not take these rows: {first_line(error)}")
    return Reference(version, inputs, answers, "")

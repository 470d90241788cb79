"""What a model is worth on the test set, beside the champion on the same rows, and whether its gates are met.

The metrics are scikit-learn's; the calibration error is the expected calibration error over bins of equal count
(Guo et al., On Calibration of Modern Neural Networks, 2017, with the equal-count bins of Nixon et al., 2019).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from shopfloor.judging import gates
from shopfloor.records import Evaluation, FeatureSet, SliceResult
from shopfloor.runs.mlflow import import_mlflow
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, Metrics, local_copy, publish
from shopfloor.use_case import UseCase, load_use_case

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

logger = logging.getLogger(__name__)

CALIBRATION_BINS = 10
CURVE_POINTS = 200


def evaluate(
    settings: Settings,
    use_case_name: str,
    features_uri: str,
    model_uri: str,
    champion: str,
    evaluation: Artifact,
    metrics: Metrics,
) -> bool:
    """Judge a model on the test split.

    Args:
        settings: Say where artifacts and the registry are.
        use_case_name: Its `evaluation` and `gates` sections say what to look at.
        features_uri: What `build_features` made.
        model_uri: What `tune` made.
        champion: Version of the registered model to compare with, or `@` and an alias: the version that has it at this
            moment, as a schedule cannot name one; empty means none.
        evaluation: Gets `evaluation.json`.
        metrics: Gets the metrics on all rows.

    Returns:
        Whether every gate is met; a missed one is no error.

    Raises:
        UsageError: A gate bounds an unknown metric.
    """
    import pandas as pd

    use_case = load_use_case(settings, use_case_name)
    directory = local_copy(settings, features_uri)
    features = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8"))
    test = pd.read_parquet(directory / "test.parquet")
    code = use_case.code("model")
    model = code.load(local_copy(settings, model_uri))
    truth = test[features.target].to_numpy()
    scores = code.predict(model, test[list(features.features)])
    numbers = measure(truth, scores)
    champion_metrics: dict[str, float] = {}
    note = ""
    if champion.startswith("@"):
        champion = _version_of(settings, use_case_name, champion.removeprefix("@"))
    if champion:
        champion_metrics, note = _champion(settings, use_case, champion, test, truth)
    slices = by_slice(test, use_case.evaluation.slices, truth, scores)
    results = gates.judge(use_case.gates, numbers, slices, champion or None, champion_metrics, note)
    record = Evaluation(
        rows=len(test),
        metrics=numbers,
        champion=champion or None,
        champion_metrics=champion_metrics,
        slices=slices,
        gates=results,
        passed=all(result.passed for result in results),
        roc_curve=_roc_curve(truth, scores),
        calibration=calibration(truth, scores),
        importance=code.importance(model) if hasattr(code, "importance") else {},
    )
    with publish(settings, evaluation, "evaluate") as target:
        (target / "evaluation.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    for name, value in numbers.items():
        metrics.log_metric(name, value)
    for result in results:
        logger.info("%s %s: %s", result.gate, result.bound, "met" if result.passed else "missed")
    return record.passed


def measure(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return the metrics of predictions.

    Args:
        truth: Labels 0 or 1, shape (rows,).
        scores: Predicted probabilities of 1, shape (rows,).

    Returns:
        roc_auc and pr_auc (absent where only one label occurs), log_loss, brier, calibration_error, base_rate.
    """
    from sklearn import metrics as sk

    numbers = {
        "log_loss": float(sk.log_loss(truth, scores, labels=[0, 1])),
        "brier": float(sk.brier_score_loss(truth, scores, pos_label=1)) if len(set(truth)) > 1 else float("nan"),
        "base_rate": float(truth.mean()),
        "calibration_error": sum(
            rows * abs(predicted - observed) for predicted, observed, rows in calibration(truth, scores)
        )
        / len(truth),
    }
    if len(set(truth)) > 1:
        numbers["roc_auc"] = float(sk.roc_auc_score(truth, scores))
        numbers["pr_auc"] = float(sk.average_precision_score(truth, scores))
    else:
        del numbers["brier"]
    return numbers


def calibration(truth: np.ndarray, scores: np.ndarray) -> list[tuple[float, float, int]]:
    """Return (mean prediction, observed rate, rows) of bins of equal count, by rising prediction."""
    import numpy as np

    order = np.argsort(scores, kind="stable")
    bins = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    return [(float(scores[part].mean()), float(truth[part].mean()), len(part)) for part in bins]


def by_slice(test: pd.DataFrame, columns: list[str], truth: np.ndarray, scores: np.ndarray) -> list[SliceResult]:
    """Return the metrics of the rows that share a value of each of `columns`, the largest slices first."""
    results: list[SliceResult] = []
    for column in columns:
        positions = test.reset_index(drop=True).groupby(column, observed=True).indices
        for value, index in sorted(positions.items(), key=lambda item: -len(item[1])):
            results.append(
                SliceResult(
                    column=column, value=str(value), rows=len(index), metrics=measure(truth[index], scores[index])
                )
            )
    return results


def _roc_curve(truth: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    import numpy as np
    from sklearn import metrics as sk

    if len(set(truth)) < 2:
        return []
    false_positive, true_positive, _ = sk.roc_curve(truth, scores)
    at = np.linspace(0, len(false_positive) - 1, min(CURVE_POINTS, len(false_positive))).astype(int)
    return [(float(false_positive[i]), float(true_positive[i])) for i in at]


def _version_of(settings: Settings, model: str, alias: str) -> str:
    """Return the version that has an alias, empty where none has."""
    mlflow = import_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow.MlflowClient(settings.tracking_uri).get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return ""
        raise
    return str(found.version)


def _champion(
    settings: Settings, use_case: UseCase, version: str, test: pd.DataFrame, truth: np.ndarray
) -> tuple[dict[str, float], str]:
    """Return the champion's metrics on the same rows, or why it cannot be scored on them."""
    import numpy as np

    mlflow = import_mlflow()
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(settings.tracking_uri)
    model: Any = mlflow.pyfunc.load_model(f"models:/{use_case.name}/{version}")
    names = model.metadata.get_input_schema().input_names()
    missing = [name for name in names if name not in test.columns]
    if missing:
        return {}, f"the champion needs the feature {missing[0]!r}, which these rows lack"
    try:
        return measure(truth, np.asarray(model.predict(test[names]), dtype=np.float64).reshape(len(test))), ""
    except MlflowException as error:
        return {}, f"the champion does not take these rows: {str(error).splitlines()[0]}"

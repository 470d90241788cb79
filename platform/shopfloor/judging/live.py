"""What each version did for real requests, computed from the log of predictions and feedback.

The numbers have the names that the gates use, so shadow, canary and monitoring are judged as the evaluation is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shopfloor.judging.metrics import Classified, Metric, Predictions, measure, of_test_set
from shopfloor.records import ColumnDrift, LiveNumbers, Spread
from shopfloor.use_case import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

COLUMNS = ["request_id", "time", "version", "role", "route", "status", "failed", "latency_ms", "output"]
"""Columns of the log of predictions that the numbers rest on."""
ONE_ROW = "/predict"
"""Route that answers one row a request; a request of 10,000 rows says nothing about the latency of one."""


def live_numbers(
    predictions: pd.DataFrame,
    feedback: pd.DataFrame,
    version: str,
    champion: str | None,
    tolerance: float,
    cost_per_hour: float | None,
    task: Task,
    known: Sequence[Metric],
) -> LiveNumbers:
    """Return what `version` did.

    Args:
        predictions: The log, with `COLUMNS`; answers to who asked for a version by name are left out.
        feedback: The log, with `request_id` and `outcome` (JSON).
        version: Whose answers to look at.
        champion: Whose answers to the same requests its own are to agree with.
        tolerance: Two numeric predictions that differ by no more agree.
        cost_per_hour: Of a replica; `None` where nobody knows.
        task: What the use case's models predict: which outcomes say something of them.
        known: Metrics of the use case.
    """
    # Who asks for a version by name (a test, a golden request, a person) decides nothing about it.
    predictions = predictions[predictions["role"] != "asked"]
    ours = predictions[predictions["version"] == version]
    answered = ours[ours["role"] != "shadow"]
    shadows = ours[ours["role"] == "shadow"]
    metrics: dict[str, float] = {}
    counts: dict[str, int] = {}
    if len(ours):
        # A client's own error says nothing about the version.
        judged = ours[(ours["status"] < 400) | ours["failed"]]
        counts["error_rate"] = len(judged)
        if len(judged):
            metrics["error_rate"] = float(judged["failed"].mean())
    good = answered[answered["status"] < 400]
    single = good[good["route"] == ONE_ROW]
    if len(single):
        metrics["p99_ms"] = float(single["latency_ms"].quantile(0.99))
        counts["p99_ms"] = len(single)
    if len(good) and cost_per_hour is not None:
        metrics["cost_per_1000"] = cost_per_hour / 3600 * float(good["latency_ms"].mean())
        counts["cost_per_1000"] = len(good)
    if champion is not None and champion != version:
        _add_agreement(metrics, counts, predictions, shadows, champion, tolerance)
    _add_quality(metrics, counts, ours[ours["status"] < 400], feedback, task, known)
    return LiveNumbers(version=version, requests=len(answered), shadows=len(shadows), metrics=metrics, counts=counts)


def drift(column: str, reference: Spread, values: Sequence[Any]) -> ColumnDrift:
    """Return how far the values of a column are from those of the test set.

    The distance is that of Jensen and Shannon to base 2 (Endres and Schindelin, IEEE Transactions on Information Theory
    49, 2003), as SciPy computes it.

    Args:
        column: Its name.
        reference: The spread of the test set.
        values: What came since, as JSON holds it.
    """
    from scipy.spatial.distance import jensenshannon

    live = reference.shares_of(values)
    distance = float(jensenshannon(reference.shares, live, base=2)) if values else 0.0
    return ColumnDrift(
        column=column,
        distance=0.0 if math.isnan(distance) else min(1.0, distance),  # of the root of a sum that rounds below 0
        rows=len(values),
        bins=reference.labels(),
        reference=reference.shares,
        live=live,
    )


def _add_agreement(
    metrics: dict[str, float],
    counts: dict[str, int],
    predictions: pd.DataFrame,
    shadows: pd.DataFrame,
    champion: str,
    tolerance: float,
) -> None:
    theirs = predictions[(predictions["version"] == champion) & (predictions["role"] == "live")]
    # A client may use one id twice; whose answer belongs to which copy is then unknown.
    pairs = theirs.drop_duplicates("request_id", keep=False).merge(
        shadows.drop_duplicates("request_id", keep=False), on="request_id", suffixes=("", "_shadow")
    )
    agree = [
        _agree(_prediction(one), _prediction(other), tolerance)
        for one, other in zip(pairs["output"], pairs["output_shadow"], strict=True)
    ]
    counts["agreement"] = len(agree)
    if agree:
        metrics["agreement"] = sum(agree) / len(agree)


def _add_quality(
    metrics: dict[str, float],
    counts: dict[str, int],
    answers: pd.DataFrame,
    feedback: pd.DataFrame,
    task: Task,
    known: Sequence[Metric],
) -> None:
    """Add the evaluation's metrics where outcomes of the task's kind came, and differ."""
    outcomes = answers.drop_duplicates("request_id").merge(
        feedback.drop_duplicates("request_id", keep="last"), on="request_id"
    )
    pairs = [
        (_prediction(output), json.loads(outcome))
        for output, outcome in zip(outcomes["output"], outcomes["outcome"], strict=True)
    ]
    truth: np.ndarray
    predictions: Predictions
    if task == "custom":
        truth, predictions = _objects([became for _, became in pairs]), _objects([answer for answer, _ in pairs])
    else:
        truth, predictions = _classes(pairs) if task == "multiclass" else _numbers(pairs, task)
    if len(truth) > 1 and (task == "custom" or len(set(truth.tolist())) > 1):
        numbers = measure(truth, predictions, of_test_set(known))
        metrics.update(numbers)
        counts.update(dict.fromkeys(numbers, len(truth)))


def _objects(values: list[Any]) -> np.ndarray:
    """Return values of any kind, one an item."""
    import numpy as np

    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _numbers(pairs: list[tuple[Any, Any]], task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return outcomes that are a label or a number, and the predictions of them."""
    import numpy as np

    truth, predictions = [], []
    for prediction, became in pairs:
        if _is_number(prediction) and (became in (0, 1) if task == "binary" else _is_number(became)):
            truth.append(int(became) if task == "binary" else float(became))
            predictions.append(float(prediction))
    return np.array(truth), np.array(predictions)


def _classes(pairs: list[tuple[Any, Any]]) -> tuple[np.ndarray, Classified]:
    """Return outcomes that are a class, and the predictions of them; the endpoint names all classes in each answer."""
    import numpy as np

    probabilities: list[dict[str, float]] = [
        prediction["probabilities"] for prediction, _ in pairs if isinstance(prediction, dict) and "class" in prediction
    ]
    labels = [_class_of(prediction) for prediction, _ in pairs]
    if len(probabilities) == len(pairs) and pairs:
        kind = int if all(isinstance(label, int) for label in labels) else str
        names: list[Any] = [kind(name) for name in probabilities[0]]
    else:
        probabilities, names = [], sorted({became for _, became in pairs} | set(labels), key=str)
    kept = [number for number, (_, became) in enumerate(pairs) if became in names and not isinstance(became, bool)]
    table = np.array([list(probabilities[number].values()) for number in kept]) if probabilities else None
    return (
        np.array([pairs[number][1] for number in kept]),
        Classified(tuple(names), np.array([labels[number] for number in kept]), table),
    )


def _class_of(prediction: Any) -> Any:
    """Return the class of a prediction that names one with its probabilities; any other prediction as it is."""
    return prediction.get("class", prediction) if isinstance(prediction, dict) else prediction


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _prediction(output: str | None) -> Any:
    try:
        return json.loads(output or "null")["prediction"]
    except (ValueError, TypeError, KeyError):
        return None


def _agree(one: Any, other: Any, tolerance: float) -> bool:
    one, other = _class_of(one), _class_of(other)
    numbers = _is_number(one) and _is_number(other)
    return math.isclose(one, other, rel_tol=0, abs_tol=tolerance) if numbers else one is not None and one == other

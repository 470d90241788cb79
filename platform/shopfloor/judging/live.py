"""What each version did for real requests, computed from the log of predictions and feedback.

The numbers have the names that the gates use, so shadow, canary and monitoring are judged as the evaluation is.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from shopfloor.judging.metrics import measure
from shopfloor.records import LiveNumbers

if TYPE_CHECKING:
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
) -> LiveNumbers:
    """Return what `version` did.

    Args:
        predictions: The log, with `COLUMNS`; answers to who asked for a version by name are left out.
        feedback: The log, with `request_id` and `outcome` (JSON).
        version: Whose answers to look at.
        champion: Whose answers to the same requests its own are to agree with.
        tolerance: Two numeric predictions that differ by no more agree.
        cost_per_hour: Of a replica; `None` where nobody knows.
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
    _add_quality(metrics, counts, ours[ours["status"] < 400], feedback)
    return LiveNumbers(version=version, requests=len(answered), shadows=len(shadows), metrics=metrics, counts=counts)


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
    metrics: dict[str, float], counts: dict[str, int], answers: pd.DataFrame, feedback: pd.DataFrame
) -> None:
    """Add the evaluation's metrics where the outcomes are yes or no and both occur."""
    outcomes = answers.drop_duplicates("request_id").merge(
        feedback.drop_duplicates("request_id", keep="last"), on="request_id"
    )
    truth, scores = [], []
    for output, outcome in zip(outcomes["output"], outcomes["outcome"], strict=True):
        score, label = _prediction(output), json.loads(outcome)
        if isinstance(score, int | float) and label in (0, 1):
            scores.append(float(score))
            truth.append(int(label))
    if len(set(truth)) == 2:
        import numpy as np

        numbers = measure(np.array(truth), np.array(scores))
        metrics.update({name: value for name, value in numbers.items() if name != "base_rate"})
        counts.update(dict.fromkeys(numbers, len(truth)))


def _prediction(output: str | None) -> Any:
    try:
        return json.loads(output or "null")["prediction"]
    except (ValueError, TypeError, KeyError):
        return None


def _agree(one: Any, other: Any, tolerance: float) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    return math.isclose(one, other, rel_tol=0, abs_tol=tolerance) if numbers else one is not None and one == other

"""The metrics: for which kind of task each is, in which direction it is better, how it is computed and how it is shown.

What evaluates, bounds or shows a model asks here. scikit-learn computes what it has; the calibration error is the
expected calibration error over bins of equal count (Guo et al., On Calibration of Modern Neural Networks, 2017, with
the equal-count bins of Nixon et al., 2019). A metric of another task is one more `Metric`, one more task its curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shopfloor.errors import ShopfloorError, UsageError
from shopfloor.records import Curve, Line

if TYPE_CHECKING:
    import numpy as np

Task = Literal["binary"]
"""What a model predicts; `binary`: the probability of label 1 of 0 and 1."""
Compute = Callable[["np.ndarray", "np.ndarray"], float]
"""Function of labels and predictions, both of shape (rows,)."""
CALIBRATION_BINS = 10
CURVE_POINTS = 200


@dataclass(frozen=True)
class Metric:
    """One number that says how good a model is."""

    name: str
    """Key in `gates`, in evaluations and in MLflow."""
    title: str
    """Words for a person."""
    higher_is_better: bool | None
    """Whether more is better; `None` where it says nothing about the model, and no gate can bound it."""
    tasks: frozenset[Task] = frozenset()
    """Tasks on whose test set it is computed; none where only real requests give it."""
    compute: Compute | None = None
    needs_every_label: bool = False
    """Whether it is defined only where each label occurs."""
    headline: bool = False
    """Whether a command shows it after a run; the first of a task is drawn by slice."""


def _roc_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn import metrics as sk

    return float(sk.roc_auc_score(truth, scores))


def _pr_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn import metrics as sk

    return float(sk.average_precision_score(truth, scores))


def _log_loss(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn import metrics as sk

    return float(sk.log_loss(truth, scores, labels=[0, 1]))


def _brier(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn import metrics as sk

    return float(sk.brier_score_loss(truth, scores, pos_label=1))


def _calibration_error(truth: np.ndarray, scores: np.ndarray) -> float:
    gaps = sum(rows * abs(predicted - observed) for predicted, observed, rows in calibration(truth, scores))
    return float(gaps / len(truth))


def _base_rate(truth: np.ndarray, scores: np.ndarray) -> float:
    return float(truth.mean())


_BINARY: frozenset[Task] = frozenset({"binary"})
METRICS: tuple[Metric, ...] = (
    Metric("roc_auc", "ROC AUC", True, _BINARY, _roc_auc, needs_every_label=True, headline=True),
    Metric("pr_auc", "PR AUC", True, _BINARY, _pr_auc, needs_every_label=True, headline=True),
    Metric("log_loss", "log loss", False, _BINARY, _log_loss, headline=True),
    Metric("brier", "Brier score", False, _BINARY, _brier, needs_every_label=True),
    Metric("calibration_error", "calibration error", False, _BINARY, _calibration_error, headline=True),
    Metric("base_rate", "rate of label 1", None, _BINARY, _base_rate),
    Metric("agreement", "agreement with the champion", True),
    Metric("p99_ms", "99th percentile of the latency, ms", False),
    Metric("error_rate", "rate of errors", False),
    Metric("cost_per_1000", "cost of 1,000 answers", False),
)
"""All of them, in the order in which they are shown."""


def of_test_set(task: Task) -> tuple[Metric, ...]:
    """Return the metrics of a task that a gate on the test set can bound."""
    return tuple(metric for metric in METRICS if task in metric.tasks and metric.higher_is_better is not None)


def of_requests(task: Task) -> tuple[Metric, ...]:
    """Return the metrics that a gate on real requests can bound: those of answers, and with feedback the task's own."""
    return (*of_test_set(task), *(metric for metric in METRICS if not metric.tasks))


def headlines(task: Task) -> list[str]:
    """Return the names of the metrics that a command shows after a run, the most telling one first."""
    return [metric.name for metric in METRICS if task in metric.tasks and metric.headline]


def metric_named(name: str, choice: tuple[Metric, ...]) -> Metric:
    """Return the metric of that name.

    Raises:
        UsageError: It is not among those to choose from.
    """
    for metric in choice:
        if metric.name == name:
            return metric
    names = ", ".join(sorted(metric.name for metric in choice))
    raise UsageError(f"A gate bounds {name!r}, which is no metric.", f"Known metrics: {names}.")


def scores_of(predictions: object, rows: int, who: str = "The model") -> np.ndarray:
    """Return the scores, shape (rows,): of the probabilities of both labels that of label 1.

    Args:
        predictions: What a model answered to the rows.
        rows: How many were asked.
        who: Names the model in an error.

    Raises:
        ShopfloorError: It is not one finite number a row.
    """
    import numpy as np

    scores = np.asarray(predictions, dtype=np.float64)
    if scores.ndim == 2 and scores.shape[1] <= 2:
        scores = scores[:, -1]
    if scores.shape != (rows,):
        raise ShopfloorError(
            f"{who} answers predictions of shape {scores.shape} to {rows} rows.", "Let `predict` answer a number a row."
        )
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise ShopfloorError(
            f"{who} answers {wrong} of {rows} rows with no finite number.", "Mend `predict` in model.py."
        )
    return scores


def measure(truth: np.ndarray, scores: np.ndarray, task: Task = "binary") -> dict[str, float]:
    """Return the metrics of predictions; one that is not defined on these rows, or no finite number, is left out.

    Args:
        truth: Labels, shape (rows,).
        scores: Predictions, shape (rows,).
        task: What the model predicts.
    """
    numbers: dict[str, float] = {}
    every_label = len(set(truth.tolist())) > 1
    for metric in METRICS:
        if task in metric.tasks and metric.compute and (every_label or not metric.needs_every_label):
            value = metric.compute(truth, scores)
            if math.isfinite(value):
                numbers[metric.name] = value
    return numbers


def calibration(truth: np.ndarray, scores: np.ndarray) -> list[tuple[float, float, int]]:
    """Return (mean prediction, observed rate, rows) of bins of equal count, by rising prediction."""
    import numpy as np

    order = np.argsort(scores, kind="stable")
    bins = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    return [(float(scores[part].mean()), float(truth[part].mean()), len(part)) for part in bins]


def curves(truth: np.ndarray, models: dict[str, np.ndarray]) -> list[Curve]:
    """Return the pictures of a binary classification.

    Args:
        truth: Labels, shape (rows,).
        models: Name of a model to its scores on the same rows, shape (rows,).
    """
    pictures = []
    if len(set(truth.tolist())) > 1:
        lines = [
            Line(name=f"{name}, area {_roc_auc(truth, scores):.4f}", points=_roc(truth, scores))
            for name, scores in models.items()
        ]
        pictures.append(Curve(title="ROC curve", x="false positive rate", y="true positive rate", lines=lines))
    lines = [
        Line(name=name, points=[(predicted, observed) for predicted, observed, _ in calibration(truth, scores)])
        for name, scores in models.items()
    ]
    title = f"Calibration, {CALIBRATION_BINS} bins of equal count"
    return [*pictures, Curve(title=title, x="mean prediction", y="observed rate", lines=lines, marks=True)]


def _roc(truth: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    import numpy as np
    from sklearn import metrics as sk

    false_positive, true_positive, _ = sk.roc_curve(truth, scores)
    at = np.linspace(0, len(false_positive) - 1, min(CURVE_POINTS, len(false_positive))).astype(int)
    return [(float(false_positive[i]), float(true_positive[i])) for i in at]

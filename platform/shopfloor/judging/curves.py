"""The pictures of how a model predicts, for each task: as points and lines, which the report draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shopfloor.judging.metrics import CALIBRATION_BINS, Classified, Predictions, calibration
from shopfloor.records import Confusion, Curve, Line
from shopfloor.use_case import Task

if TYPE_CHECKING:
    import numpy as np

POINTS = 200
"""Points of one line at most: a page holds them all."""
CLASSES = 12
"""Classes that have a picture each, those of the most rows."""


def curves(task: Task, truth: np.ndarray, models: Mapping[str, Predictions]) -> list[Curve]:
    """Return the pictures of a task.

    Args:
        task: What the models predict.
        truth: Labels or numbers, shape (rows,).
        models: Name of a model to its predictions of the same rows.
    """
    if task == "custom":
        return []
    classified = {name: one for name, one in models.items() if isinstance(one, Classified)}
    if task == "multiclass":
        return _multiclass(truth, classified)
    numbers = {name: one for name, one in models.items() if not isinstance(one, Classified)}
    return _regression(truth, numbers) if task == "regression" else _binary(truth, numbers)


def confusion(truth: np.ndarray, predictions: Classified) -> Confusion:
    """Return how often each class was taken for which."""
    from sklearn import metrics

    counts = metrics.confusion_matrix(truth, predictions.labels, labels=list(predictions.classes))
    return Confusion(classes=list(predictions.classes), counts=counts.tolist())


def _multiclass(truth: np.ndarray, models: Mapping[str, Classified]) -> list[Curve]:
    """Return the calibration of each class against the rest, where models answer probabilities."""
    classes = sorted({one for predictions in models.values() for one in predictions.classes}, key=str)
    rows = {one: int((truth == one).sum()) for one in classes}
    pictures = []
    for one in sorted(classes, key=lambda name: -rows[name])[:CLASSES]:
        lines = [
            Line(name=name, points=[(x, y) for x, y, _ in calibration(truth == one, column)])
            for name, predictions in models.items()
            if predictions.probabilities is not None and one in predictions.classes
            for column in [predictions.probabilities[:, predictions.classes.index(one)]]
        ]
        if lines:
            title = f"Calibration of class {one} ({rows[one]} rows), {CALIBRATION_BINS} bins of equal count"
            pictures.append(Curve(title=title, x="mean prediction", y="observed rate", lines=lines, marks=True))
    return pictures


def _binary(truth: np.ndarray, models: Mapping[str, np.ndarray]) -> list[Curve]:
    """Return the ROC curve, where both labels occur, and the calibration."""
    from sklearn import metrics

    pictures = []
    if len(set(truth.tolist())) > 1:
        lines = [
            Line(name=f"{name}, area {metrics.roc_auc_score(truth, scores):.4f}", points=_roc(truth, scores))
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
    from sklearn import metrics

    false_positive, true_positive, _ = metrics.roc_curve(truth, scores)
    at = np.linspace(0, len(false_positive) - 1, min(POINTS, len(false_positive))).astype(int)
    return [(float(false_positive[i]), float(true_positive[i])) for i in at]


def _regression(truth: np.ndarray, models: Mapping[str, np.ndarray]) -> list[Curve]:
    """Return predicted against true numbers, and what is left (true minus predicted) by prediction."""
    predicted = [Line(name=name, points=_sample(truth, values)) for name, values in models.items()]
    residuals = [Line(name=name, points=_sample(values, truth - values)) for name, values in models.items()]
    return [
        Curve(
            title="Predicted against true",
            x="true",
            y="predicted",
            lines=predicted,
            marks=True,
            joined=False,
            within="data",
        ),
        Curve(
            title="Residuals by prediction",
            x="predicted",
            y="true minus predicted",
            lines=residuals,
            marks=True,
            joined=False,
            within="data",
            reference="zero",
        ),
    ]


def _sample(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """Return some of the points, from the lowest x to the highest, the same for the same points."""
    import numpy as np

    order = np.argsort(x, kind="stable")
    at = order[np.linspace(0, len(order) - 1, min(POINTS, len(order))).astype(int)]
    return [(float(x[i]), float(y[i])) for i in at]

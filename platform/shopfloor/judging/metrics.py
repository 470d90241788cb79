"""The metrics: for which kind of task each is, in which direction it is better, how it is computed and how it is shown.

What evaluates, bounds or shows a model asks here. scikit-learn computes what it has; the calibration error is the
expected calibration error over bins of equal count (Guo et al., On Calibration of Modern Neural Networks, 2017, with
the equal-count bins of Nixon et al., 2019). A use case's own metrics stand in its `metrics.py`, and count like these;
so do those that a gate names with what they are about, `f1:<class>`, `coverage:<quantile>` and `pinball:<quantile>`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from shopfloor.errors import NotFoundError, ShopfloorError, UsageError, first_line
from shopfloor.runs.mlflow import by_row
from shopfloor.use_case import ServedCase, Task

if TYPE_CHECKING:
    import numpy as np

Compute = Callable[["np.ndarray", Any], float]
"""Function of what is true (labels, or numbers), of shape (rows,), and of `Predictions`."""
CALIBRATION_BINS = 10
FEW_CLASSES = 20
"""Classes that have a number each."""


@dataclass(frozen=True, eq=False)
class Classified:
    """Predictions of a multiclass task."""

    classes: tuple[int | str, ...]
    """All there are, sorted."""
    labels: np.ndarray
    """The class that each row is taken for, shape (rows,)."""
    probabilities: np.ndarray | None
    """Of each class, shape (rows, classes); `None` where the model answers a class alone."""

    def __getitem__(self, rows: Any) -> Classified:
        """Return the predictions of some rows."""
        part = None if self.probabilities is None else self.probabilities[rows]
        return Classified(self.classes, self.labels[rows], part)


Predictions: TypeAlias = "np.ndarray | Classified"
"""A number a row, shape (rows,); in a multiclass task classes, in a custom one whatever the model answers."""


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
    needs_two_values: bool = False
    """Whether it is defined only where what is true differs from row to row: with one label there is no ROC curve."""
    headline: bool = False
    """Whether a command shows it after a run; the first of a task is drawn by slice."""
    of_class: str = ""
    """Class that it is about."""


def _sklearn(name: str, **options: object) -> Compute:
    """Return scikit-learn's metric of that name."""

    def compute(truth: np.ndarray, predictions: np.ndarray) -> float:
        from sklearn import metrics

        return float(getattr(metrics, name)(truth, predictions, **options))

    return compute


def _calibration_error(truth: np.ndarray, scores: np.ndarray) -> float:
    gaps = sum(rows * abs(predicted - observed) for predicted, observed, rows in calibration(truth, scores))
    return float(gaps / len(truth))


def _base_rate(truth: np.ndarray, scores: np.ndarray) -> float:
    return float(truth.mean())


def _relative_error(truth: np.ndarray, predictions: np.ndarray) -> float:
    """Return the mean of |error| / |truth|, which nobody can say where something true is 0."""
    return math.nan if (truth == 0).any() else _sklearn("mean_absolute_percentage_error")(truth, predictions)


def _of_labels(name: str, **options: object) -> Compute:
    """Return scikit-learn's metric of that name of the classes that rows are taken for."""
    compute = _sklearn(name, **options)
    return lambda truth, predictions: compute(truth, predictions.labels)


def _of_probabilities(name: str, **options: object) -> Compute:
    """Return scikit-learn's metric of that name of the classes' probabilities."""

    def compute(truth: np.ndarray, predictions: Classified) -> float:
        if predictions.probabilities is None:
            return math.nan
        return _sklearn(name, labels=list(predictions.classes), **options)(truth, predictions.probabilities)

    return compute


def _top(k: int) -> Compute:
    """Return the share of rows whose class is among the k most probable ones; of k classes it would say nothing."""
    compute = _of_probabilities("top_k_accuracy_score", k=k)
    return lambda truth, predictions: compute(truth, predictions) if k < len(predictions.classes) else math.nan


def _roc_auc_ovr(truth: np.ndarray, predictions: Classified) -> float:
    if predictions.probabilities is None or len(set(truth.tolist())) < len(predictions.classes):
        return math.nan
    from sklearn import metrics

    columns = predictions.probabilities.T
    areas = [
        metrics.roc_auc_score(truth == one, column) for one, column in zip(predictions.classes, columns, strict=True)
    ]
    return float(sum(areas) / len(areas))


def _f1_of(name: str) -> Compute:
    """Return the F1 of one class against the rest; undefined where it neither occurs nor is predicted."""
    compute = _sklearn("f1_score")

    def of(truth: np.ndarray, predictions: Classified) -> float:
        labels = {_in_a_name(one): one for one in predictions.classes}
        if name not in labels:
            return math.nan
        true, taken = truth == labels[name], predictions.labels == labels[name]
        return compute(true, taken) if true.any() or taken.any() else math.nan

    return of


def _coverage_error(quantile: float) -> Compute:
    """Return how far the share of true values up to the predicted ones is from the quantile that they are to be."""
    return lambda truth, predictions: float(abs((truth <= predictions).mean() - quantile))


def _in_a_name(one: int | str) -> str:
    """Return a class as the name of a metric holds it: MLflow takes no other characters."""
    return re.sub(r"[^\w\-. /]", "_", str(one))


_BINARY: frozenset[Task] = frozenset({"binary"})
_MULTICLASS: frozenset[Task] = frozenset({"multiclass"})
_REGRESSION: frozenset[Task] = frozenset({"regression"})
METRICS: tuple[Metric, ...] = (
    Metric("roc_auc", "ROC AUC", True, _BINARY, _sklearn("roc_auc_score"), needs_two_values=True, headline=True),
    Metric(
        "pr_auc", "PR AUC", True, _BINARY, _sklearn("average_precision_score"), needs_two_values=True, headline=True
    ),
    Metric("log_loss", "log loss", False, _BINARY, _sklearn("log_loss", labels=[0, 1]), headline=True),
    Metric("brier", "Brier score", False, _BINARY, _sklearn("brier_score_loss", pos_label=1), needs_two_values=True),
    Metric("calibration_error", "calibration error", False, _BINARY, _calibration_error, headline=True),
    Metric("base_rate", "rate of label 1", None, _BINARY, _base_rate),
    Metric("accuracy", "accuracy", True, _MULTICLASS, _of_labels("accuracy_score"), headline=True),
    Metric("balanced_accuracy", "balanced accuracy", True, _MULTICLASS, _of_labels("recall_score", average="macro")),
    Metric(
        "f1_macro", "F1, mean of the classes", True, _MULTICLASS, _of_labels("f1_score", average="macro"), headline=True
    ),
    Metric("f1_weighted", "F1, weighted by rows", True, _MULTICLASS, _of_labels("f1_score", average="weighted")),
    Metric("log_loss", "log loss", False, _MULTICLASS, _of_probabilities("log_loss"), headline=True),
    Metric("roc_auc_ovr", "ROC AUC, one class against the rest", True, _MULTICLASS, _roc_auc_ovr, headline=True),
    *(Metric(f"top_{k}_accuracy", f"accuracy of the top {k}", True, _MULTICLASS, _top(k)) for k in (2, 3, 5)),
    Metric("mae", "mean absolute error", False, _REGRESSION, _sklearn("mean_absolute_error"), headline=True),
    Metric("rmse", "root mean squared error", False, _REGRESSION, _sklearn("root_mean_squared_error"), headline=True),
    Metric("median_ae", "median absolute error", False, _REGRESSION, _sklearn("median_absolute_error")),
    Metric("mape", "mean absolute percentage error", False, _REGRESSION, _relative_error),
    Metric("r2", "R2", True, _REGRESSION, _sklearn("r2_score"), needs_two_values=True, headline=True),
    Metric("agreement", "agreement with the champion", True),
    Metric("p99_ms", "99th percentile of the latency, ms", False),
    Metric("error_rate", "rate of errors", False),
    Metric("cost_per_1000", "cost of 1,000 answers", False),
)
"""All of the platform's, in the order in which they are shown."""


def of_task(task: Task) -> tuple[Metric, ...]:
    """Return the metrics that are computed for a task."""
    return tuple(metric for metric in METRICS if task in metric.tasks)


def of_classes(classes: Sequence[int | str]) -> tuple[Metric, ...]:
    """Return the metrics of single classes, where there are few: the F1 of each against the rest."""
    return tuple(map(_of_class, map(_in_a_name, classes))) if len(classes) <= FEW_CLASSES else ()


def require_classes(metrics: Sequence[Metric], classes: Sequence[int | str]) -> None:
    """Check that metrics of single classes are about classes that there are.

    Raises:
        UsageError: One is not; it is named with the classes.
    """
    names = [_in_a_name(one) for one in classes]
    for metric in metrics:
        if metric.of_class and metric.of_class not in names:
            raise UsageError(
                f"A gate bounds {metric.name!r}, and the training set has no class {metric.of_class!r}.",
                f"It has {', '.join(names[:20])}.",
            )


def _of_class(name: str) -> Metric:
    return Metric(f"f1:{name}", f"F1 of class {name}", True, _MULTICLASS, _f1_of(name), of_class=name)


def _with_argument(name: str, task: Task) -> Metric | None:
    """Return the metric of a name such as `f1:barolo` or `coverage:0.9`; `None` where it is none of the task."""
    kind, _, argument = name.partition(":")
    if kind == "f1" and argument and task == "multiclass":
        return _of_class(argument)
    if kind not in {"coverage", "pinball"} or task != "regression" or not re.fullmatch(r"0?\.\d+", argument):
        return None
    quantile = float(argument)
    if kind == "pinball":
        title = f"pinball loss at the {argument} quantile"
        return Metric(name, title, False, _REGRESSION, _sklearn("mean_pinball_loss", alpha=quantile))
    title = f"true values under the prediction: their share's distance from {argument}"
    return Metric(name, title, False, _REGRESSION, _coverage_error(quantile))


def _named_by_gates(use_case: ServedCase) -> tuple[Metric, ...]:
    """Return the metrics that a use case's gates name with what they are about."""
    gates = use_case.gates
    sections = (gates.metrics, gates.slices, gates.champion, gates.live.metrics, gates.live.champion)
    names = dict.fromkeys(name for section in sections for name in section)
    return tuple(metric for name in names if (metric := _with_argument(name, use_case.task)) is not None)


def of_use_case(use_case: ServedCase) -> tuple[Metric, ...]:
    """Return the metrics that are computed for a use case: those of its task, those of its `metrics.py`, and those
    that its gates name with what they are about.

    That defines `METRICS`, the name of each of its functions to `min` or `max`, which way is better. A function takes
    what is true and the predictions (of a multiclass task the classes), as arrays of shape (rows,), and returns a
    number; NaN where it is not defined.

    Raises:
        UsageError: `metrics.py` does not import, or defines something else.
    """
    file = f"pipelines/{use_case.name}/metrics.py"
    try:
        code = use_case.code("metrics")
    except NotFoundError:
        return (*of_task(use_case.task), *_named_by_gates(use_case))
    except Exception as error:  # whatever the use case's code raises
        raise UsageError(f"{file} fails: {type(error).__name__}: {first_line(error)}", "Mend it.") from error
    directions = getattr(code, "METRICS", None)
    if not isinstance(directions, Mapping) or not set(directions.values()) <= {"min", "max"}:
        raise UsageError(
            f"{file} has no METRICS that says `min` or `max` of each.", 'Write METRICS = {"name_of_a_function": "min"}.'
        )
    taken = {metric.name for metric in METRICS}
    for name in directions:
        if not callable(getattr(code, name, None)):
            raise UsageError(f"{file}: METRICS names {name!r}, which is no function there.", "Write it.")
        if name in taken:
            raise UsageError(f"{file}: {name!r} is a metric of the platform's.", "Give yours another name.")
    own = (
        Metric(
            name, name.replace("_", " "), direction == "max", compute=_guarded(file, getattr(code, name)), headline=True
        )
        for name, direction in directions.items()
    )
    return (*of_task(use_case.task), *own, *_named_by_gates(use_case))


def _guarded(file: str, function: Compute) -> Compute:
    """Return a use case's function as one whose mistakes are told in one line."""

    def compute(truth: np.ndarray, predictions: Predictions) -> float:
        try:
            return float(function(truth, predictions.labels if isinstance(predictions, Classified) else predictions))
        except Exception as error:  # whatever the use case's code raises
            name = getattr(function, "__name__", "a metric")
            raise UsageError(
                f"{name} of {file} fails on {len(truth)} rows: {type(error).__name__}: {first_line(error)}",
                "Where it is not defined, let it return NaN.",
            ) from error

    return compute


def of_test_set(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """Return those of a use case's metrics that a gate on the test set can bound."""
    return tuple(metric for metric in metrics if metric.higher_is_better is not None)


def of_requests(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """Return what a gate on real requests can bound: what answers alone say, and with feedback a use case's metrics."""
    return (*of_test_set(metrics), *(metric for metric in METRICS if not metric.tasks))


def metric_named(name: str, choice: Sequence[Metric]) -> Metric:
    """Return the metric of that name.

    Raises:
        UsageError: It is not among those to choose from.
    """
    for metric in choice:
        if metric.name == name:
            return metric
    namesakes = [metric for metric in METRICS if metric.name == name]
    tasks = ", ".join(sorted(task for metric in namesakes for task in metric.tasks))
    why = "which real requests alone show" if namesakes else "which is no metric"
    if tasks:
        why = f"which is a metric of another task ({tasks})"
    names = ", ".join(sorted(metric.name for metric in choice))
    raise UsageError(f"A gate bounds {name!r}, {why}.", f"Known metrics: {names}.")


def predictions_of(
    task: Task, answers: object, rows: int, who: str = "The model", classes: Sequence[int | str] = ()
) -> Predictions:
    """Return predictions: where a model answers the probabilities of both labels of a binary task, that of label 1.

    Args:
        task: What the model predicts.
        answers: What it answered to the rows.
        rows: How many were asked.
        who: Names the model in an error.
        classes: Those of a multiclass task, sorted.

    Raises:
        ShopfloorError: It is not one finite number a row, in a multiclass task not a class or the probabilities of
            all, in a custom one not one answer a row.
    """
    if task == "multiclass":
        return _classified(answers, rows, who, tuple(classes))
    if task == "custom":
        return _anything(answers, rows, who)
    import numpy as np

    try:
        predictions = np.asarray(answers, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ShopfloorError(
            f"{who} answers what is no number: {first_line(error)}.", "Let `predict` answer a number a row."
        ) from error
    if predictions.ndim == 2 and predictions.shape[1] <= (2 if task == "binary" else 1):
        predictions = predictions[:, -1]
    if predictions.shape != (rows,):
        raise ShopfloorError(
            f"{who} answers predictions of shape {predictions.shape} to {rows} rows.",
            "Let `predict` answer a number a row.",
        )
    wrong = int((~np.isfinite(predictions)).sum())
    if wrong:
        raise ShopfloorError(
            f"{who} answers {wrong} of {rows} rows with no finite number.", "Mend `predict` in model.py."
        )
    return predictions


def _anything(answers: Any, rows: int, who: str) -> np.ndarray:
    import numpy as np

    answers = by_row(answers, rows)
    if len(answers) != rows:
        raise ShopfloorError(f"{who} answers {len(answers)} of {rows} rows.", "Let `predict` answer one a row.")
    if isinstance(answers, np.ndarray):
        return answers
    values = np.empty(rows, dtype=object)  # of lists NumPy would make a table
    values[:] = list(answers)
    return values


def _classified(answers: object, rows: int, who: str, classes: tuple[int | str, ...]) -> Classified:
    import numpy as np

    array = np.asarray(answers)
    if array.shape == (rows,):
        strangers = sorted(set(array.tolist()) - set(classes), key=str)
        if strangers:
            raise ShopfloorError(
                f"{who} answers {strangers[0]!r}, which is none of the {len(classes)} classes of the training set.",
                "Let `predict` answer a class a row, or the probabilities of all, in sorted order.",
            )
        return Classified(classes, array, None)
    if array.shape != (rows, len(classes)):
        raise ShopfloorError(
            f"{who} answers predictions of shape {array.shape} to {rows} rows of {len(classes)} classes.",
            "Let `predict` answer a class a row, or the probabilities of all, in sorted order.",
        )
    probabilities = array.astype(np.float64)
    wrong = int((~(np.abs(probabilities.sum(axis=1) - 1) < 1e-3) | (probabilities < 0).any(axis=1)).sum())
    if wrong:
        raise ShopfloorError(
            f"{who} answers {wrong} of {rows} rows with probabilities that are negative or do not sum to 1.",
            "Mend `predict` in model.py.",
        )
    return Classified(classes, np.array(classes)[probabilities.argmax(axis=1)], probabilities)


def measure(truth: np.ndarray, predictions: Predictions, metrics: Sequence[Metric]) -> dict[str, float]:
    """Return the metrics of predictions; one that is not defined on these rows, or no finite number, is left out.

    Args:
        truth: Labels or numbers, shape (rows,).
        predictions: Of the same rows.
        metrics: Those of the use case.
    """
    numbers: dict[str, float] = {}
    for metric in metrics:
        if metric.compute and not (metric.needs_two_values and len(set(truth.tolist())) < 2):
            value = metric.compute(truth, predictions)
            if math.isfinite(value):
                numbers[metric.name] = value
    return numbers


def calibration(truth: np.ndarray, scores: np.ndarray) -> list[tuple[float, float, int]]:
    """Return (mean prediction, observed rate, rows) of bins of equal count, by rising prediction."""
    import numpy as np

    order = np.argsort(scores, kind="stable")
    bins = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    return [(float(scores[part].mean()), float(truth[part].mean()), len(part)) for part in bins]

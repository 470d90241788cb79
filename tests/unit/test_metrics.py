"""Metrics: what is not defined is left out, what is no number is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
from shopfloor.errors import NotFoundError, ShopfloorError, UsageError
from shopfloor.judging.curves import confusion, curves
from shopfloor.judging.metrics import (
    METRICS,
    Classified,
    measure,
    metric_named,
    of_classes,
    of_requests,
    of_task,
    of_test_set,
    of_use_case,
    predictions_of,
    require_classes,
)
from shopfloor.use_case import GatesSection

from tests.support.cases import use_case

TRUTH, SCORES = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
BINARY, REGRESSION = of_task("binary"), of_task("regression")
PRICES, GUESSES = np.array([100.0, 200.0, 400.0, 300.0]), np.array([110.0, 180.0, 400.0, 310.0])


def test_every_metric_of_the_task_is_a_finite_number():
    numbers = measure(TRUTH, SCORES, BINARY)
    assert list(numbers) == [metric.name for metric in METRICS if "binary" in metric.tasks]
    assert numbers["roc_auc"] == 0.75
    assert numbers["base_rate"] == 0.5
    assert all(np.isfinite(value) for value in numbers.values())


def test_with_one_label_the_metrics_that_need_both_are_left_out():
    numbers = measure(np.zeros(4, dtype=int), SCORES, BINARY)
    assert {"roc_auc", "pr_auc", "brier"}.isdisjoint(numbers)
    assert {"log_loss", "base_rate", "calibration_error"} <= numbers.keys()
    assert [picture.title for picture in curves("binary", np.zeros(4, dtype=int), {"this model": SCORES})] == [
        "Calibration, 10 bins of equal count"
    ]


@pytest.mark.parametrize(
    ("predictions", "why"),
    [
        ([0.1, np.nan, np.inf, 0.2], "The model answers 2 of 4 rows with no finite number"),
        ([0.1, 0.2], r"predictions of shape \(2,\) to 4 rows"),
        (np.ones((4, 3)), r"predictions of shape \(4, 3\) to 4 rows"),
        (["a", "b", "c", "d"], "The model answers what is no number: could not convert string to float: 'a'"),
    ],
)
def test_what_is_no_number_a_row_is_refused_with_what_it_is(predictions, why):
    with pytest.raises(ShopfloorError, match=why):
        predictions_of("binary", predictions, 4)


def test_of_the_probabilities_of_both_labels_that_of_label_1_counts():
    assert predictions_of("binary", np.column_stack([1 - SCORES, SCORES]), 4).tolist() == SCORES.tolist()


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_gates_bound_what_has_a_direction_and_the_headlines_are_among_it(task):
    metrics = of_task(task)
    names = {metric.name for metric in of_test_set(metrics)}
    assert "base_rate" not in names
    assert {metric.name for metric in metrics if metric.headline} <= names
    assert {metric.name for metric in of_requests(metrics)} - names == {
        "agreement",
        "p99_ms",
        "error_rate",
        "cost_per_1000",
    }


def test_the_pictures_hold_a_line_for_the_model_and_one_for_the_champion():
    roc, calibration = curves("binary", TRUTH, {"this model": SCORES, "champion, version 3": 1 - SCORES})
    assert [line.name for line in roc.lines] == ["this model, area 0.7500", "champion, version 3, area 0.2500"]
    assert [line.name for line in calibration.lines] == ["this model", "champion, version 3"]


def test_errors_of_a_regression_are_in_the_unit_of_what_is_predicted():
    numbers = measure(PRICES, GUESSES, REGRESSION)
    assert list(numbers) == [metric.name for metric in METRICS if "regression" in metric.tasks]
    assert (numbers["mae"], numbers["median_ae"]) == (10, 10)
    assert numbers["rmse"] == pytest.approx(np.sqrt(150))
    assert numbers["mape"] == pytest.approx((0.1 + 0.1 + 0 + 1 / 30) / 4)
    assert numbers["r2"] == pytest.approx(1 - 600 / 50_000)


def test_a_metric_of_a_regression_that_is_not_defined_on_these_rows_is_left_out():
    assert "mape" not in measure(np.array([0.0, 1.0]), np.array([0.5, 1.0]), REGRESSION)
    assert "r2" not in measure(np.array([2.0, 2.0]), np.array([0.5, 1.0]), REGRESSION)


def test_two_numbers_a_row_are_no_prediction_of_a_regression_and_a_column_of_numbers_is():
    assert predictions_of("regression", GUESSES.reshape(4, 1), 4).tolist() == GUESSES.tolist()
    with pytest.raises(ShopfloorError, match=r"shape \(4, 2\) to 4 rows"):
        predictions_of("regression", np.column_stack([GUESSES, GUESSES]), 4)


def test_the_pictures_of_a_regression_are_what_was_predicted_and_what_was_left():
    predicted, residuals = curves("regression", PRICES, {"this model": GUESSES, "champion, version 3": PRICES})
    assert predicted.lines[0].points == [(100, 110), (200, 180), (300, 310), (400, 400)]
    assert residuals.lines[0].points == [(110, -10), (180, 20), (310, -10), (400, 0)]
    assert [line.name for line in residuals.lines] == ["this model", "champion, version 3"]
    assert (predicted.reference, residuals.reference) == ("diagonal", "zero")


def test_a_picture_of_many_rows_holds_some_of_them_from_end_to_end():
    truth = np.arange(10_000.0)
    points = curves("regression", truth, {"this model": truth})[0].lines[0].points
    assert len(points) == 200
    assert (points[0], points[-1]) == ((0, 0), (9999, 9999))


def test_a_metric_of_another_task_is_told_from_one_that_there_is_not():
    with pytest.raises(
        UsageError, match=r"'roc_auc', which is a metric of another task \(binary\). Known metrics: mae"
    ):
        metric_named("roc_auc", of_test_set(REGRESSION))


def case(task="binary", **code):
    """A use case whose metrics.py defines this; without anything it has none."""

    def module(name):
        if not code:
            raise NotFoundError("Use case 'toy' has no metrics.py.")
        return SimpleNamespace(**code)

    return SimpleNamespace(name="toy", task=task, code=module, gates=GatesSection())


def test_metrics_of_a_use_case_stand_beside_those_of_its_task():
    def cost(truth, predictions):
        return 5 * np.maximum(truth - predictions, 0).mean()

    metrics = of_use_case(case("regression", METRICS={"cost": "min"}, cost=cost))
    assert measure(PRICES, GUESSES, metrics)["cost"] == 25
    own = metric_named("cost", of_requests(metrics))
    assert (own.higher_is_better, own.title) == (False, "cost")
    assert of_use_case(case("regression")) == REGRESSION


def hits(truth, predictions):
    raise KeyError("threshold")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ({"hits": hits}, "has no METRICS that says `min` or `max` of each"),
        ({"METRICS": {"hits": "up"}, "hits": hits}, "has no METRICS that says `min` or `max` of each"),
        ({"METRICS": {"hits": "max"}}, "METRICS names 'hits', which is no function there"),
        ({"METRICS": {"roc_auc": "max"}, "roc_auc": hits}, "'roc_auc' is a metric of the platform's"),
    ],
)
def test_a_mistake_in_metrics_py_is_one_line_that_names_the_file(code, why):
    with pytest.raises(UsageError, match=f"pipelines/toy/metrics.py.*{why}"):
        of_use_case(case(**code))


def test_a_metric_that_fails_is_named_with_its_mistake_and_one_that_answers_nan_is_left_out():
    with pytest.raises(UsageError, match=r"hits of pipelines/toy/metrics.py fails on 4 rows: KeyError: 'threshold'"):
        measure(TRUTH, SCORES, of_use_case(case(METRICS={"hits": "max"}, hits=hits)))
    undefined = of_use_case(case(METRICS={"hits": "max"}, hits=lambda truth, predictions: float("nan")))
    assert "hits" not in measure(TRUTH, SCORES, undefined)


COLOURS = ("blue", "green", "red")
SEEN = np.array(["red", "green", "blue", "red"])
CHANCES = np.array([[0.1, 0.2, 0.7], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8]])


def classified(answers):
    return predictions_of("multiclass", answers, 4, classes=COLOURS)


def test_probabilities_of_classes_give_every_metric_of_a_multiclass_task_and_classes_alone_those_of_them():
    numbers = measure(SEEN, classified(CHANCES), of_task("multiclass"))
    assert numbers["accuracy"] == 0.75
    assert numbers["balanced_accuracy"] == pytest.approx(2 / 3)
    assert numbers["f1_macro"] == pytest.approx((0 + 1 + 0.8) / 3)
    assert numbers["log_loss"] == pytest.approx(-np.log([0.7, 0.5, 0.3, 0.8]).mean())
    assert numbers["roc_auc_ovr"] == 1
    # The first of two classes that are as probable as one another counts.
    assert numbers["top_2_accuracy"] in (0.75, 1)
    assert numbers.keys().isdisjoint({"top_3_accuracy", "top_5_accuracy", "roc_auc", "mae"})

    labels = measure(SEEN, classified(["red", "green", "red", "red"]), of_task("multiclass"))
    assert labels.keys() == {"accuracy", "balanced_accuracy", "f1_macro", "f1_weighted"}
    assert labels["accuracy"] == numbers["accuracy"]


def test_a_slice_without_one_of_the_classes_has_no_area_and_the_log_loss_of_all():
    part = classified(CHANCES)[np.array([0, 3])]
    numbers = measure(SEEN[[0, 3]], part, of_task("multiclass"))
    assert "roc_auc_ovr" not in numbers
    assert numbers["log_loss"] == pytest.approx(-np.log([0.7, 0.8]).mean())


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (["red", "green", "pink", "red"], "answers 'pink', which is none of the 3 classes of the training set"),
        (CHANCES[:, :2], r"predictions of shape \(4, 2\) to 4 rows of 3 classes"),
        (CHANCES * [1, 1, 2], "4 of 4 rows with probabilities that are negative or do not sum to 1"),
        (np.where(CHANCES == 0.7, np.nan, CHANCES), "1 of 4 rows with probabilities"),
    ],
)
def test_what_is_no_class_and_no_probabilities_of_all_is_refused_with_what_it_is(answers, why):
    with pytest.raises(ShopfloorError, match=why):
        classified(answers)


def test_the_pictures_of_classes_are_who_was_taken_for_whom_and_a_calibration_of_each():
    matrix = confusion(SEEN, classified(CHANCES))
    assert matrix.classes == list(COLOURS)
    assert matrix.counts == [[0, 0, 1], [0, 1, 0], [0, 0, 2]]
    pictures = curves("multiclass", SEEN, {"this model": classified(CHANCES)})
    assert pictures[0].title.startswith("Calibration of class red (2 rows)")
    assert len(pictures) == 3
    assert curves("multiclass", SEEN, {"this model": classified(SEEN)}) == []


def test_a_metric_of_a_use_case_gets_the_classes_that_rows_are_taken_for():
    def missed_blue(truth, prediction):
        return ((truth == "blue") & (prediction != "blue")).sum()

    metrics = of_use_case(case("multiclass", METRICS={"missed_blue": "min"}, missed_blue=missed_blue))
    assert measure(SEEN, classified(CHANCES), metrics)["missed_blue"] == 1


WINES = Classified(("barbera", "barolo"), np.array(["barolo", "barolo", "barbera", "barolo"]), None)


def gated(task, *names):
    return of_use_case(use_case(task=task, gates={"metrics": {name: {"max": 1} for name in names}}))


def test_a_gate_may_name_a_single_class_or_a_quantile():
    truth = np.array(["barolo", "barbera", "barbera", "barolo"])
    numbers = measure(truth, WINES, gated("multiclass", "f1:barolo"))
    assert numbers["f1:barolo"] == pytest.approx(0.8)
    assert [metric.name for metric in of_classes(["barbera", "a(b)"])] == ["f1:barbera", "f1:a_b_"]
    assert measure(np.array(["barolo"] * 4), WINES[[0, 1, 3, 0]], of_classes(["barbera", "barolo"])) == {"f1:barolo": 1}

    numbers = measure(PRICES, GUESSES, gated("regression", "coverage:0.5", "pinball:.9"))
    assert numbers["coverage:0.5"] == pytest.approx(0.25)  # three of four are at most the guess
    assert numbers["pinball:.9"] == pytest.approx((0.1 * 10 + 0.9 * 20 + 0.1 * 10) / 4)


@pytest.mark.parametrize(
    ("task", "name"),
    [("binary", "f1:1"), ("multiclass", "coverage:0.5"), ("regression", "coverage:5"), ("regression", "f1:a")],
)
def test_a_name_that_is_none_of_the_task_is_no_metric(task, name):
    with pytest.raises(UsageError, match=f"A gate bounds '{name}', which is no metric"):
        metric_named(name, gated(task, name))


def test_a_class_that_there_is_not_is_named_with_those_that_there_are():
    with pytest.raises(UsageError, match="'f1:barola', and the training set has no class 'barola'. It has barolo"):
        require_classes(gated("multiclass", "f1:barola"), ["barolo", "barbera"])


def test_a_custom_task_takes_any_answer_a_row():
    answers = predictions_of("custom", [{"a": 1}, [1, 2], "x"], 3)
    assert list(answers) == [{"a": 1}, [1, 2], "x"]
    with pytest.raises(ShopfloorError, match="The model answers 2 of 3 rows"):
        predictions_of("custom", ["a", "b"], 3)
    assert curves("custom", answers, {"this model": answers}) == []

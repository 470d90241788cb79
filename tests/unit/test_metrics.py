"""Metrics: what is not defined is left out, what is no number is refused."""

import numpy as np
import pytest
from shopfloor.errors import ShopfloorError
from shopfloor.judging.metrics import METRICS, curves, headlines, measure, of_requests, of_test_set, scores_of

TRUTH, SCORES = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])


def test_every_metric_of_the_task_is_a_finite_number():
    numbers = measure(TRUTH, SCORES)
    assert list(numbers) == [metric.name for metric in METRICS if "binary" in metric.tasks]
    assert numbers["roc_auc"] == 0.75
    assert numbers["base_rate"] == 0.5
    assert all(np.isfinite(value) for value in numbers.values())


def test_with_one_label_the_metrics_that_need_both_are_left_out():
    numbers = measure(np.zeros(4, dtype=int), SCORES)
    assert {"roc_auc", "pr_auc", "brier"}.isdisjoint(numbers)
    assert {"log_loss", "base_rate", "calibration_error"} <= numbers.keys()
    assert [picture.title for picture in curves(np.zeros(4, dtype=int), {"this model": SCORES})] == [
        "Calibration, 10 bins of equal count"
    ]


@pytest.mark.parametrize(
    ("predictions", "why"),
    [
        ([0.1, np.nan, np.inf, 0.2], "The model answers 2 of 4 rows with no finite number"),
        ([0.1, 0.2], r"predictions of shape \(2,\) to 4 rows"),
        (np.ones((4, 3)), r"predictions of shape \(4, 3\) to 4 rows"),
    ],
)
def test_what_is_no_number_a_row_is_refused_with_what_it_is(predictions, why):
    with pytest.raises(ShopfloorError, match=why):
        scores_of(predictions, 4)


def test_of_the_probabilities_of_both_labels_that_of_label_1_counts():
    assert scores_of(np.column_stack([1 - SCORES, SCORES]), 4).tolist() == SCORES.tolist()


def test_gates_bound_what_has_a_direction_and_the_headlines_are_among_it():
    names = {metric.name for metric in of_test_set("binary")}
    assert "base_rate" not in names
    assert set(headlines("binary")) <= names
    assert {metric.name for metric in of_requests("binary")} - names == {
        "agreement",
        "p99_ms",
        "error_rate",
        "cost_per_1000",
    }


def test_the_pictures_hold_a_line_for_the_model_and_one_for_the_champion():
    roc, calibration = curves(TRUTH, {"this model": SCORES, "champion, version 3": 1 - SCORES})
    assert [line.name for line in roc.lines] == ["this model, area 0.7500", "champion, version 3, area 0.2500"]
    assert [line.name for line in calibration.lines] == ["this model", "champion, version 3"]

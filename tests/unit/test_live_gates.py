"""What a version did for real requests, and the gates' verdicts on it."""

import json

import pandas as pd
import pytest
from shopfloor.errors import UsageError
from shopfloor.judging.gates import judge_live
from shopfloor.judging.live import live_numbers
from shopfloor.judging.metrics import of_task
from shopfloor.records import LiveNumbers
from shopfloor.use_case import LiveGates


def answer(
    request_id, version, role="live", prediction=0.5, status=200, failed=False, latency_ms=2.0, route="/predict"
):
    return {
        "request_id": str(request_id),
        "version": version,
        "role": role,
        "route": route,
        "status": status,
        "failed": failed,
        "latency_ms": latency_ms,
        "output": json.dumps({"prediction": prediction}) if status < 400 else '{"message": "no"}',
    }


def log(*answers):
    return pd.DataFrame(answers)


def feedback(**outcomes):
    rows = [{"request_id": key.removeprefix("r"), "outcome": json.dumps(value)} for key, value in outcomes.items()]
    return pd.DataFrame(rows, columns=["request_id", "outcome"])


def numbers(predictions, outcomes=None, version="2", tolerance=0.1, cost_per_hour=None, task="binary"):
    feedback_rows = feedback() if outcomes is None else outcomes
    return live_numbers(predictions, feedback_rows, version, "1", tolerance, cost_per_hour, task, of_task(task))


def test_errors_are_the_versions_own_not_the_clients():
    values = numbers(
        log(
            answer(1, "2", "canary"),
            answer(2, "2", "canary", status=422),
            answer(3, "2", "canary", status=500, failed=True),
            answer(4, "2", "canary", status=422, failed=True),
            answer(5, "1", status=500, failed=True),
        )
    )
    assert values.metrics["error_rate"] == pytest.approx(2 / 3)
    assert (values.requests, values.counts["error_rate"]) == (4, 3)


def test_latency_is_that_of_answers_that_somebody_got():
    shadows = [answer(i, "2", "shadow", latency_ms=500) for i in range(50)]
    values = numbers(log(*shadows, *(answer(100 + i, "2", "canary", latency_ms=i + 1) for i in range(100))))
    assert values.metrics["p99_ms"] == pytest.approx(99.01)
    assert values.counts["p99_ms"] == 100


def test_who_asks_for_a_version_by_name_decides_nothing_about_it():
    direct = [answer(i, "2", "asked", status=500, failed=True, latency_ms=900) for i in range(200)]
    values = numbers(log(*direct, answer(1000, "2", "canary")), feedback(r1=True, r2=False))
    assert values.metrics == {"error_rate": 0, "p99_ms": 2.0}
    assert (values.requests, values.counts["error_rate"], values.counts["p99_ms"]) == (1, 1, 1)


def test_latency_is_that_of_one_row_not_of_ten_thousand():
    many = [answer(i, "2", "canary", latency_ms=4000, route="/invocations") for i in range(100)]
    values = numbers(log(*many, *(answer(100 + i, "2", "canary", latency_ms=3) for i in range(10))))
    assert (values.metrics["p99_ms"], values.counts["p99_ms"]) == (3, 10)
    assert values.counts["error_rate"] == 110


def test_agreement_compares_the_answers_to_the_same_request():
    values = numbers(
        log(
            answer(1, "1", prediction=0.5),
            answer(1, "2", "shadow", prediction=0.55),
            answer(2, "1", prediction=0.5),
            answer(2, "2", "shadow", prediction=0.9),
            answer(3, "2", "shadow", prediction=0.5),
            answer("twice", "1"),
            answer("twice", "1"),
            answer("twice", "2", "shadow"),
        )
    )
    assert (values.metrics["agreement"], values.counts["agreement"]) == (0.5, 2)


def test_feedback_gives_the_metrics_of_the_evaluation():
    outcomes = feedback(r1=True, r2=False, r3=True, r4=0, r9=True)
    predictions = log(*(answer(i, "2", "canary", prediction=p) for i, p in ((1, 0.9), (2, 0.2), (3, 0.4), (4, 0.6))))
    values = numbers(predictions, outcomes)
    assert values.metrics["roc_auc"] == 0.75
    assert values.counts["roc_auc"] == 4


def test_feedback_of_a_regression_is_a_number_and_what_is_none_says_nothing():
    outcomes = feedback(r1=10, r2=22.5, r3="much", r4=True, r5=1e400)
    predictions = log(
        *(answer(i, "2", "canary", prediction=p) for i, p in ((1, 12), (2, 22.5), (3, 1), (4, 1), (5, 1)))
    )
    values = numbers(predictions, outcomes, task="regression")
    assert (values.metrics["mae"], values.counts["mae"]) == (1, 2)
    assert "roc_auc" not in values.metrics


def chances(most, **probabilities):
    return {"class": most, "probabilities": probabilities}


def test_feedback_of_a_multiclass_task_is_a_class_and_another_one_says_nothing():
    outcomes = feedback(r1="a", r2="b", r3="a", r4="z", r5=1)
    given = [chances("a", a=0.9, b=0.1), chances("b", a=0.2, b=0.8), chances("b", a=0.4, b=0.6)]
    predictions = log(*(answer(i, "2", "canary", prediction=p) for i, p in enumerate([*given, given[0], given[0]], 1)))
    values = numbers(predictions, outcomes, task="multiclass")
    assert (values.metrics["accuracy"], values.counts["accuracy"]) == (pytest.approx(2 / 3), 3)
    assert {"log_loss", "roc_auc_ovr"} <= values.metrics.keys()


def test_feedback_to_classes_without_probabilities_gives_the_metrics_of_classes():
    predictions = log(*(answer(i, "2", "canary", prediction=p) for i, p in ((1, 7), (2, 3), (3, 3))))
    values = numbers(predictions, feedback(r1=7, r2=7, r3=3), task="multiclass")
    assert values.metrics["accuracy"] == pytest.approx(2 / 3)
    assert "log_loss" not in values.metrics


def test_versions_agree_on_a_class_whatever_its_probability():
    values = numbers(
        log(
            answer(1, "1", prediction=chances("a", a=0.9, b=0.1)),
            answer(1, "2", "shadow", prediction=chances("a", a=0.6, b=0.4)),
            answer(2, "1", prediction=chances("a", a=0.9, b=0.1)),
            answer(2, "2", "shadow", prediction=chances("b", a=0.4, b=0.6)),
        )
    )
    assert (values.metrics["agreement"], values.counts["agreement"]) == (0.5, 2)


def test_cost_is_that_of_the_time_spent():
    values = numbers(log(answer(1, "2", "canary", latency_ms=3.6)), cost_per_hour=1000)
    assert values.metrics["cost_per_1000"] == pytest.approx(1.0)


def test_nothing_is_known_of_a_version_that_answered_nothing():
    values = numbers(log(answer(1, "1")))
    assert (values.requests, values.metrics) == (0, {})


GATES = LiveGates.model_validate(
    {
        "metrics": {"p99_ms": {"max": 10}, "error_rate": {"max": 0.01}, "agreement": {"min": 0.9}},
        "champion": {"p99_ms": {"max_loss": 5}},
        "min_requests": 100,
    }
)


def measured(version="2", count=100, **metrics):
    return LiveNumbers(
        version=version, requests=count, shadows=count, metrics=metrics, counts=dict.fromkeys(metrics, count)
    )


def test_met_missed_and_undecided_are_three_verdicts():
    good = measured(p99_ms=4, error_rate=0, agreement=0.95)
    assert [g.passed for g in judge_live(GATES, of_task("binary"), good, measured("1", p99_ms=3))] == [True] * 4
    slow = measured(p99_ms=12, error_rate=0, agreement=0.95)
    p99, *_, against = judge_live(GATES, of_task("binary"), slow, measured("1", p99_ms=3))
    assert (p99.passed, p99.missed_by, against.passed) == (False, 2, False)
    few = judge_live(GATES, of_task("binary"), measured(count=99, p99_ms=4, error_rate=0), measured("1", p99_ms=3))
    assert all(result.undecided and not result.passed for result in few)
    assert few[0].note == "not enough data: version 2 has 99 of 100 answers"


def test_the_champion_is_judged_by_the_bounds_that_concern_it_alone():
    gates = [
        result.gate for result in judge_live(GATES, of_task("binary"), measured("1", p99_ms=4, error_rate=0), None)
    ]
    assert gates == ["p99_ms", "error_rate"]


def test_an_unknown_metric_is_one_line():
    with pytest.raises(UsageError, match="'speed', which is no metric. Known metrics: agreement"):
        judge_live(LiveGates.model_validate({"metrics": {"speed": {"min": 1}}}), of_task("binary"), measured(), None)

"""The report tells what there is, escapes everything, and needs nothing from outside."""

import datetime as dt
import re

from shopfloor.records import Curve, Evaluation, GateResult, Line, Scored, Search, SliceResult, StepRecord, Trial
from shopfloor.report.page import RunReport, render

HOSTILE = "<script>alert('x')</script>&\"'$\\frac"


def run(**parts):
    return RunReport(
        run_id="r1",
        pipeline="training",
        use_case="flight_delays",
        engine="local",
        started=dt.datetime(2026, 11, 20, tzinfo=dt.UTC),
        seconds=12.5,
        **(
            {
                "parameters": {"trials": "2"},
                "state": "succeeded",
                "outcome": "Version 1 is the champion.",
                "steps": [],
                "edges": [],
            }
            | parts
        ),
    )


def evaluation(**parts):
    return Evaluation(
        **(
            {
                "rows": 100,
                "metrics": {"roc_auc": 0.7, "log_loss": 0.4},
                "champion": None,
                "champion_metrics": {},
                "slices": [SliceResult(column="origin", value=HOSTILE, rows=10, metrics={"roc_auc": 0.6})],
                "gates": [GateResult(gate="roc_auc", bound=">= 0.9", value=0.7, passed=False, missed_by=0.2)],
                "passed": False,
                "headlines": ["roc_auc"],
                "curves": [
                    Curve(title="ROC curve", x="x", y="y", lines=[Line(name=HOSTILE, points=[(0, 0), (1, 1)])]),
                    Curve(title="Calibration", x="x", y="y", lines=[Line(name="a", points=[(0.2, 0.3)])], marks=True),
                ],
                "importance": {HOSTILE: 0.7, "b": 0.3},
            }
            | parts
        )
    )


def test_a_run_that_failed_at_its_second_step_says_where_and_why():
    steps = [
        StepRecord(name="pull-data", state="succeeded", seconds=1),
        StepRecord(name="validate-data", state="failed", seconds=2, error="flights.distance: expected to exist"),
        StepRecord(name="tune", state="skipped"),
    ]
    page = render(
        run(state="failed", outcome="Step validate-data failed", steps=steps, edges=[("pull-data", "validate-data")])
    )
    assert "flights.distance: expected to exist" in page
    assert "Step validate-data failed" in page


def test_everything_from_the_data_is_escaped():
    page = render(
        run(
            outcome=HOSTILE,
            steps=[StepRecord(name=HOSTILE, state="failed", error=HOSTILE)],
            parameters={HOSTILE: HOSTILE},
            evaluation=evaluation(),
        )
    )
    assert "<script" not in page
    assert "alert(" in page


def test_everything_from_a_search_is_escaped():
    trial = Trial(trial_id="t", params={HOSTILE: HOSTILE}, metrics={"m": 1}, rounds=1, seconds=1, status="finished")
    page = render(run(search=Search(metric="m", mode="min", best_trial_id="t", trials=[trial])))
    assert "<script" not in page
    assert "alert(" in page


def test_the_page_needs_nothing_from_outside_and_is_small():
    page = render(run(evaluation=evaluation(), links={"run": "http://127.0.0.1:5000/#/r"}))
    outside = re.findall(r'(?:src|href)="(?!#)([^"]*)"', page)
    assert outside == ["http://127.0.0.1:5000/#/r"]
    assert len(page) < 400_000


def test_a_missed_gate_shows_bound_value_and_distance():
    page = render(run(state="gate_missed", outcome="Gate missed", evaluation=evaluation()))
    assert re.search(
        r"&gt;= 0\.9</td><td class=\"n\">0\.7</td>\s*<td class=\"bad\">missed</td>\s*<td class=\"n\">0\.2", page
    )


def test_trials_stand_from_the_best_to_the_worst_and_those_that_failed_last():
    scores = {"a": 0.6, "b": None, "c": 0.8, "d": 0.7}
    trials = [
        Trial(
            trial_id=name,
            params={},
            metrics={} if score is None else {"m": score},
            rounds=1,
            seconds=1,
            status="stopped",
        )
        for name, score in scores.items()
    ]
    for mode, order in (("max", ["c", "d", "a", "b"]), ("min", ["a", "d", "c", "b"])):
        page = render(run(search=Search(metric="m", mode=mode, best_trial_id=order[0], trials=trials)))
        assert re.findall(r'<td class="mono">([abcd])\b', page) == order


def test_the_outcome_is_said_once():
    page = render(run(state="gate_missed", outcome="Gate missed: roc_auc must be >= 0.9."))
    assert page.count("Gate missed") == 1
    assert "gate missed</td>" in page


def test_a_batch_run_shows_its_rows_and_where_the_predictions_are():
    scored = Scored(use_case="flights", version="4", rows=1_234_567, data=HOSTILE, predictions="s3://lake/out")
    page = render(run(scored=scored))
    assert "1,234,567" in page
    assert "s3://lake/out" in page
    assert "<script" not in page

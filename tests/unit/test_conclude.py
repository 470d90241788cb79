"""The end of a run is the same sentence on every engine."""

from shopfloor.records import Evaluation, GateResult, Passport, Scored, StepRecord
from shopfloor.runs.conclude import ending

GOOD = StepRecord(name="tune", state="succeeded")
BAD = StepRecord(name="show.1", state="failed", error="no luck")


def evaluation(passed):
    return Evaluation.model_construct(
        passed=passed, gates=[GateResult(gate="roc_auc", bound=">= 0.9", value=0.8, passed=passed, missed_by=0.1)]
    )


def test_a_failed_step_is_named_even_where_the_engine_calls_the_run_succeeded():
    assert ending([GOOD, BAD], {}, None, None) == ("failed", "Step show.1 failed: no luck")
    assert ending([BAD, BAD], {}, "3", "why")[1] == "Step show.1 failed: no luck (1 more failed.)"


def test_a_failure_outside_of_steps_is_told_by_the_engine():
    assert ending([GOOD], {}, None, "The argo run failed: no node fits") == (
        "failed",
        "The argo run failed: no node fits",
    )


def test_a_missed_gate_is_an_end_of_its_own():
    state, message = ending([GOOD], {"evaluation": evaluation(False)}, None, None)

    assert state == "gate_missed"
    assert message.count("Gate missed") == 1
    assert "roc_auc must be >= 0.9, is 0.8000 (missed by 0.1000)" in message


def test_a_run_that_made_a_champion_says_which():
    assert ending([GOOD], {"evaluation": evaluation(True)}, "7", None) == ("succeeded", "Version 7 is the champion.")
    assert ending([GOOD], {}, None, None) == ("succeeded", "Every step succeeded.")


def test_a_run_that_promotes_nothing_names_its_challenger_and_how_to_go_on():
    passport = Passport.model_construct(model="flights", version="4")

    state, message = ending([GOOD], {"evaluation": evaluation(True), "passport": passport}, None, None)

    assert state == "succeeded"
    assert message.startswith("Version 4 of flights is the challenger")
    assert "`shopfloor models promote flights/4`" in message
    assert "`shopfloor rollout run flights/4`" in message


def test_a_run_that_scored_a_data_set_says_how_many_rows_and_where_they_are():
    scored = Scored(use_case="flights", version="4", rows=1_234_567, data="s3://lake/in", predictions="s3://lake/out")

    state, message = ending([GOOD], {"scored": scored}, None, None)

    assert (state, message) == ("succeeded", "1,234,567 rows are scored with version 4 of flights: s3://lake/out")

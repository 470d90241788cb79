"""Gates: direction, equality at the bound, the worst slice, the champion."""

from pathlib import Path

import pytest
from shopfloor.errors import UsageError
from shopfloor.judging.gates import judge, require_known
from shopfloor.judging.metrics import of_task
from shopfloor.judging.signature import Input, judge_signature
from shopfloor.records import SliceResult
from shopfloor.settings import Settings
from shopfloor.use_case import GatesSection, load_use_case

GOOD = (Path(__file__).resolve().parents[2] / "pipelines/flight_delays/use_case.yaml").read_text()


def verdicts(gates, metrics, slices=(), champion=None, champion_metrics=None, task="binary"):
    section = GatesSection.model_validate(gates)
    return judge(section, of_task(task), metrics, slices, champion, champion_metrics or {})


@pytest.mark.parametrize(("value", "passed"), [(0.7, True), (0.71, True), (0.69, False), (float("nan"), False)])
def test_a_lowest_value_is_met_at_the_bound(value, passed):
    (result,) = verdicts({"metrics": {"roc_auc": {"min": 0.7}}}, {"roc_auc": value})
    assert result.passed is passed


def test_a_missed_bound_says_by_how_much():
    (result,) = verdicts({"metrics": {"log_loss": {"max": 0.4}}}, {"log_loss": 0.45})
    assert not result.passed
    assert result.missed_by == pytest.approx(0.05)


def test_the_worst_slice_with_enough_rows_stands_for_all():
    slices = [
        SliceResult(column="origin", value="JFK", rows=900, metrics={"roc_auc": 0.58}),
        SliceResult(column="origin", value="EWR", rows=900, metrics={"roc_auc": 0.65}),
        SliceResult(column="origin", value="LGA", rows=10, metrics={"roc_auc": 0.2}),
    ]
    (result,) = verdicts({"slices": {"roc_auc": {"min": 0.6, "min_rows": 500}}}, {}, slices)
    assert result.gate == "roc_auc[origin=JFK]"
    assert result.missed_by == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("metric", "mine", "theirs", "passed"),
    [
        ("roc_auc", 0.696, 0.70, True),
        ("roc_auc", 0.694, 0.70, False),
        ("roc_auc", 0.9, 0.70, True),
        ("log_loss", 0.404, 0.40, True),
        ("log_loss", 0.406, 0.40, False),
        ("log_loss", 0.1, 0.40, True),
    ],
)
def test_the_champion_may_be_lost_to_by_so_much_in_the_direction_of_the_metric(metric, mine, theirs, passed):
    (result,) = verdicts({"champion": {metric: {"max_loss": 0.005}}}, {metric: mine}, (), "3", {"3": {metric: theirs}})
    assert result.passed is passed


def test_without_a_champion_its_gates_are_met_and_with_one_that_cannot_be_scored_they_are_not():
    gates = {"champion": {"roc_auc": {"max_loss": 0.005}}}
    assert verdicts(gates, {"roc_auc": 0.7})[0].passed
    assert not verdicts(gates, {"roc_auc": 0.7}, (), "3", {})[0].passed


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'auc', which is no metric. Known metrics: .*roc_auc"):
        verdicts({"metrics": {"auc": {"min": 0.7}}}, {})


@pytest.mark.parametrize(("mine", "passed"), [(10.4, True), (10.6, False), (2, True)])
def test_errors_of_a_regression_are_bounded_from_above_and_a_champion_is_lost_to_by_more(mine, passed):
    gates = {"metrics": {"mae": {"max": 10.5}}, "champion": {"mae": {"max_loss": 0.5}}}
    results = verdicts(gates, {"mae": mine}, (), "3", {"3": {"mae": 10}}, task="regression")
    assert [result.passed for result in results] == [passed, passed]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "log_loss: {max: 0.45}",
            "mae: {max: 3}",
            r"use_case.yaml:46: gates.metrics.mae: .*another task \(regression\)",
        ),
        (
            "log_loss: {max: 0.45}",
            "auc: {min: 1}",
            r"use_case.yaml:46: gates.metrics.auc: .*no metric. Known.* roc_auc",
        ),
        (
            "    roc_auc: {min: 0.60, min_rows: 500}",
            "    p99_ms: {max: 1}",
            "use_case.yaml:49: gates.slices.p99_ms: .*which real requests alone show",
        ),
        ("    log_loss: {max_loss: 0.005}", "    r2: {max_loss: 0.1}", "use_case.yaml:52: gates.champion.r2: "),
        ("p99_ms: {max: 50}", "p98_ms: {max: 50}", "use_case.yaml:58: gates.live.metrics.p98_ms: "),
        ("name: flight_delays", "name: flight_delays\ntask: regression", "use_case.yaml:46: gates.metrics.roc_auc: "),
    ],
)
def test_a_metric_that_does_not_fit_is_one_line_with_file_line_and_key(tmp_path, old, new, why):
    folder = tmp_path / "pipelines" / "flight_delays"
    folder.mkdir(parents=True)
    assert old in GOOD
    (folder / "use_case.yaml").write_text(GOOD.replace(old, new))
    settings = Settings(project_root=tmp_path)
    with pytest.raises(UsageError, match=why):
        require_known(settings, load_use_case(settings, "flight_delays"))


def test_a_loss_is_measured_against_the_best_of_the_champions_so_that_quality_does_not_sink_run_by_run():
    gates = {"champion": {"roc_auc": {"max_loss": 0.005}}}
    theirs = {"3": {"roc_auc": 0.694}, "2": {"roc_auc": 0.697}, "1": {"roc_auc": 0.70}}
    (result,) = verdicts(gates, {"roc_auc": 0.691}, (), "3", theirs)
    assert not result.passed
    assert result.note == "version 1, a champion before version 3, has 0.7000"
    (result,) = verdicts(gates, {"roc_auc": 0.696}, (), "3", theirs)
    assert result.passed


COLUMNS = {"a": Input("double", True), "b": Input("long", True), "c": Input("double", False)}


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        (COLUMNS, ""),
        (COLUMNS | {"d": Input("double", False)}, ""),
        (COLUMNS | {"b": Input("double", False)}, ""),
        (COLUMNS | {"d": Input("double", True)}, "'d' is new and required"),
        (COLUMNS | {"a": Input("long", True)}, "'a' was double and is long"),
        (COLUMNS | {"c": Input("double", True)}, "'c' may no longer be missing"),
        ({"a": COLUMNS["a"], "b": COLUMNS["b"]}, "'c' is no input any more"),
    ],
)
def test_a_version_that_refuses_what_the_champion_takes_misses_the_gate_of_the_signature(inputs, why):
    result = judge_signature(GatesSection(), inputs, "3", COLUMNS)
    assert result.passed is (why == "")
    assert why in result.note
    assert judge_signature(GatesSection(signature="any"), inputs, "3", COLUMNS).passed


def test_a_champion_without_a_signature_binds_nobody():
    assert judge_signature(GatesSection(), COLUMNS, "3", None).passed

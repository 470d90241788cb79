"""How far columns have gone from where they were: numbers, few values, texts, and what is missing."""

import random

import pytest
from pydantic import ValidationError
from shopfloor.judging import gates
from shopfloor.judging.live import drift
from shopfloor.judging.offline import spread_of
from shopfloor.records import Spread
from shopfloor.serving.monitoring import rows_of
from shopfloor.use_case import DriftBound


def normal(mean, count, seed):
    source = random.Random(seed)
    return [source.gauss(mean, 1) for _ in range(count)]


NUMBERS = normal(0, 2000, 1)


def test_numbers_lie_in_bins_of_equal_count_and_are_not_far_from_themselves():
    spread = spread_of(NUMBERS, True)

    assert len(spread.edges) == 11
    assert sum(spread.shares) == pytest.approx(1)
    assert spread.shares[1:11] == pytest.approx([0.1] * 10, abs=0.001)
    assert len(spread.labels()) == len(spread.shares)
    assert drift("a", spread, NUMBERS).distance == 0


@pytest.mark.parametrize(
    ("live", "low", "high"),
    [
        (normal(0, 1000, 2), 0, 0.1),
        (normal(0.5, 1000, 2), 0.15, 0.3),
        ([number + 100 for number in NUMBERS], 0.99, 1),
        ([None] * 50, 1, 1),
        (NUMBERS[:50] + [None] * 50, 0.4, 0.7),
        (["text", {"an": "object"}], 1, 1),
    ],
)
def test_the_distance_grows_with_the_shift_up_to_one(live, low, high):
    assert low <= drift("a", spread_of(NUMBERS, True), live).distance <= high


def test_each_of_a_few_numbers_has_a_bin_and_another_number_none_of_theirs():
    spread = spread_of([1, 1, 1, 3], True)

    assert spread.shares_of([1, 3]) == [0, 0.5, 0.5, 0, 0]
    assert drift("a", spread, [2.5]).distance < 1  # nearest to 3
    assert drift("a", spread, [9]).distance == 1
    constant = spread_of([7, 7], True)
    assert drift("a", constant, [7, 7.0]).distance == 0
    assert drift("a", constant, [8]).distance == drift("a", constant, [6]).distance == 1


def test_true_false_and_texts_have_bins_and_a_text_that_is_new_is_among_the_others():
    spread = spread_of([True, True, False, None], False)

    assert (spread.values, spread.shares) == (["True", "False"], [0.5, 0.25, 0, 0.25])
    assert spread.shares_of([True, "new"]) == [0.5, 0, 0.5, 0]
    assert drift("a", spread, [True, True, False, None]).distance == 0


def test_hardly_two_equal_texts_and_no_value_at_all_have_no_spread():
    assert spread_of([f"name {number}" for number in range(100)], False) is None
    assert spread_of([None, float("nan")], True) is None


@pytest.mark.parametrize("edges", [[2, 1], [1]])
def test_a_spread_without_a_share_for_each_bin_is_none(edges):
    with pytest.raises(ValidationError, match="a share for each bin"):
        Spread(edges=edges, shares=[1, 0, 0, 0])


@pytest.mark.parametrize(
    ("route", "inputs", "features", "output", "rows", "predictions"),
    [
        ("/predict", '{"a": 1}', None, '{"prediction": 0.5}', [{"a": 1}], [0.5]),
        ("/predict", '{"id": 1}', '{"a": 2}', '{"prediction": {"class": "x"}}', [{"a": 2}], ["x"]),
        ("/invocations", '{"instances": [{"a": 1}]}', None, '{"predictions": [1]}', [{"a": 1}], [1]),
        ("/invocations", '{"inputs": {"a": [1, 2]}}', None, '{"predictions": [1, 2]}', [{"a": 1}, {"a": 2}], [1, 2]),
        ("/invocations", "a,b\n1,2\n", None, '{"predictions": [1]}', [], []),
        ("/invocations", '{"inputs": [[1, 2]]}', None, '{"predictions": [1]}', [], []),
        ("/predict", None, None, None, [], []),
        (
            "/v2/infer",
            '{"inputs": [{"name": "a", "data": [1]}]}',
            None,
            '{"outputs": [{"name": "class", "data": ["x"]}, {"name": "probabilities", "data": [1, 0]}]}',
            [{"a": 1}],
            ["x"],
        ),
    ],
)
def test_rows_and_predictions_are_read_from_the_log_of_each_protocol(
    route, inputs, features, output, rows, predictions
):
    assert rows_of(route, inputs, features, output) == (rows, predictions)


@pytest.mark.parametrize(
    ("rows", "distance_of", "test_rows", "passed", "undecided"),
    [
        (200, [1], 200, True, False),
        (200, [2], 200, False, False),
        (199, [2], 200, False, True),
        (200, [2], 199, False, True),
        (0, None, 200, False, True),
    ],
)
def test_the_furthest_column_is_judged_where_there_are_enough_rows(rows, distance_of, test_rows, passed, undecided):
    spreads = {"a": spread_of([1, 2], True), "b": spread_of([1], True)}
    columns = [drift(name, spread, distance_of * rows) for name, spread in spreads.items()] if distance_of else []

    result = gates.judge_drift(DriftBound(max=0.6, min_rows=200), columns, test_rows, "nobody asked")

    assert (result.passed, result.undecided) == (passed, undecided)
    assert result.gate == ("drift" if not columns else f"drift[{'b' if distance_of == [2] else 'a'}]")
    assert bool(result.note) is undecided

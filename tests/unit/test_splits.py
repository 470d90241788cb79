"""Rows are split as use_case.yaml says, the same by the same seed, and what cannot be split is told in one line."""

import pandas as pd
import pytest
from pydantic import ValidationError
from shopfloor.data.splits import split
from shopfloor.errors import DataError, UsageError
from shopfloor.use_case import FeaturesSection

from tests.support.cases import use_case

ROWS = pd.DataFrame({"x": range(200), "shop": [n // 4 for n in range(200)], "y": [n % 10 == 0 for n in range(200)]})


def parts(how, rows=ROWS, task="binary"):
    return split(rows, use_case(task=task, features={"source": "rows", "target": "y", "split": how}))


def test_random_parts_are_the_same_by_the_same_seed_and_stratified():
    first, again, other = (parts({"by": "random", "seed": seed}) for seed in (1, 1, 2))
    assert {name: len(part) for name, part in first.items()} == {"train": 120, "validate": 40, "test": 40}
    assert {name: int(part.y.sum()) for name, part in first.items()} == {"train": 12, "validate": 4, "test": 4}
    assert all(list(part.x) == sorted(part.x) == list(again[name].x) for name, part in first.items())
    assert list(first["test"].x) != list(other["test"].x)
    assert sorted(x for part in first.values() for x in part.x) == list(range(200))


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_group_is_in_one_part_only(task):
    divided = parts({"by": "group", "column": "shop", "test": 0.25}, task=task)
    shops = [set(part.shop) for part in divided.values()]
    assert sum(map(len, shops)) == 50
    assert 30 <= len(divided["test"]) <= 70


def test_a_column_says_the_split_of_each_row():
    told = ROWS.assign(part=["train", "validate", "test", "train", "monitor"] * 40, y=ROWS.x % 3 == 0)
    divided = parts({"by": "column", "column": "part"}, told)
    assert {name: len(part) for name, part in divided.items()} == {
        "train": 80, "validate": 40, "test": 40, "monitor": 40,
    }  # fmt: skip
    assert "monitor" not in parts({"by": "column", "column": "part"}, told[told.part != "monitor"])


@pytest.mark.parametrize(
    ("rows", "how", "error", "why"),
    [
        (ROWS.head(12), {"by": "random"}, DataError, "class True of 'y' has 2 row.s.: of each class at least 3"),
        (ROWS.assign(y=ROWS.x == 5), {"by": "random"}, DataError, "class True of 'y' has 1 row"),
        (ROWS.assign(y=True), {"by": "random"}, DataError, "All 120 rows of the split 'train' have the same 'y'"),
        (ROWS.head(3).assign(y=[0, 1, 0]), {"by": "group", "column": "shop"}, DataError, "3 rows cannot be split at"),
        (ROWS, {"by": "group", "column": "town"}, UsageError, "features.split.column names 'town'; the rows have x"),
        (
            ROWS.assign(shop=[None, *range(199)]),
            {"by": "group", "column": "shop"},
            DataError,
            "'shop', by which rows are split, is missing in 1 of 200 rows",
        ),
        (ROWS.assign(p="tests"), {"by": "column", "column": "p"}, DataError, "'p' says 'tests' in a row: it is one of"),
        (ROWS.assign(p="train"), {"by": "column", "column": "p"}, DataError, "'p' says 'validate' in no row"),
    ],
)
def test_what_cannot_be_split_is_told(rows, how, error, why):
    with pytest.raises(error, match=why) as raised:
        parts(how, rows)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"split": {"by": "chance"}}, "by must be random, group or column"),
        ({"split": {"by": "random", "test": 0.7, "validate": 0.3}}, "none are left to train on"),
        ({"split": {"by": "random"}, "service": "s"}, "give either service, of Feast, or source"),
        ({"split": {"train": ["2013-01-01", "2013-02-01"], "validate": ["2013-02-01", "2013-03-01"],
                    "test": ["2013-03-01", "2013-04-01"]}}, "a split by time needs time"),
        ({"split": {"by": "random"}, "inputs": ["a"], "leave_out": ["b"]}, "give either inputs or leave_out"),
        ({"split": {"by": "random"}, "inputs": ["y"]}, "'y' is the target, and no input"),
    ],
)  # fmt: skip
def test_a_section_that_contradicts_itself_is_refused(section, why):
    with pytest.raises(ValidationError, match=why):
        FeaturesSection.model_validate({"source": "rows", "target": "y"} | section)

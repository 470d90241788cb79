"""One round of what model.py must do, before any trial: each mistake is told by the function that made it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from shopfloor.errors import DataError, UsageError
from shopfloor.settings import Settings
from shopfloor.training.trial import try_contract
from shopfloor.use_case import UseCase, load_use_case

PROJECT = Path(__file__).resolve().parents[2]
NUMBERS = {"validate-logloss": 0.5}
ROWS = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0], "late": [0, 1, 0, 1]})


def model(**changes):
    """A model.py that does what it must, but for the changes; a function that is `None` is not there."""
    functions = {
        "train": lambda params, data, context: context.report(NUMBERS, checkpoint="m"),
        "save": lambda model, directory: (directory / "model").write_text(model),
        "load": lambda directory: (directory / "model").read_text(),
        "predict": lambda model, frame: frame["a"].to_numpy(),
    }
    return SimpleNamespace(**{name: value for name, value in (functions | changes).items() if value})


class Case(UseCase):
    def code(self, module):
        return CODE[0]


CODE: list = []
CASE = Case.model_validate(load_use_case(Settings(project_root=PROJECT), "flight_delays").model_dump(by_alias=True))


def check(code, train=ROWS, validate=ROWS):
    CODE[:] = [code]
    try_contract(CASE, train, validate, "late")


def fails(*_, **__):
    raise ValueError("no such column\nand more")


def reporting(*report, **keywords):
    return lambda params, data, context: context.report(*report, **keywords)


def by_keywords(params, data, *, rounds, threads, resume_from, report):
    assert (rounds, threads, resume_from) == (1, 1, None)
    report(1, NUMBERS, "m")


def test_without_a_prepare_train_gets_the_features_and_the_labels_of_both_splits():
    def train(params, data, context):
        rows, labels, unseen, unseen_labels = data
        assert [list(rows), labels.name, len(unseen), len(unseen_labels)] == [["a"], "late", 4, 4]
        context.report(NUMBERS, "m")

    check(model(train=train))


def test_a_train_of_keywords_is_given_what_the_context_says():
    check(model(train=by_keywords))


def test_a_model_that_does_what_it_must_passes():
    check(model())


def test_one_class_in_the_validation_split_is_no_mistake_of_the_model():
    check(model(), validate=ROWS.assign(late=0))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"save": None}, r"model.py of flight_delays defines no save\(\)"),
        ({"prepare": fails}, "prepare of pipelines/flight_delays/model.py fails: ValueError: no such column$"),
        ({"train": fails}, "train of pipelines/flight_delays/model.py fails"),
        ({"train": lambda params, data, context: None}, r"never called report\(\)"),
        ({"train": lambda params, data: None}, "train of pipelines/flight_delays/model.py fails: TypeError"),
        ({"train": reporting({"auc": 1.0}, "m")}, "reports auc, not 'validate-logloss'"),
        ({"train": reporting({"auc": "high"}, "m")}, "reports 'high' as 'auc', which is no number"),
        ({"train": reporting(NUMBERS)}, "The last report of flight_delays has no checkpoint"),
        ({"train": reporting(NUMBERS, "m", round=0)}, "reports round 0 after round 0"),
        ({"save": lambda model, directory: None}, "save of flight_delays wrote no file"),
        ({"load": fails}, "load of pipelines/flight_delays/model.py fails"),
        ({"predict": lambda model, frame: [0.5]}, "answers 1 predictions to 4 rows"),
    ],
)
def test_a_mistake_is_told_with_the_function_that_made_it(changes, why):
    with pytest.raises(UsageError) as failure:
        check(model(**changes))
    assert re.search(why, failure.value.message)


def test_labels_that_are_all_the_same_are_told_before_anything_is_trained():
    with pytest.raises(DataError, match="All 4 rows of the split 'train' have the same 'late'"):
        check(model(train=fails), train=ROWS.assign(late=1))

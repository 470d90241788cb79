"""What a person reads of a version: sentences and names, no dictionaries."""

import datetime as dt

from shopfloor.cli.models import passport_lines
from shopfloor.records import DataVersion, Passport, TableVersion

PASSPORT = Passport(
    model="penguins",
    version="3",
    created=dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC),
    run_id="f" * 32,
    step_run_ids={"tune": "a" * 32},
    git_commit="c" * 40,
    git_dirty=True,
    data=DataVersion(
        path="data/penguins",
        md5="d" * 32 + ".dir",
        rev="",
        commit="",
        tables=[TableVersion(name="birds", md5="e" * 32, size_bytes=7)],
    ),
    checks_passed=True,
    checks=4,
    feature_service="penguins",
    features={"mass": "float", "year": "int"},
    lock_hash="1" * 64,
    params={"eta": 0.123456789, "max_depth": 6},
    trial_id="trial_1",
    metrics={"roc_auc": 0.987654321},
    champion=None,
    gates=[],
    model_hash="2" * 64,
    content_hashes={},
    run_key="3" * 64,
)


def test_a_passport_is_shown_in_words():
    lines = dict(passport_lines(PASSPORT, {"promoted": {"by": "me@here", "before": "2", "reason": ""}}))

    assert lines["promoted"] == "by me@here, before 2"
    assert lines["code"] == "c" * 40 + ", with uncommitted changes"
    assert lines["data"] == "data/penguins " + "d" * 32 + ".dir, of the workspace"
    assert lines["features"] == "penguins: mass, year"
    assert lines["parameters"] == "eta 0.1235, max_depth 6 (trial trial_1)"
    assert lines["metrics"] == "roc_auc 0.9877"
    assert not any(sign in text for text in lines.values() for sign in "{}[]'")

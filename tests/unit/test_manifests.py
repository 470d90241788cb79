"""Manifests are read by Go, schedules by cron."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from shopfloor.engines.manifests import check_schedule, text_of
from shopfloor.errors import UsageError

AMBIGUOUS = ["y", "N", "yes", "Off", "1e3", "0o17", "0b1", "1_000", ".inf", "~", "null", "2026-11-20", "<<", "=", "+1"]


def test_what_another_reader_of_yaml_takes_for_more_than_text_is_quoted():
    text = text_of({"values": AMBIGUOUS, "y": "plain-word"})

    for word in AMBIGUOUS:
        assert f'- "{word}"' in text
    assert '"y": plain-word' in text
    assert yaml.safe_load(text) == {"values": AMBIGUOUS, "y": "plain-word"}


@given(
    st.recursive(st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
)
def test_every_text_comes_back_from_a_manifest(value):
    assert yaml.safe_load(text_of({"value": value})) == {"value": value}


@pytest.mark.parametrize(
    "schedule", ["0 3 * * *", "*/5 0-6,22 1 jan-mar MON-fri", "@daily", "@every 1h", "59 23 31 12 0"]
)
def test_schedules_of_cron_are_taken(schedule):
    check_schedule(schedule)


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ("99 3 * * *", "'99' is no minute, which goes from 0 to 59"),
        ("0 3 * *", "it has 4 fields, not five"),
        ("0 3 0 * *", "'0' is no day of the month"),
        ("0 3 * 5-2 *", "'5-2' is no month"),
        ("0 3 * * mo", "'mo' is no day of the week"),
        ("*/0 3 * * *", "'*/0' is no minute"),
    ],
)
def test_what_cron_would_not_take_is_refused_with_its_field(schedule, reason):
    with pytest.raises(UsageError, match=f"{re.escape(repr(schedule))} is not a schedule: {re.escape(reason)}"):
        check_schedule(schedule)

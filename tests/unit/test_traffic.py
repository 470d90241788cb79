"""Shares of requests, and the log that keeps them: pure parts."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shopfloor.serving import prediction_log
from shopfloor.serving.prediction_log import Feedback, Prediction, PredictionLog, read_log
from shopfloor.serving.replica.traffic import takes
from shopfloor.settings import Settings


def prediction(number, **fields):
    given = {"request_id": str(number), "time_s": 1.7e9 + number, "version": "1", "role": "live", "route": "/predict"}
    given |= {"status": 200, "failed": False, "latency_s": 0.002, "inputs": b'{"a": 1}', "output": b'{"prediction": 1}'}
    return Prediction(**(given | fields))


@pytest.fixture
def place(tmp_path):
    return Settings(project_root=tmp_path)


@given(st.binary(max_size=40), st.floats(0, 100), st.floats(0, 100))
def test_who_is_in_a_share_stays_in_every_larger_one(key, one, other):
    small, large = sorted((one, other))
    assert takes(small, "flights", key) <= takes(large, "flights", key)


def test_a_share_of_nothing_takes_nobody_and_of_everything_everybody():
    keys = [str(number).encode() for number in range(1000)]
    assert not any(takes(0, "flights", key) for key in [*keys, None])
    assert all(takes(100, "flights", key) for key in [*keys, None])
    assert 60 <= sum(takes(10, "flights", key) for key in keys) <= 140


def test_what_is_logged_can_be_read_and_a_day_can_be_left_out(place, tmp_path):
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    log.add(prediction(1))
    log.add(prediction(2, inputs=b"\xff" * 10, output=b"x" * (prediction_log.MAX_BODY_BYTES + 1)))
    log.keep(Feedback("1", 1.7e9, "true")).result(10)
    log.close()
    log.close()

    table = read_log(place, str(tmp_path / "log"), "flights", "predictions").to_pylist()
    assert [row["request_id"] for row in table] == ["1", "2"]
    assert table[0]["inputs"] == '{"a": 1}'
    assert table[1]["output"] is None
    since = dt.datetime.fromtimestamp(1.7e9 + 1.5, dt.UTC)
    assert len(read_log(place, str(tmp_path / "log"), "flights", "predictions", since)) == 1
    assert read_log(place, str(tmp_path / "log"), "flights", "feedback").to_pylist()[0]["outcome"] == "true"
    assert not len(read_log(place, str(tmp_path / "log"), "nothing", "predictions"))


def test_a_store_that_takes_nothing_loses_nothing_until_it_does(place, tmp_path):
    (tmp_path / "log").write_text("a file where a directory should be")
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    for number in range(3):
        log.add(prediction(number))
    with pytest.raises(OSError, match="log"):
        log.flush()
    assert log.waiting == 3

    (tmp_path / "log").unlink()
    log.add(prediction(3))
    log.close()
    table = read_log(place, str(tmp_path / "log"), "flights", "predictions").to_pylist()
    assert [row["request_id"] for row in table] == ["0", "1", "2", "3"]


def test_a_full_buffer_drops_and_counts(place, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_log, "MAX_ROWS", 2)
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    for number in range(5):
        log.add(prediction(number))
    assert (log.waiting, log.dropped) == (2, 3)
    log.close()
    assert len(read_log(place, str(tmp_path / "log"), "flights", "predictions")) == 2


def test_a_body_that_is_not_kept_takes_no_room(place, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_log, "MAX_BYTES", 2 * prediction_log.MAX_BODY_BYTES)
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    for number in range(5):
        log.add(prediction(number, inputs=b"x" * (prediction_log.MAX_BODY_BYTES + 1)))
    log.close()
    assert log.dropped == 0
    table = read_log(place, str(tmp_path / "log"), "flights", "predictions").to_pylist()
    assert [row["inputs"] for row in table] == [None] * 5
    assert {row["output"] for row in table} == {'{"prediction": 1}'}

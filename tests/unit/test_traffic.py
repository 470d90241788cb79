"""Shares of requests, and the log that keeps them: pure parts."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shopfloor.serving import prediction_log
from shopfloor.serving.log_files import Feedback, Limits, Prediction, read_log, tidy
from shopfloor.serving.prediction_log import PredictionLog
from shopfloor.serving.replica.traffic import takes
from shopfloor.settings import Settings


def prediction(number, **fields):
    row = {"request_id": str(number), "time_s": 1.7e9 + number, "version": "1", "role": "live", "route": "/predict"}
    row |= {"status": 200, "failed": False, "latency_s": 0.002, "inputs": b'{"a": 1}', "output": b'{"prediction": 1}'}
    return Prediction(**(row | fields))


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


def files_of(tmp_path, kind="predictions"):
    return sorted((tmp_path / "log" / "flights" / kind).rglob("*.parquet"))


def test_a_damaged_file_is_left_out_and_the_others_are_read(place, tmp_path, caplog):
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    for number in range(3):
        log.add(prediction(number))
        log.flush()
    log.close()
    cut, empty, _ = files_of(tmp_path)
    cut.write_bytes(cut.read_bytes()[:100])
    empty.write_bytes(b"")

    table = read_log(place, str(tmp_path / "log"), "flights", "predictions")
    assert table["request_id"].to_pylist() == ["2"]
    assert "damaged" in caplog.text


def test_days_before_are_not_even_listed(place, tmp_path):
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    log.add(prediction(1, time_s=dt.datetime.now(dt.UTC).timestamp()))
    log.close()
    old = tmp_path / "log" / "flights" / "predictions" / "date=2020-01-01"
    old.mkdir()
    (old / "29990101T000000-r1-000001.parquet").write_bytes(b"never looked at")
    since = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    assert len(read_log(place, str(tmp_path / "log"), "flights", "predictions", since)) == 1


def test_feedback_that_comes_twice_counts_once_and_a_correction_replaces_it(place, tmp_path):
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    futures = [log.keep(Feedback("1", 1.7e9 + n, outcome)) for n, outcome in enumerate(["true", "true", "false"])]
    futures.append(log.keep(Feedback("2", 1.7e9, "true")))
    log.close()
    for future in futures:
        future.result(10)
    rows = read_log(place, str(tmp_path / "log"), "flights", "feedback").to_pylist()
    assert {row["request_id"]: row["outcome"] for row in rows} == {"1": "false", "2": "true"}
    assert len(rows) == 2


def test_feedback_is_on_the_disk_when_it_is_done_and_fails_where_it_cannot_be(place, tmp_path):
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    log.keep(Feedback("1", 1.7e9, "true")).result(10)
    assert len(read_log(place, str(tmp_path / "log"), "flights", "feedback")) == 1
    log.close()
    with pytest.raises(OSError, match="no more"):
        log.keep(Feedback("2", 1.7e9, "true")).result(10)

    (tmp_path / "full").write_text("a file where a directory should be")
    log = PredictionLog(str(tmp_path / "full"), "flights", "r1", place, flush_s=3600)
    with pytest.raises(OSError, match="full"):
        log.keep(Feedback("1", 1.7e9, "true")).result(10)
    log.close()


def test_what_comes_to_a_closed_log_is_counted(place, tmp_path):
    log = PredictionLog(str(tmp_path / "log"), "flights", "r1", place, flush_s=3600)
    log.close()
    log.add(prediction(1))
    assert (log.waiting, log.dropped) == (0, 1)


def test_old_days_and_the_oldest_predictions_beyond_the_quota_go(place, tmp_path):
    root = tmp_path / "log" / "flights"
    now = dt.datetime.now(dt.UTC)

    def put(kind, age, size=1000, name="{:%Y%m%dT%H%M%S}-r-000001.parquet"):
        moment = now - age
        file = root / kind / f"date={moment:%Y-%m-%d}" / name.format(moment)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
        return file

    day, hour = dt.timedelta(days=1), dt.timedelta(hours=1)
    gone = [put(kind, 31 * day) for kind in ("predictions", "feedback")]
    gone += [put("predictions", 20 * day), put("predictions", 2 * day, 0, ".{:%Y%m%dT%H%M%S}-r-000001.parquet")]
    files = [put("feedback", 20 * day), put("predictions", 10 * day), put("predictions", hour)]
    files.append(put("predictions", hour, 0, ".{:%Y%m%dT%H%M%S}-r-000001.parquet"))

    tidy(place, str(tmp_path / "log"), "flights", Limits(days=30, max_bytes=2500))

    assert [file for file in gone if file.exists()] == []
    assert [file for file in files if not file.exists()] == []
    assert not gone[0].parent.exists()

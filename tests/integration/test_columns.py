"""A table with columns of every type, from its splits to an endpoint and a batch run, without Feast."""

import base64
import datetime as dt
import decimal
import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from shopfloor.data import building, quality
from shopfloor.flows import rollout as canary
from shopfloor.records import FeatureSet
from shopfloor.registry.register import register
from shopfloor.serving import batch
from shopfloor.serving.deploy.champion import promote_version
from shopfloor.serving.deploy.rollout import endpoint
from shopfloor.serving.deploy.verify import verify

from tests.support.artifacts import Recorder
from tests.support.endpoints import post
from tests.support.judged import judged

CASE, ROWS = "toy_customers", 400
BEGIN = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
USE_CASE = f"""
name: {CASE}
task: binary
data: {{path: data/toy, tables: [customers]}}
features:
  source: customers
  target: left
  leave_out: [customer_id, region]
  closed: [tier]
  split: {{by: random, seed: 3}}
search: {{metric: m, mode: min, trials: 1, space: {{max_depth: {{type: int, low: 2, high: 3}}}}}}
model: {{flavor: sklearn}}
evaluation: {{golden_rows: 30, slices: [region, plan]}}
serving: {{cpus: 0.2, max_rows: 50, max_body_bytes: 100000}}
gates: {{live: {{min_requests: 10, tolerance: 0.3, metrics: {{agreement: {{min: 0.7}}, error_rate: {{max: 0}}}}}}}}
"""
MODEL = """
NUMBERS = ["age", "visits", "spent", "price", "member", "loyal"]
TEXTS = ["plan", "note", "tier"]


def train(params, data, context):
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    from shopfloor.estimators import Lists

    assert isinstance(data[0]["photo"].iloc[0], bytes)
    assert str(data[0]["since"].dtype) == "datetime64[us]"
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((encoder, TEXTS), ("passthrough", NUMBERS), (Lists(), "embedding"))
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=10 * params["max_depth"])).fit(*data[:2])
    context.report({"m": 0.5}, checkpoint=model)


def save(model, directory):
    import skops.io
    skops.io.dump(model, directory / "model.skops")


def load(directory):
    import skops.io
    file = directory / "model.skops"
    return skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file))


def predict(model, frame):
    return model.predict_proba(frame)[:, 1]
"""
EXPECTATIONS = """
def suites():
    import great_expectations.expectations as gxe
    return {"customers": [
        gxe.ExpectColumnValuesToBeUnique(column="customer_id"),
        gxe.ExpectColumnValuesToBeInSet(column="plan", value_set=["basic", "plus"]),
        gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0, max_value=100),
        gxe.ExpectColumnValuesToBeInSet(column="member", value_set=[True, False]),
        gxe.ExpectColumnValuesToNotBeNull(column="since"),
    ]}
"""


def customers():
    """Return a table of strings, categories, booleans, times, integers that may be missing, decimals and text."""
    random = np.random.default_rng(5)
    spent = random.gamma(2, 50, ROWS)
    plan = random.choice(["basic", "plus"], ROWS)
    member = random.random(ROWS) < 0.5
    absent = random.random(ROWS) < 0.2
    since = [BEGIN + dt.timedelta(hours=int(hours)) for hours in random.integers(0, 9000, ROWS)]
    columns = {
        "customer_id": pa.array(range(ROWS)),
        "region": pa.array(random.choice(["north", "south"], ROWS)),
        "age": pa.array(random.integers(18, 90, ROWS)),
        "visits": pa.array(random.integers(0, 9, ROWS), mask=absent),
        "spent": pa.array(spent, mask=np.roll(absent, 3)),
        "price": pa.array([decimal.Decimal(int(p)) / 4 for p in random.integers(0, 99, ROWS)], pa.decimal128(9, 2)),
        "member": pa.array(member),
        "loyal": pa.array(random.random(ROWS) < 0.5, mask=np.roll(absent, 7)),
        "plan": pa.array(plan).dictionary_encode(),
        "note": pa.array([f"said {n} \u00fc" if n % 3 else None for n in range(ROWS)]),
        "since": pa.array(since, pa.timestamp("us", "UTC")),
        "embedding": pa.array(random.normal(size=(ROWS, 3)).tolist(), pa.list_(pa.float32())),
        "photo": pa.array([bytes([n % 256, 0, 255]) for n in range(ROWS)]),
        "tier": pa.array(random.choice(["gold", "tin"], ROWS)),
        "left": pa.array((spent > 90) ^ (plan == "plus") ^ (random.random(ROWS) < 0.1)),
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def settings(project):
    import pipelines

    settings = project(**{CASE: USE_CASE})
    folder = settings.project_root / "pipelines" / CASE
    (folder / "model.py").write_text(MODEL)
    (folder / "expectations.py").write_text(EXPECTATIONS)
    tables = settings.project_root / "data/toy"
    tables.mkdir(parents=True)
    pq.write_table(customers(), tables / "customers.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "__path__", [*pipelines.__path__, str(settings.project_root / "pipelines")])
        yield settings


@pytest.fixture(scope="module")
def built(settings):
    """Return the features as an artifact, their record and the splits, from tables that met their expectations."""
    tables, features = str(settings.project_root / "data/toy"), Recorder("features")
    quality.validate(settings, CASE, tables, Recorder("checks"), Recorder())
    building.build(settings, CASE, tables, features, Recorder())
    record = FeatureSet.model_validate_json(Path(features.uri, "feature_set.json").read_text())
    return features, record, {name: pd.read_parquet(f"{features.uri}/{name}.parquet") for name in record.rows}


@pytest.fixture(scope="module")
def served(settings, built):
    """Return the endpoint of a champion, its version, and the evaluation."""
    features, record, parts = built
    made_of, evaluation = judged(settings, CASE, parts, record, features=features)
    version = register(settings, CASE, made_of, Recorder())
    promote_version(settings, CASE, version)
    shown = Recorder()
    verify(settings, CASE, version, features.uri, made_of["model"].uri, shown)
    assert shown.metrics["golden_rows"] == 30
    return endpoint(settings, CASE), version, evaluation


def test_a_table_is_split_at_random_with_the_same_part_of_each_class(built):
    _, record, parts = built
    assert record.feature_service == "table customers"
    assert record.rows == {"train": 240, "validate": 80, "test": 80}
    shares = [part["left"].mean() for part in parts.values()]
    assert max(shares) - min(shares) < 0.02
    assert not set(parts["train"].customer_id) & set(parts["test"].customer_id)
    kinds = {"age": "int", "visits": "int", "spent": "float", "price": "float", "member": "bool", "loyal": "bool"}
    assert record.features == kinds | {
        "plan": "str",
        "note": "str",
        "since": "datetime",
        "embedding": "numbers",
        "photo": "bytes",
        "tier": "str",
    }
    assert (record.lengths, record.closed) == ({"embedding": 3}, ["tier"])
    assert set(record.optional) == {"visits", "spent", "loyal", "note"}
    assert record.values == {"plan": ["basic", "plus"], "tier": ["gold", "tin"]}
    assert record.entities == ["customer_id", "region"]


def test_the_endpoint_takes_each_type_as_its_document_says_and_refuses_others(served):
    import jsonschema

    url, _, evaluation = served
    assert {one.column for one in evaluation.slices} == {"region", "plan"}
    document = requests.get(f"{url}/openapi.json", timeout=30).json()
    media = document["paths"][f"/{CASE}/predict"]["post"]["requestBody"]["content"]["application/json"]
    described, row = media["schema"]["properties"], media["example"]
    jsonschema.validate(row, media["schema"], format_checker=jsonschema.FormatChecker())
    assert {"enum": ["basic", "plus"], "type": "string"} in described["plan"]["anyOf"]
    assert described["visits"]["anyOf"][0]["type"] == "integer"
    assert described["loyal"]["anyOf"][0] == {"type": "boolean"}
    assert described["since"] == {"type": "string", "format": "date-time"}
    assert described["tier"] == {"enum": ["gold", "tin"], "type": "string"}
    assert described["photo"] == {"type": "string", "contentEncoding": "base64"}
    assert (described["embedding"]["minItems"], described["embedding"]["maxItems"]) == (3, 3)
    answer = post(f"{url}/predict", row).json()["prediction"]
    other = post(f"{url}/predict", row | {"embedding": [99.0, 0, 0]}).json()["prediction"]
    assert post(f"{url}/invocations", {"dataframe_records": [row]}).json()["predictions"] == [answer]
    changed = dict(reversed((row | {"embedding": [99.0, 0.0, 0.0]}).items()))
    split = {"columns": list(changed), "data": [list(changed.values())]}  # not the usual order: by MLflow's parser
    assert post(f"{url}/invocations", {"dataframe_split": split}).json() == {"predictions": [other]}
    model = f"{url}/v2/models/{CASE}"
    said = {one["name"]: one for one in requests.get(model, timeout=30).json()["inputs"]}
    assert (said["embedding"]["shape"], said["photo"]["datatype"]) == ([-1, 3], "BYTES")
    tensors = [
        {"name": name, "datatype": said[name]["datatype"], "shape": [1, *said[name]["shape"][1:]], "data": [value]}
        for name, value in row.items()
    ]
    assert post(f"{model}/infer", {"inputs": tensors}).json()["outputs"][0]["data"] == [answer]

    same = {"since": "2020-03-01T01:00:00+01:00"}, {"since": "2020-03-01T00:00:00Z"}, {"since": "2020-03-01T00:00:00"}
    answers = [post(f"{url}/predict", row | moment).json()["prediction"] for moment in same]
    answers += [
        post(f"{url}/invocations", {"dataframe_records": [row | moment]}).json()["predictions"][0] for moment in same
    ]
    assert len({round(answer, 9) for answer in answers}) == 1
    assert post(f"{url}/predict", row | {"plan": "gold", "visits": None}).status_code == 200
    for field, value in (
        *(("visits", 2.5), ("loyal", 1), ("member", None), ("plan", 3), ("since", "soon")),
        *(("tier", "wood"), ("photo", "\u00fc"), ("embedding", [1.0, 2.0])),
    ):
        refused = post(f"{url}/predict", row | {field: value})
        assert refused.status_code == 422
        assert refused.json()["fields"][0]["field"] == field
    for field, value in (("visits", 2.5), ("loyal", 3), ("tier", "wood")):
        refused = post(f"{url}/invocations", {"dataframe_records": [row | {field: value}]})
        assert (refused.status_code, refused.json()["fields"][0]["field"]) == (422, field)


def test_a_batch_run_of_the_table_itself_answers_as_the_endpoint(settings, served, tmp_path):
    url, version, _ = served
    scored = Recorder("scored")
    table = str(settings.project_root / "data/toy/customers.parquet")
    assert batch.score(settings, CASE, version, table, str(tmp_path), scored) == ROWS
    [file] = tmp_path.rglob("*.parquet")
    frame = pq.read_table(file, partitioning=None).to_pandas()
    photos = [base64.b64encode(content).decode() for content in frame["photo"].head(20)]
    rows = frame.head(20).drop(columns=["prediction", "model_version", "left", "customer_id", "region", "photo"])
    rows = json.loads(rows.astype({"price": float}).to_json(orient="records", date_format="iso"))
    for row, photo in zip(rows, photos, strict=True):
        row |= {"visits": None if row["visits"] is None else int(row["visits"]), "photo": photo}
    answers = post(f"{url}/invocations", {"dataframe_records": rows}).json()["predictions"]
    assert answers == pytest.approx(frame["prediction"].head(20).tolist())


def test_a_version_of_texts_and_times_goes_through_a_rollout_to_champion(settings, built, served):
    """It is the last here: another version answers from then on."""
    features, record, parts = built
    url, first, _ = served
    row = requests.get(f"{url}/openapi.json", timeout=30).json()["paths"][f"/{CASE}/predict"]["post"]
    row = row["requestBody"]["content"]["application/json"]["example"]
    made_of, _ = judged(settings, CASE, parts, record, features=features, params={"max_depth": 3}, champion=first)
    second = register(settings, CASE, made_of, Recorder())
    assert second != first

    failures, end = [], threading.Event()

    def ask():
        while not end.wait(0.02):
            answer = post(f"{url}/predict", row | {"plan": "plus", "since": "2020-05-01T10:00:00+02:00"})
            failures.extend([] if answer.ok else [answer.text])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        result = canary.run(settings, CASE, second, lambda text: None, stages=(50, 100), stage_timeout_s=90)
    finally:
        end.set()
        thread.join()
    assert not failures
    assert result.outcome == "promoted", result

"""What a use case's features.py may do wrong, through the real Feast: it works, or is named."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shopfloor.data import features
from shopfloor.errors import DataError, ShopfloorError, UsageError
from shopfloor.settings import Settings

from tests.support.artifacts import Recorder

N = 300
SPLIT = {
    "train": "['2024-01-01', '2024-03-01']",
    "validate": "['2024-03-01', '2024-03-15']",
    "test": "['2024-03-15', '2024-04-01']",
}
YAML = f"""
name: NAME
data: {{path: data/tiny, tables: [orders]}}
features:
  service: tiny
  target: bought
  split: {{{", ".join(f"{name}: {days}" for name, days in SPLIT.items())}}}
search: {{metric: m, mode: min, trials: 1, space: {{d: {{type: int, low: 1, high: 2}}}}}}
model: {{flavor: xgboost}}
"""
CODE = """
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

def read(tables):
    return pd.read_parquet(tables / "orders.parquet")

def source_tables(tables, out):
    frame = read(tables)
    frame[["order_id", "event_timestamp", "n_items", "amount"]].to_parquet(out / "orders.parquet", index=False)

def view(source, name="orders", keys=("order",), **fields):
    entities = [Entity(name="order", join_keys=["order_id"], value_type=ValueType.INT64)] if keys else []
    schema = [Field(name=field, dtype=kind) for field, kind in (fields or dict(n_items=Int64, amount=Float64)).items()]
    where = FileSource(name=name + "_source", path=source(name), timestamp_field="event_timestamp")
    return [*entities, FeatureView(name=name, entities=entities, schema=schema, source=where)]

def definitions(source):
    orders = view(source)
    return [*orders, FeatureService(name="tiny", features=orders[-1:])]

def rows(tables):
    return read(tables)[["order_id", "shop", "event_timestamp", "bought"]]
"""


def orders():
    random = np.random.default_rng(1)
    at = pd.to_datetime("2024-01-01", utc=True) + pd.to_timedelta(np.sort(random.integers(0, 91 * 86400, N)), unit="s")
    return pd.DataFrame(
        {
            "order_id": np.arange(N),
            "shop": random.choice(["eu", "é ü"], N),
            "event_timestamp": at,
            "amount": random.gamma(2, 20, N),
            "n_items": random.integers(1, 9, N),
            "bought": random.integers(0, 2, N),
        }
    )


@pytest.fixture
def build(tmp_path, request):
    """Give a function that builds the features of a use case, whose code gets some lines more."""
    name = f"tiny_{abs(hash(request.node.name))}"
    folder = tmp_path / "pipelines" / name
    folder.mkdir(parents=True)
    (folder / "use_case.yaml").write_text(YAML.replace("NAME", name))
    (tmp_path / "tables").mkdir()
    orders().to_parquet(tmp_path / "tables/orders.parquet", index=False)
    settings = Settings(
        project_root=tmp_path,
        state_dir=tmp_path / "state",
        artifact_root=str(tmp_path / "artifacts"),
        feature_registry=str(tmp_path / "registry.db"),
        online_store=str(tmp_path / "online.db"),
    )

    def build(more):
        (folder / "features.py").write_text(CODE + more)
        built, metrics = Recorder("features"), Recorder()
        features.build(settings, name, str(tmp_path / "tables"), built, metrics)
        return pd.concat(pd.read_parquet(Path(built.uri) / f"{split}.parquet") for split in SPLIT), metrics.metrics

    package = importlib.import_module("pipelines")
    package.__path__.append(str(tmp_path / "pipelines"))
    yield build
    package.__path__.remove(str(tmp_path / "pipelines"))
    for module in [module for module in sys.modules if name in module]:
        del sys.modules[module]


CHANGED = "def read(tables):\n    frame = pd.read_parquet(tables / 'orders.parquet')\n    {}\n    return frame\n"
FEATURE = (
    "def source_tables(tables, out):\n    frame = read(tables)\n    {}\n    frame.to_parquet(out / 'orders.parquet')\n"
)
ROWS = "def rows(tables):\n    frame = read(tables)[['order_id', 'shop', 'event_timestamp', 'bought']]\n    {}\n"


def test_a_view_without_entities_holds_for_all_rows(build):
    frame, _ = build(
        "def definitions(source):\n    all = view(source, keys=())\n"
        "    return [*all, FeatureService(name='tiny', features=all[-1:])]\n"
    )
    assert list(frame.sort_values("event_timestamp").amount) == list(orders().sort_values("event_timestamp").amount)


def test_a_view_without_rows_gives_missing_values_and_says_so(build, caplog):
    frame, _ = build(FEATURE.format("frame = frame.iloc[:0]"))
    assert frame.amount.isna().all()
    assert "view 'orders' has no row with a time" in caplog.text


def test_a_feature_may_have_any_name(build):
    frame, _ = build(
        "def source_tables(tables, out):\n    frame = read(tables)\n"
        "    frame = frame.rename(columns={'amount': 'number', 'n_items': 'row'})\n"
        "    frame.to_parquet(out / 'orders.parquet')\n"
        "def definitions(source):\n    own = view(source, number=Float64, row=Int64)\n"
        "    return [*own, FeatureService(name='tiny', features=own[-1:])]\n"
    )
    assert list(frame.sort_values("order_id").number) == list(orders().amount)


def test_rows_without_a_time_are_left_out_and_counted(build, caplog):
    frame, metrics = build(ROWS.format("frame.loc[:99, 'event_timestamp'] = None; return frame"))
    assert len(frame) == N - 100
    assert "100 of 300 rows have no event_timestamp and are left out" in caplog.text
    assert metrics["rows_without_time"] == 100


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            ROWS.format("return frame.rename(columns={'bought': 'sold'})"),
            UsageError,
            "rows.. of features.py returns no column 'bought', but order_id",
        ),
        (ROWS.format("return frame.assign(bought='x')"), DataError, "label 'bought' holds 'x'"),
        (
            ROWS.format("frame.loc[:6, 'bought'] = None; return frame"),
            DataError,
            "label 'bought' is missing in 7 of 300 rows",
        ),
        (
            ROWS.format("frame['event_timestamp'] = frame['event_timestamp'].dt.tz_localize(None); return frame"),
            UsageError,
            "rows.. of features.py: 'event_timestamp' is .* a time without a zone",
        ),
        (
            FEATURE.format("frame['event_timestamp'] = frame['event_timestamp'].dt.tz_localize(None)"),
            UsageError,
            "'event_timestamp' in the table of view 'orders' is .* a time without a zone",
        ),
        (
            ROWS.format("return frame.assign(n_items=1)"),
            UsageError,
            "'n_items' is a feature of view 'orders' and a column of rows",
        ),
        (
            "def definitions(source):\n    own = view(source); other = view(source, name='other', amount=Float64)\n"
            "    return [*own, other[-1], FeatureService(name='tiny', features=[own[-1], other[-1]])]\n"
            + FEATURE.format("frame.to_parquet(out / 'other.parquet')"),
            UsageError,
            "'amount' is a feature of view 'other' and a feature of view 'orders'",
        ),
        (
            FEATURE.format("frame['order_id'] = frame['order_id'].astype(str)"),
            UsageError,
            "key 'order_id' is .*string in the table of view 'orders' and int64 in rows",
        ),
        (
            ROWS.format("return frame.drop(columns='order_id')"),
            UsageError,
            "no column 'order_id', a key of view 'orders'",
        ),
        (
            FEATURE.format("frame['amount'] = 'red'"),
            DataError,
            "feature 'amount' in the table of view 'orders' holds 'red'",
        ),
        (FEATURE.format("del frame['amount']"), UsageError, "the table of view 'orders' has no column 'amount'"),
        (FEATURE.format("return"), UsageError, "wrote no orders.parquet"),
        (
            FEATURE.format("frame['n_items'] = frame['n_items'].astype('uint64') + 2**63"),
            DataError,
            "feature 'n_items' in the table of view 'orders' holds 92233720368547758",
        ),
    ],
)
def test_what_cannot_be_used_is_named(build, more, error, message):
    with pytest.raises(ShopfloorError, match=message) as raised:
        build(more)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)


def test_a_shared_registry_serves_features_while_they_are_materialized(tmp_path):
    settings = Settings(
        project_root=tmp_path,
        state_dir=tmp_path / "state",
        feature_registry=f"sqlite:///{tmp_path}/registry.db",
        online_store=str(tmp_path / "online.db"),
    )
    assert features.feature_store(settings, "tiny").registry.serve_features_while_materializing

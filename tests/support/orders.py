"""A use case of 300 orders whose `features.py` is short, in a project of its own."""

import contextlib
import importlib
import sys

import numpy as np
import pandas as pd
from shopfloor.settings import Settings

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


@contextlib.contextmanager
def project(root, name):
    """Give the settings of a project in `root` with the use case under a name; its code can be imported meanwhile."""
    folder = root / "pipelines" / name
    folder.mkdir(parents=True)
    (folder / "use_case.yaml").write_text(YAML.replace("NAME", name))
    (folder / "features.py").write_text(CODE)
    tables = root / "data/tiny"
    tables.mkdir(parents=True)
    orders().to_parquet(tables / "orders.parquet", index=False)
    package = importlib.import_module("pipelines")
    package.__path__.append(str(root / "pipelines"))
    try:
        yield Settings(
            project_root=root,
            state_dir=root / ".shopfloor",
            artifact_root=str(root / ".shopfloor/artifacts"),
            feature_registry=str(root / ".shopfloor/registry.db"),
            online_store=str(root / ".shopfloor/online.db"),
        )
    finally:
        package.__path__.remove(str(root / "pipelines"))
        for module in [module for module in sys.modules if name in module]:
            del sys.modules[module]

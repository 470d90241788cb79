"""What a use case's features.py may do wrong, through the real Feast: it works, or is named."""

import re
from pathlib import Path

import pandas as pd
import pytest
from shopfloor.data import building, features
from shopfloor.errors import DataError, ServiceError, ShopfloorError, UsageError
from shopfloor.settings import Settings

from tests.support.artifacts import Recorder
from tests.support.orders import CODE, SPLIT, N, orders, project
from tests.support.waiting import free_port


@pytest.fixture
def build(tmp_path, request):
    """Give a function that builds the features of a use case, whose code gets some lines more."""
    name = f"tiny_{abs(hash(request.node.name))}"
    with project(tmp_path, name) as settings:

        def build(more):
            (tmp_path / "pipelines" / name / "features.py").write_text(CODE + more)
            built, metrics = Recorder("features"), Recorder()
            building.build(settings, name, str(tmp_path / "data/tiny"), built, metrics)
            return pd.concat(pd.read_parquet(Path(built.uri) / f"{split}.parquet") for split in SPLIT), metrics.metrics

        yield build


CHANGED = "def read(tables):\n    frame = pd.read_parquet(tables / 'orders.parquet')\n    {}\n    return frame\n"
FEATURE = (
    "def source_tables(tables, out):\n    frame = read(tables)\n    {}\n    frame.to_parquet(out / 'orders.parquet')\n"
)
DECLARED = (
    "def definitions(source):\n    from feast.types import Array, Bytes\n    own = view(source, amount={})\n"
    "    return [*own, FeatureService(name='tiny', features=own[-1:])]\n"
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


def test_features_keep_the_types_that_their_view_declares(build):
    typed = (
        "def source_tables(tables, out):\n    frame = read(tables)\n"
        "    frame = frame.assign(gift=frame.order_id % 3 == 0)\n"
        "    frame = frame.assign(colour=frame.shop.where(frame.order_id % 5 > 0, None))\n"
        "    frame = frame.assign(sent=frame.event_timestamp + pd.Timedelta(hours=1))\n"
        "    frame = frame.assign(place=[[n, 0.5] if n % 5 else None for n in frame.order_id])\n"
        "    frame = frame.assign(picture=[b'\\x00%d' % n if n % 5 else None for n in frame.order_id])\n"
        "    frame = frame.assign(paid=frame.gift.astype('boolean').where(frame.order_id % 7 > 0))\n"
        "    frame.to_parquet(out / 'orders.parquet')\n"
        "def definitions(source):\n    from feast.types import Array, Bool, Bytes, UnixTimestamp\n"
        "    more = {'place': Array(Float64), 'picture': Bytes}\n"
        "    own = view(source, gift=Bool, paid=Bool, colour=String, sent=UnixTimestamp, n_items=Int64, **more)\n"
        "    return [*own, FeatureService(name='tiny', features=own[-1:])]\n"
    )
    frame, _ = build(typed)
    frame = frame.sort_values("order_id", ignore_index=True)
    assert {name: str(frame[name].dtype) for name in ("gift", "paid", "sent", "n_items")} == {
        "gift": "bool",
        "paid": "float64",
        "sent": "datetime64[us]",
        "n_items": "int64",
    }
    assert list(frame.gift) == [number % 3 == 0 for number in range(N)]
    assert frame.paid.isna().sum() == len(range(0, N, 7))
    assert frame.colour[0] is None
    assert frame.colour[1] == orders().shop[1]
    expected = orders().event_timestamp.dt.tz_localize(None) + pd.Timedelta(hours=1)
    assert list(frame.sent) == list(expected)
    assert [None if one is None else list(one) for one in frame.place[:3]] == [None, [1.0, 0.5], [2.0, 0.5]]
    assert list(frame.picture[:3]) == [None, b"\x001", b"\x002"]


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
        (
            FEATURE.format("frame['amount'] = [[1.0, None]] * len(frame)") + DECLARED.format("Array(Float64)"),
            DataError,
            "'amount' in the table of view 'orders' has lists in which 300 numbers are missing or not finite",
        ),
        (
            FEATURE.format("frame['amount'] = [['a']] * len(frame)") + DECLARED.format("Array(String)"),
            DataError,
            "'amount' in the table of view 'orders' is list<.*string>: a list holds numbers",
        ),
        (
            DECLARED.format("Array(Float64)"),
            DataError,
            "'amount' in the table of view 'orders' is double: a list holds numbers",
        ),
        (
            DECLARED.format("Bytes"),
            DataError,
            "'amount' in the table of view 'orders' holds '.*' and is declared bytes",
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
        (
            "def definitions(source):\n    own = view(source, amount=String, n_items=Int64)\n"
            "    return [*own, FeatureService(name='tiny', features=own[-1:])]\n",
            DataError,
            "feature 'amount' in the table of view 'orders' holds .* and is declared a text",
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


@pytest.mark.parametrize(
    ("registry", "reason"),
    [
        ("postgresql+psycopg2://feast@127.0.0.1:{port}/feast", "Connection refused"),
        ("s3://models/registry.db", "127.0.0.1:{port}"),
    ],
)
def test_a_registry_that_takes_nothing_is_named(tmp_path, monkeypatch, registry, reason):
    port = free_port()
    monkeypatch.setenv("FEAST_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    place = registry.format(port=port)
    settings = Settings(project_root=tmp_path, state_dir=tmp_path / "state", feature_registry=place)

    with pytest.raises(ServiceError, match=rf"^Feast's registry {re.escape(place)} takes no definitions: ") as raised:
        features.register_definitions(settings, "tiny", [])
    assert reason.format(port=port) in str(raised.value)
    assert "\n" not in str(raised.value)

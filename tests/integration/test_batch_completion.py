"""Rows that name entities, completed through the real Feast from the tables of a real DVC repository."""

import datetime as dt
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shopfloor.data import building
from shopfloor.errors import UsageError
from shopfloor.serving import completion

from tests.support.artifacts import Recorder
from tests.support.orders import SPLIT, orders, project
from tests.support.project import dvc, git

CASE = "tiny_completed"
KEYS = ["order_id", "shop", "event_timestamp"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    with project(root, CASE) as settings:
        (root / ".gitignore").write_text(".shopfloor/\n")
        git(root, "init", "-q")
        dvc(root, "init", "-q")
        dvc(root, "add", "-q", "data/tiny")
        git(root, "add", "-A")
        git(root, "commit", "-qm", "orders")
        yield settings


def completed(settings, data):
    """Complete a data set, and return where it is then."""
    return completion.complete(settings, CASE, str(data), "", Recorder("completed"))


def read(place):
    return pa.concat_tables(
        [pq.read_table(file, partitioning=None) for file in sorted(Path(place).rglob("*.parquet"))]
    ).to_pandas()


def test_rows_that_name_entities_get_what_training_gets(settings, tmp_path):
    built = Recorder("features")
    building.build(settings, CASE, str(settings.project_root / "data/tiny"), built, Recorder())
    trained = pd.concat(pd.read_parquet(Path(built.uri) / f"{split}.parquet") for split in SPLIT)
    for shop, rows in orders()[KEYS].groupby("shop"):
        (tmp_path / f"shop={shop}").mkdir()
        rows.drop(columns="shop").to_parquet(tmp_path / f"shop={shop}/rows.parquet", index=False, row_group_size=50)

    place = completed(settings, tmp_path)

    columns = [*KEYS, "amount", "n_items"]
    theirs, ours = (frame[columns].sort_values("order_id", ignore_index=True) for frame in (trained, read(place)))
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
    assert read(place)["n_items"].dtype == "int64"


def test_a_row_keeps_what_it_has_and_lacks_what_nobody_knew_at_its_time(settings, tmp_path):
    rows = orders()[KEYS].head(4).assign(n_items=99, order_id=[0, 1, 2, 10_000])
    rows.loc[1, "event_timestamp"] -= dt.timedelta(seconds=1)
    rows.loc[2, "event_timestamp"] = pd.NaT
    rows.to_parquet(tmp_path / "rows.parquet", index=False)

    frame = read(completed(settings, tmp_path))

    assert list(frame["n_items"]) == [99] * 4
    assert frame["amount"][0] == orders()["amount"][0]
    assert frame["amount"][1:].isna().all()


@pytest.mark.parametrize(
    "rows",
    [orders().drop(columns="bought"), orders().drop(columns=["amount", "event_timestamp"])],
    ids=["complete", "without a time"],
)
def test_rows_that_lack_nothing_or_have_no_time_stay_where_they_are(settings, tmp_path, rows):
    rows.to_parquet(tmp_path / "rows.parquet", index=False)
    assert completed(settings, tmp_path) == str(tmp_path)


def test_a_time_without_a_zone_is_refused(settings, tmp_path):
    rows = orders().drop(columns="amount").assign(event_timestamp="2024-01-01")
    rows.to_parquet(tmp_path / "rows.parquet", index=False)
    with pytest.raises(UsageError, match=r"rows\.parquet: 'event_timestamp' is .*string, a time without a zone"):
        completed(settings, tmp_path)


def test_rows_without_a_key_are_left_to_score_which_names_what_is_missing(settings, tmp_path, caplog):
    orders().drop(columns=["amount", "order_id"]).to_parquet(tmp_path / "rows.parquet", index=False)
    assert "amount" not in read(completed(settings, tmp_path))
    assert "view 'orders' is not joined" in caplog.text

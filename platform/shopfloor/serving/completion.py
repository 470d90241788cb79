"""Rows that name entities get their features before they are scored: Feast's point-in-time join, part by part.

The features are those of a data version, as in training. A row keeps what it has, and gets the features of each view
whose keys stand in its columns, as of its `event_timestamp`. What cannot be looked up so is left to `score`, which
names the columns that the model misses.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shopfloor.data.contract import TIME, as_feature, declared_kind
from shopfloor.data.features import (
    answers,
    declared_service,
    feature_service,
    in_microseconds,
    keys_of,
    store_over,
)
from shopfloor.data.versions import tables_of
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.serving.data_set import Part, parts_of, with_partition
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, exists, filesystem, join, publish, scratch
from shopfloor.use_case import UseCase, load_served_case

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

ROWS_PER_PART = 500_000
"""Rows that are joined at once."""


def complete(settings: Settings, use_case_name: str, data: str, data_rev: str, completed: Artifact) -> str:
    """Return the URI of a data set whose rows have their features; the step `complete`.

    Args:
        settings: Say where the project and the artifacts are.
        use_case_name: Its `features.py` says what the features are.
        data: A parquet file or a directory of them, as a path or a URI.
        data_rev: Git revision of the tables that the features come from; empty means the workspace.
        completed: Gets the completed rows, where some lack features.

    Returns:
        `data` itself where its rows lack no feature, or have no time.

    Raises:
        NotFoundError: There is no such revision.
        DataError: The revision's tables are nowhere, or Feast cannot join them.
        UsageError: A file is no parquet, or has times without a zone; `features.py` does not keep to its contract.
    """
    use_case = load_served_case(settings, use_case_name)
    parts = parts_of(settings, data, "", "", (), ROWS_PER_PART) if exists(settings, data) else []
    files = {part.file: part for part in parts}.values()
    timed = [columns for columns in (_columns(settings, part) for part in files) if TIME in columns]
    # A model that was imported has no features of ours.
    lacking = use_case if isinstance(use_case, UseCase) and timed and _lack_features(use_case, timed) else None
    with publish(settings, completed, "complete") as directory:
        rows = directory / "rows"
        if lacking is not None:
            rows.mkdir()
            with tables_of(settings, lacking, data_rev) as tables:
                _complete(settings, lacking, tables, parts, rows)
        record = {"data": data, "completed": lacking is not None}
        (directory / "completed.json").write_text(json.dumps(record), encoding="utf-8")
    return join(completed.uri, "rows") if lacking is not None else data


def _columns(settings: Settings, part: Part) -> set[str]:
    import pyarrow.parquet as pq

    system, path = filesystem(settings, part.file)
    return {*pq.read_schema(path, filesystem=system).names, *part.partition}


def _lack_features(use_case: UseCase, files: list[set[str]]) -> bool:
    """Tell whether a feature of the use case is no column of one of the files."""
    if use_case.features.source is not None:
        return False
    try:
        views = declared_service(use_case).feature_view_projections
    except NotFoundError:  # a model without features of Feast's
        return False
    # A view whose definition leaves its features to its table says none.
    names = {feature.name for view in views for feature in view.features}
    return not all(view.features for view in views) or any(names - columns for columns in files)


def _complete(settings: Settings, use_case: UseCase, tables: Path, parts: list[Part], target: Path) -> None:
    import pyarrow.parquet as pq

    with scratch(settings.private_state_dir()) as sources:
        use_case.code("features").source_tables(tables, sources)
        for file in sources.glob("*.parquet"):
            in_microseconds(file)
        store = store_over(settings, use_case, sources)
        views = feature_service(store, use_case).feature_view_projections
        progress, total = 0, sum(part.rows for part in parts)
        for part in parts:
            system, path = filesystem(settings, part.file)
            with pq.ParquetFile(path, filesystem=system) as parquet:
                rows = with_partition(parquet.read_row_groups(range(part.first, part.last)), part.partition)
            for view in views:
                rows = with_features(store, view, sources, rows, part.file)
            pq.write_table(rows, target / Path(part.target).name)
            progress += part.rows
            logger.info("%s of %s rows", f"{progress:,}", f"{total:,}")


def with_features(store: Any, view: Any, sources: Path, rows: pa.Table, file: str) -> pa.Table:
    """Return rows with the features of a view that they lack, null where it has none for them.

    Args:
        store: Feast's, over the tables in `sources`.
        view: A projection of the feature service.
        sources: Directory of the views' tables.
        rows: Some of a data set; those without the view's keys or a time stay as they are.
        file: Their file, to be named.

    Raises:
        UsageError: Times have no zone, or a key has another type than in the view's table.
        DataError: Feast cannot join the view.
    """
    import pyarrow as pa

    names = {one.name: declared_kind(one) for one in view.features if one.name not in rows.column_names}
    if not names or TIME not in rows.column_names:
        return rows
    keys = sorted(set(keys_of(store, view).values()))
    if absent := sorted(set(keys) - set(rows.column_names)):
        logger.warning("view %r is not joined: %s has no column %r", view.name, file, absent[0])
        return rows
    kind = rows.schema.field(TIME).type
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        raise UsageError(f"{file}: {TIME!r} is {kind}, a time without a zone.", "Say which zone it is in.")
    frame = rows.select([*keys, TIME]).to_pandas()
    frame[TIME] = frame[TIME].astype("datetime64[us, UTC]")
    timed = frame[frame[TIME].notna()]
    # Rows without a time get no feature.
    features = answers(store, view, sources, timed.reset_index(drop=True)).set_axis(timed.index).reindex(frame.index)
    for name, declared in names.items():
        rows = rows.append_column(name, pa.Array.from_pandas(as_feature(features[name], declared)[0]))
    return rows

"""Feast's online store as a replica reads it: all rows of a request at once, and nothing that is too old.

Feast's own store is opened with a registry that is read once; `features.py` opens it again where that is due.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shopfloor.data.contract import TIME
from shopfloor.data.features import feature_store
from shopfloor.data.materialization import online_project, sqlite_file
from shopfloor.serving.contract import OnlineConfig
from shopfloor.serving.model.row import Value
from shopfloor.settings import Settings

Row = dict[str, Value]

READ_TIMEOUT_S = 1.0
"""Time after which a thread gives a Redis up that its request has long stopped waiting for."""


@dataclass(frozen=True)
class View:
    """One feature view, as far as reading it goes."""

    name: str
    keys: tuple[str, ...]
    features: tuple[str, ...]
    ttl_s: float | None
    nothing: tuple[Value, ...]
    """Stand-ins for each key that a row lacks; their answers are not used."""


@dataclass
class OnlineValues:
    """What the store had for the rows of a request, by column."""

    values: dict[str, list[Value]] = field(default_factory=dict)
    expired: set[tuple[int, str]] = field(default_factory=set)
    """Row and column of values that are older than their view allows."""


@dataclass(frozen=True)
class OnlineStore:
    """Feast's store, and the views of the use case's feature service."""

    store: Any
    views: list[View]
    file: Path | None
    identity: tuple[int, int] | None
    """Device and number of the SQLite file: another one in its place is another store."""

    def gone(self) -> bool:
        """Tell whether the file is not what was opened."""
        return self.file is not None and _identity(self.file) != self.identity

    def read(self, features: list[str], rows: list[Row]) -> OnlineValues:
        """Read all rows at once, in the thread of the caller."""
        views = [
            view
            for view in self.views
            if not set(features).isdisjoint(view.features) and any(all(key in row for key in view.keys) for row in rows)
        ]
        if not views:
            return OnlineValues()
        nothing = {key: value for view in views for key, value in zip(view.keys, view.nothing, strict=True)}
        answer = self.store.get_online_features(
            features=[f"{view.name}:{name}" for view in views for name in view.features if name in features],
            entity_rows={key: [row.get(key, value) for row in rows] for key, value in nothing.items()},
        )
        values = answer.to_dict()
        names = list(answer.proto.metadata.feature_names.val)
        times = {
            name: [stamp.seconds + stamp.nanos / 1e9 for stamp in result.event_timestamps]
            for name, result in zip(names, answer.proto.results, strict=True)
            if name in features
        }
        return keep_fresh(views, {name: values[name] for name in times}, times, rows)


def keep_fresh(
    views: Sequence[View], values: Mapping[str, list[Any]], times: Mapping[str, list[float]], rows: Sequence[Row]
) -> OnlineValues:
    """Return what may be used of the store's answer: Feast hands out values that have outlived their view's ttl.

    Args:
        views: The feature views that were asked.
        values: By feature, for each row; a missing one is `None` or NaN.
        times: The event timestamps of the values, seconds since 1970.
        rows: The rows, with the time that they ask at or none, which means now.
    """
    fresh = OnlineValues()
    now = time.time()
    for view in views:
        for name in view.features:
            if name not in values:
                continue
            column: list[Value] = []
            for number, (row, value, stamp) in enumerate(zip(rows, values[name], times[name], strict=True)):
                unusable = value is None or (isinstance(value, float) and not math.isfinite(value))
                if unusable or any(key not in row for key in view.keys):
                    column.append(None)
                    continue
                row_time = row.get(TIME)
                at = row_time.timestamp() if isinstance(row_time, dt.datetime) else now
                if view.ttl_s is not None and at - stamp > view.ttl_s:
                    fresh.expired.add((number, name))
                    column.append(None)
                    continue
                column.append(value)
            fresh.values[name] = column
    return fresh


def open_store(config: OnlineConfig) -> OnlineStore:
    """Open Feast's store and read one row of nothing, which is what a first request would wait for.

    Raises:
        FileNotFoundError: Nothing was materialized yet.
        Exception: Whatever Feast and the store's client raise when it cannot be read.
    """
    from feast.errors import FeatureServiceNotFoundException

    nothing_yet = FileNotFoundError(f"there is none yet; run `shopfloor features materialize {config.use_case}`")
    file = sqlite_file(config.online_store)
    if file is not None and not file.is_file():
        raise nothing_yet
    settings = Settings(
        project_root=Path("/"),
        feature_registry=config.feature_registry,
        # Redis' client would try again for seconds, where a request has milliseconds.
        online_store=config.online_store if file else f"{config.online_store},retry=null",
        s3_endpoint_url=config.s3_endpoint_url,
        request_timeout_s=READ_TIMEOUT_S,
    )
    identity = _identity(file) if file else None
    store = feature_store(settings, online_project(config.use_case), cached=True)
    try:
        service = store.get_feature_service(config.service)
    except FeatureServiceNotFoundException as error:
        raise nothing_yet from error
    views = [_view(store.get_feature_view(projection.name)) for projection in service.feature_view_projections]
    opened = OnlineStore(store, views, file, identity)
    keys: Row = {key: value for view in views for key, value in zip(view.keys, view.nothing, strict=True)}
    opened.read([name for view in views for name in view.features], [keys])
    return opened


def _view(view: Any) -> View:
    from feast.types import String

    columns = {column.name: column.dtype for column in view.entity_columns}
    keys = tuple(sorted(view.join_keys))
    return View(
        name=view.name,
        keys=keys,
        features=tuple(feature.name for feature in view.features),
        ttl_s=view.ttl.total_seconds() if view.ttl else None,
        nothing=tuple("" if columns.get(key, String) == String else 0 for key in keys),
    )


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino

"""Puts a use case's newest feature values into Feast's online store, where its endpoint looks them up.

The views stand in a Feast project of their own, `<use_case>_online`, so that what a run joins offline is never touched.
What a use case's `features.py` may define for it is in docs/how-to/features-at-request-time.md.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shopfloor.attempts import require_newest
from shopfloor.data.features import feature_service, feature_store, keep_sources, locked, register_definitions
from shopfloor.data.versions import tables_of
from shopfloor.errors import ServiceError, ShopfloorError, UsageError, first_line
from shopfloor.records import Record
from shopfloor.settings import Settings
from shopfloor.storage import (
    EFFECT,
    Artifact,
    Metrics,
    filesystem,
    is_remote,
    join,
    local_copy,
    local_path,
    publish,
    scratch,
    write_atomically,
)
from shopfloor.use_case import load_use_case

logger = logging.getLogger(__name__)

EFFECT_KIND = "online_features"
_EARLIEST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class MaterializedView(Record):
    """What the online store got of one feature view."""

    name: str
    rows: int
    """Rows of its source, of which each entity's newest is in the store."""
    newest: dt.datetime | None
    """Event timestamp of the newest row; none where the view is empty."""


class Materialized(Record):
    """What the online store holds of a use case."""

    use_case: str
    project: str
    """Feast's project."""
    store: str
    """The online store, without a password."""
    sources: str
    """URI of the parquet files that the values come from, named after their content."""
    views: list[MaterializedView]


def online_project(use_case: str) -> str:
    """Return the name of the Feast project that a use case's online views stand in."""
    return f"{use_case}_online"


def materialize(settings: Settings, use_case: str, tables_uri: str, online: Artifact, metrics: Metrics) -> None:
    """Put the newest feature values of a data version into the online store; the step `materialize`.

    Args:
        settings: Say where Feast's registry and stores are.
        use_case: Its `features.py` says what the store holds; one without `serving.online` needs nothing there.
        tables_uri: What `pull_data` made.
        online: Gets `online.json`.
        metrics: Gets the rows of each view.

    Raises:
        ServiceError: The store does not take them.
        UsageError: The definitions have no feature service of the name that use_case.yaml gives.
    """
    record: Materialized | None = None
    if load_use_case(settings, use_case).serving.online is not None:
        record = materialize_tables(settings, use_case, local_copy(settings, tables_uri))
        online.metadata[EFFECT] = {"kind": EFFECT_KIND, "use_case": use_case, "version": record.sources}
    with publish(settings, online, "materialize") as directory:
        text = record.model_dump_json(indent=1) if record else "{}"
        (directory / "online.json").write_text(text, encoding="utf-8")
    for view in record.views if record else []:
        metrics.log_metric(f"rows_{view.name}", view.rows)


def materialize_version(settings: Settings, use_case: str, data_rev: str) -> Materialized:
    """Put the newest feature values of a data version into the online store.

    Args:
        settings: Say where the project, Feast's registry and stores are.
        use_case: Its `features.py` says what the store holds.
        data_rev: Git revision; empty means what DVC recorded in the workspace.

    Raises:
        NotFoundError: There is no such revision.
        DataError: The revision's tables are nowhere.
        ServiceError: The store does not take them.
        UsageError: The use case has no `serving.online`, or no feature service of the name that use_case.yaml gives.
    """
    case = load_use_case(settings, use_case)
    if case.serving.online is None:
        raise UsageError(
            f"The endpoint of {use_case} looks no features up.",
            "Say in serving.online what a request may send.",
        )
    with tables_of(settings, case, data_rev) as tables:
        return materialize_tables(settings, use_case, tables)


def materialize_tables(settings: Settings, use_case_name: str, tables: Path) -> Materialized:
    """Put the newest feature values that follow from `tables` into the online store.

    Killed on the way, some entities have the new values and the others the old ones; doing it again completes it.

    Raises:
        ServiceError: The store does not take them.
        UsageError: The definitions have no feature service of the name that use_case.yaml gives.
    """
    use_case = load_use_case(settings, use_case_name)
    code = use_case.code("features")
    source_tables = getattr(code, "online_tables", code.source_tables)
    definitions = getattr(code, "online_definitions", code.definitions)
    project = online_project(use_case.name)
    with scratch(settings.private_state_dir()) as directory:
        source_tables(tables, directory)
        sources = keep_sources(settings, use_case, directory)
        with _in_one_line(f"The online store {without_password(settings.online_store)} takes no features"):
            # From the files that were just made: Feast's DuckDB reads no S3. Its registry gets the places that last,
            # and gets them at the end, so that it never promises what the store does not hold.
            writer = feature_store(settings, project, registry=str(directory / "registry.db"))
            writer.apply(definitions(lambda name: str(directory / f"{name}.parquet")))
            service = feature_service(writer, use_case, " for the online store")
            views = [writer.get_feature_view(projection.name) for projection in service.feature_view_projections]
            with locked(settings, "online-store"), contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the libraries under Feast
                _let_read_while_written(settings.online_store)
                require_newest(settings)
                writer.materialize(_EARLIEST, dt.datetime.now(dt.UTC), [view.name for view in views])
                register_definitions(settings, project, definitions(lambda name: join(sources, f"{name}.parquet")))
                record = Materialized(
                    use_case=use_case.name,
                    project=project,
                    store=without_password(settings.online_store),
                    sources=sources,
                    views=[_measured(view, directory / f"{view.name}.parquet") for view in views],
                )
                require_newest(settings)
                _note(settings, record)
    return record


def materialized(settings: Settings, use_case: str) -> Materialized | None:
    """Return what was last put into the online store as a whole; `None` where nothing was, or its file is gone."""
    system, path = filesystem(settings, _note_uri(settings, use_case))
    try:
        with system.open_input_stream(path) as handle:
            record = Materialized.model_validate_json(handle.read())
    except (FileNotFoundError, ValidationError):
        return None
    file = sqlite_file(settings.online_store)
    gone = record.store != without_password(settings.online_store) or (file is not None and not file.is_file())
    return None if gone else record


def holds(settings: Settings, effect: dict[str, str]) -> bool:
    """Tell whether the online store still holds what a `materialize` step put there."""
    record = materialized(settings, effect["use_case"])
    return record is not None and record.sources == effect["version"]


def sqlite_file(online_store: str) -> Path | None:
    """Return the file of an online store that is one."""
    return Path(online_store) if "://" not in online_store else None


def without_password(online_store: str) -> str:
    """Return the store's address without a password."""
    return online_store.partition(",")[0]


def _note_uri(settings: Settings, use_case: str) -> str:
    return join(settings.artifact_root, "features", use_case, "online.json")


def _note(settings: Settings, record: Materialized) -> None:
    uri, text = _note_uri(settings, record.use_case), record.model_dump_json(indent=1)
    if not is_remote(uri):
        write_atomically(local_path(uri), text)
        return
    system, path = filesystem(settings, uri)
    with system.open_output_stream(path) as handle:  # an object is there as a whole, or not at all
        handle.write(text.encode())


def _measured(view: Any, file: Path) -> MaterializedView:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    column = view.batch_source.timestamp_field
    times = pq.read_table(file, columns=[column])[column]
    return MaterializedView(name=view.name, rows=len(times), newest=pc.max(times).as_py())


def _let_read_while_written(online_store: str) -> None:
    """Let a SQLite store be read while it is written: its mode is kept in the file."""
    file = sqlite_file(online_store)
    if file is not None:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")


@contextlib.contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Turn what Feast and a store's client raise into one line."""
    began = time.monotonic()
    try:
        yield
    except ShopfloorError:
        raise
    except Exception as error:
        raise ServiceError(f"{what}: {first_line(error)}.", "See that it answers, then do it again.") from error
    logger.info("the online store is fresh after %.1f s", time.monotonic() - began)

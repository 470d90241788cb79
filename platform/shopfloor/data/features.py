"""Features: a use case's tables and definitions through Feast's point-in-time join, split by time.

Feast owns the definitions, the registry and the join; the use case owns what a feature is (`source_tables`,
`definitions` and `rows` in its `features.py`). The result is one parquet file a split, the same bytes for the same
input.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shopfloor.errors import DataError, UsageError
from shopfloor.records import FeatureSet
from shopfloor.settings import NO_REPORTS, Settings
from shopfloor.storage import (
    Artifact,
    Metrics,
    filesystem,
    hash_directory,
    is_remote,
    join,
    local_copy,
    local_path,
    publish,
)
from shopfloor.use_case import Split, UseCase, load_use_case

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

TIME = "event_timestamp"
COARSE = 10
"""A view that changes at this many times fewer times than there are rows is asked once for each change."""


def build(settings: Settings, use_case_name: str, tables_uri: str, features: Artifact, metrics: Metrics) -> None:
    """Join the features of every row as of its time, and split the rows.

    Args:
        settings: Say where Feast's registry and stores are.
        use_case_name: Its `features.py` says what a feature is.
        tables_uri: What `pull_data` made.
        features: Gets `<split>.parquet` and `feature_set.json`.
        metrics: Gets the rows of each split and the number of features.

    Raises:
        DataError: A split has no rows, or a feature or a label is no number.
        UsageError: `rows` of features.py lacks a column, or the definitions have no feature service of the name that
            use_case.yaml gives.
    """
    use_case = load_use_case(settings, use_case_name)
    code = use_case.code("features")
    tables = local_copy(settings, tables_uri)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.state_dir, prefix=".features-") as scratch:
        made = Path(scratch)
        code.source_tables(tables, made)
        sources = keep_sources(settings, use_case, made)
        rows = code.rows(tables)
        require_rows(rows, use_case.features.target)
        frame, names = _join(settings, use_case, code, sources, made, rows)
    target = use_case.features.target
    entities = [name for name in rows.columns if name not in {TIME, target}]
    splits = _split(frame, use_case.features.split)
    optional = [name for name in names if frame[name].isna().any()]
    record = FeatureSet(
        feature_service=use_case.features.service,
        features={name: "int" if frame[name].dtype.kind in "iu" else "float" for name in names},
        optional=optional,
        target=target,
        entities=entities,
        rows={name: len(part) for name, part in splits.items()},
    )
    with publish(settings, features, "build_features") as directory:
        for name, part in splits.items():
            _write(part[[*entities, TIME, *names, target]], directory / f"{name}.parquet")
        (directory / "feature_set.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    metrics.log_metric("features", len(names))
    for name, count in record.rows.items():
        metrics.log_metric(f"rows_{name}", count)


def feature_store(settings: Settings, project: str, registry: str | None = None, cached: bool = False) -> Any:
    """Return Feast's `FeatureStore` for a use case; `feast` itself works on the same registry.

    Args:
        settings: Say where registry and stores are.
        project: Feast's project, the use case's name.
        registry: Another registry than the settings' own.
        cached: Read the registry once, and never again.
    """
    os.environ.update(NO_REPORTS)
    if settings.s3_endpoint_url:
        os.environ.setdefault("FEAST_S3_ENDPOINT_URL", settings.s3_endpoint_url)
    from feast import FeatureStore, RepoConfig

    path = registry or settings.feature_registry
    if not is_remote(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    sql = "://" in path and not path.startswith(("s3://", "gs://", "file://"))
    online: dict[str, Any]
    if settings.online_store.startswith("redis://"):
        address = settings.online_store.removeprefix("redis://")
        for limit in ("socket_timeout", "socket_connect_timeout"):  # without one, Redis' client waits for ever
            if f",{limit}=" not in address:
                address += f",{limit}={settings.request_timeout_s:g}"
        # Otherwise Redis keeps what it has where a data version mends a value without changing its time.
        online = {"type": "redis", "connection_string": address, "skip_dedup": True}
    else:
        Path(settings.online_store).parent.mkdir(parents=True, exist_ok=True)
        online = {"type": "sqlite", "path": settings.online_store}
    return FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            registry={
                "path": path,
                **({"registry_type": "sql"} if sql else {}),
                **({"cache_ttl_seconds": 0} if cached else {}),
            },
            offline_store={"type": "duckdb"},
            online_store=online,
            entity_key_serialization_version=3,
        )
    )


def feature_service(store: Any, use_case: UseCase, purpose: str = "") -> Any:
    """Return the Feast feature service of a use case.

    Args:
        store: Feast's, to which the definitions were applied.
        use_case: Gives the service's name.
        purpose: What the definitions are for, where a use case may have several; it is named in the error.

    Raises:
        UsageError: What was applied to the store has none of the name that use_case.yaml gives.
    """
    from feast.errors import FeatureServiceNotFoundException

    try:
        return store.get_feature_service(use_case.features.service)
    except FeatureServiceNotFoundException as error:
        raise UsageError(
            f"{use_case.name}: features.py defines no feature service {use_case.features.service!r}{purpose}.",
            "Name it as features.service in use_case.yaml does.",
        ) from error


def _join(
    settings: Settings, use_case: UseCase, code: Any, sources: str, made: Path, rows: pd.DataFrame
) -> tuple[pd.DataFrame, list[str]]:
    """Register the definitions and return the joined rows and the names of the features, in the service's order."""
    import pandas as pd

    with locked(settings, "feast-registry"):
        store = feature_store(settings, use_case.name)
        store.apply(code.definitions(lambda name: join(sources, f"{name}.parquet")))
    if is_remote(sources):
        # DuckDB's wheel reads no S3, so the join reads the files that were just made; the registry keeps the S3 places.
        store = feature_store(settings, use_case.name, registry=str(made / "registry.db"))
        store.apply(code.definitions(lambda name: str(made / f"{name}.parquet")))
    service = feature_service(store, use_case)
    names = [feature.name for projection in service.feature_view_projections for feature in projection.features]
    # The rows come in a fixed order, so those of one time keep it.
    frame = rows.sort_values(TIME, kind="stable", ignore_index=True)
    answers = []
    for projection in service.feature_view_projections:
        view = store.get_feature_view(projection.name)
        wanted = [f"{projection.name_to_use()}:{feature.name}" for feature in projection.features]
        changes = _changes(view, made / f"{view.name}.parquet")
        answers.append(_ask(store, wanted, frame[[*sorted(view.join_keys), TIME]], changes))
    frame = pd.concat([frame, *answers], axis=1)
    for name in names:
        frame[name] = as_numbers(frame[name])
    return frame, names


def require_rows(rows: pd.DataFrame, target: str) -> None:
    """Check that what `rows` of a features.py returned has times, and a number as label in each row.

    Raises:
        UsageError: A column is not there.
        DataError: The labels are no numbers, or some are missing.
    """
    for column, remedy in ((TIME, "Name the time so."), (target, "Mend features.target in use_case.yaml.")):
        if column not in rows.columns:
            columns = ", ".join(map(str, rows.columns))
            raise UsageError(f"rows() of features.py returns no column {column!r}, but {columns}.", remedy)
    missing = int(rows[target].isna().sum())
    if missing:
        raise DataError(
            f"The label {target!r} is missing in {missing} of {len(rows)} rows.", "Leave them out of rows()."
        )
    if as_numbers(rows[target], "label").dtype.kind not in "if":
        raise DataError(f"The label {target!r} is no number.", "Make it one in rows().")


def as_numbers(column: pd.Series[Any], what: str = "feature") -> pd.Series[Any]:
    """Return a column as int64 or float64.

    Raises:
        DataError: It holds something that is no number.
    """
    kind: Literal["int64", "float64"] = "int64" if column.dtype.kind in "iu" else "float64"
    if column.dtype == kind:
        return column
    try:
        return column.astype(kind)
    except (ValueError, TypeError) as error:
        wrong = next((value for value in column.dropna() if not _is_number(value)), column.dtype)
        raise DataError(
            f"The {what} {column.name!r} holds {wrong!r}: a {what} is a number.",
            "Turn it into numbers in features.py, e.g. a column for each of its values.",
        ) from error


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (ValueError, TypeError):
        return False
    return True


def _changes(view: Any, file: Path) -> Any:
    """Return the times at which an answer of a view can change (int64, microseconds, sorted): a row begins or expires.

    A row counts up to and with the end of its time to live, so the change comes a microsecond later.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = view.batch_source.timestamp_field
    begins = pq.read_table(file, columns=[column])[column].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    begins = np.unique(begins)
    if not view.ttl:
        return begins
    return np.unique(np.concatenate([begins, begins + int(view.ttl.total_seconds() * 1_000_000) + 1]))


def _ask(store: Any, wanted: list[str], rows: pd.DataFrame, changes: Any) -> pd.DataFrame:
    """Return a view's features for `rows` (its keys and the time), in their order.

    Feast's join compares every row with every earlier one of its key: for a view whose rows come by the hour, asking
    once for each key and time between two changes, at the last change before a row's own time, gives the same answers
    to a fraction of the questions.
    """
    import numpy as np
    import pandas as pd

    if len(changes) * COARSE > len(rows):
        number: Any = np.arange(len(rows))
        questions = rows.assign(number=number)
    else:
        own = rows[TIME].astype("datetime64[us, UTC]").astype("int64").to_numpy()
        last = np.searchsorted(changes, own, side="right") - 1
        times = pd.Series(np.where(last >= 0, changes[last], own))
        keys = rows.drop(columns=TIME)
        number = keys.assign(time=times).groupby([*keys, "time"], sort=False, dropna=False).ngroup().to_numpy()
        _, first = np.unique(number, return_index=True)
        questions = keys.iloc[first].assign(number=np.arange(len(first)))
        questions[TIME] = pd.to_datetime(times.iloc[first], unit="us", utc=True)
    answers = store.get_historical_features(entity_df=questions, features=wanted).to_df().sort_values("number")
    found: pd.DataFrame = answers[[name.partition(":")[2] for name in wanted]].take(number)
    return found.reset_index(drop=True)


def keep_sources(settings: Settings, use_case: UseCase, made: Path) -> str:
    """Keep the sources of the features behind a stable URI named after their content, and return it."""
    for file in sorted(made.glob("*.parquet")):
        _in_microseconds(file)
    uri = join(settings.artifact_root, "features", use_case.name, hash_directory(made)[:16])
    if is_remote(uri):
        from pyarrow import fs

        target, path = filesystem(settings, uri)
        fs.copy_files(str(made), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=target)
    elif not local_path(uri).exists():
        place = local_path(uri)
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=".staging-"))
        shutil.copytree(made, staging, dirs_exist_ok=True)
        staging.chmod(0o755)
        try:
            staging.rename(place)
        except OSError:  # another run kept the same content a moment ago
            shutil.rmtree(staging)
    return uri


def _split(frame: pd.DataFrame, split: Split) -> dict[str, pd.DataFrame]:
    parts: dict[str, pd.DataFrame] = {}
    for name, (begin, end) in split.intervals().items():
        low, high = (dt.datetime.combine(day, dt.time(), dt.UTC) for day in (begin, end))
        part = frame[(frame[TIME] >= low) & (frame[TIME] < high)]
        if part.empty and name != "monitor":
            raise DataError(
                f"Split {name!r} from {begin} to {end} has no rows; the data go from {frame[TIME].min()} to "
                f"{frame[TIME].max()}.",
                "Mend features.split in use_case.yaml, or pull other data.",
            )
        parts[name] = part
    return parts


def _in_microseconds(file: Path) -> None:
    """Write a file anew whose times are in nanoseconds, as pandas leaves them: DuckDB, under Feast, compares none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    coarse = [
        field.with_type(pa.timestamp("us", field.type.tz))
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns"
        else field
        for field in schema
    ]
    if coarse != list(schema):
        pq.write_table(pq.read_table(file).cast(pa.schema(coarse), safe=False), file)


def _write(frame: pd.DataFrame, file: Path) -> None:
    """Write parquet without pandas' own metadata, which would vary with its version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, file, compression="zstd", coerce_timestamps="us", store_schema=False)


@contextlib.contextmanager
def locked(settings: Settings, name: str) -> Iterator[None]:
    """Let one process at a time write, e.g. Feast's registry file, which Feast replaces as a whole."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (settings.state_dir / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

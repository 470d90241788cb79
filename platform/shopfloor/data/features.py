"""Features by Feast: a use case's tables and definitions through its point-in-time join.

Feast owns the definitions, the registry and the join; the use case owns what a feature is (`source_tables`,
`definitions` and `rows` in its `features.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shopfloor.data.contract import TIME, as_feature, declared_kind, labelled, require_names, require_rows, require_view
from shopfloor.environment import NO_REPORTS
from shopfloor.errors import ConflictError, DataError, ServiceError, UsageError, first_line
from shopfloor.records import Kind
from shopfloor.settings import Settings
from shopfloor.storage import (
    filesystem,
    hash_directory,
    is_remote,
    join,
    local_path,
    move_synced,
    scratch,
)
from shopfloor.use_case import UseCase

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

S3_REGISTRY = "shopfloor.data.feast_registry.PrefixRegistryStore"
"""What reads a registry in S3, by its name: Feast imports it."""
WAIT_S = 600.0
"""How long a process waits for another one that writes."""
COARSE = 10
"""A view that changes at this many times fewer times than there are rows is asked once for each change."""


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
        if password := os.environ.get("REDIS_PASSWORD"):
            address += f",password={password}"
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
                # Otherwise nobody reads online features while somebody materializes by hand.
                **({"registry_type": "sql", "serve_features_while_materializing": True} if sql else {}),
                **({"registry_store_type": S3_REGISTRY} if path.startswith("s3://") else {}),
                **({"cache_ttl_seconds": 0} if cached else {}),
            },
            offline_store={"type": "duckdb"},
            online_store=online,
            entity_key_serialization_version=3,
        )
    )


def register_definitions(settings: Settings, project: str, definitions: list[Any]) -> Any:
    """Write definitions into Feast's registry, one process of this machine at a time.

    Args:
        settings: Say where the registry is.
        project: Feast's project.
        definitions: Feast's objects.

    Returns:
        Feast's store over the registry.

    Raises:
        ServiceError: The database, bucket or file does not take them.
        ConflictError: Another process has written for minutes.
    """
    with locked(settings, "feast-registry"):
        try:
            store = feature_store(settings, project)
            store.apply(definitions)
        except Exception as error:
            from botocore.exceptions import BotoCoreError, ClientError
            from sqlalchemy.exc import SQLAlchemyError

            if not isinstance(error, (BotoCoreError, ClientError, OSError, SQLAlchemyError)):
                raise
            raise ServiceError(
                f"Feast's registry {settings.feature_registry} takes no definitions: {first_line(error, 300)}.",
                "See that it answers and lets you in, then do it again.",
            ) from error
    return store


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
        return store.get_feature_service(use_case.features.service or "")
    except FeatureServiceNotFoundException as error:
        raise _no_service(use_case, purpose) from error


def _no_service(use_case: UseCase, purpose: str = "") -> UsageError:
    return UsageError(
        f"{use_case.name}: features.py defines no feature service {use_case.features.service!r}{purpose}.",
        "Name it as features.service in use_case.yaml does.",
    )


def joined(settings: Settings, use_case: UseCase, tables: Path) -> tuple[pd.DataFrame, dict[str, Kind], int]:
    """Join the features of every row of a use case as of its time.

    Args:
        settings: Say where Feast's registry and stores are.
        use_case: Its `features.py` says what a feature is.
        tables: Directory with the parquet files of the data version.

    Returns:
        The rows by rising time, with their features; the kind of each feature, in the service's order; the number of
        rows that have no time and are left out.

    Raises:
        DataError: A feature is not what it is declared to be, or a label is none of the task.
        UsageError: `features.py` does not keep to its contract; the view and the column are named.
    """
    code = use_case.code("features")
    with scratch(settings.private_state_dir()) as directory:
        everything = labelled(code.rows(tables), use_case.features)
        rows = require_rows(everything, use_case.features.target, use_case.task)
        code.source_tables(tables, directory)
        sources = keep_sources(settings, use_case, directory)
        frame, kinds = _join(settings, use_case, code, sources, directory, rows)
    return frame, kinds, len(everything) - len(rows)


def _join(
    settings: Settings, use_case: UseCase, code: Any, sources: str, directory: Path, rows: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Kind]]:
    """Register the definitions and return the joined rows and the kinds of the features, in the service's order."""
    import pandas as pd

    definitions = code.definitions(lambda name: join(sources, f"{name}.parquet"))
    store = register_definitions(settings, use_case.name, definitions)
    if is_remote(sources):
        # DuckDB's wheel reads no S3, so the join reads the files that were just made; the registry keeps the S3 places.
        store = store_over(settings, use_case, directory)
    service = feature_service(store, use_case)
    require_names(use_case, rows, service)
    declared = {
        feature.name: declared_kind(feature)
        for projection in service.feature_view_projections
        for feature in projection.features
    }
    # The rows come in a fixed order, so those of one time keep it.
    frame = rows.sort_values(TIME, kind="stable", ignore_index=True)
    views = [answers(store, projection, directory, frame) for projection in service.feature_view_projections]
    frame = pd.concat([frame, *views], axis=1)
    kinds: dict[str, Kind] = {}
    for name, kind in declared.items():
        frame[name], kinds[name] = as_feature(frame[name], kind)
    return frame, kinds


def declared_service(use_case: UseCase) -> Any:
    """Return the Feast feature service of a use case as its `features.py` defines it, known to no registry.

    Raises:
        NotFoundError: The use case has no `features.py`.
        UsageError: It defines no service of the name that use_case.yaml gives.
    """
    from feast import FeatureService

    objects = use_case.code("features").definitions(lambda name: f"{name}.parquet")
    for one in objects:
        if isinstance(one, FeatureService) and one.name == use_case.features.service:
            return one
    raise _no_service(use_case)


def store_over(settings: Settings, use_case: UseCase, directory: Path) -> Any:
    """Return Feast's store for the tables of a use case's views in a directory, which holds its registry too."""
    own = settings.model_copy(update={"online_store": str(directory / "online.db")})
    store = feature_store(own, use_case.name, registry=str(directory / "registry.db"))
    store.apply(use_case.code("features").definitions(lambda name: str(directory / f"{name}.parquet")))
    return store


def keys_of(store: Any, projection: Any) -> dict[str, str]:
    """Return for each join key of a service's view the column of the rows that is compared with it.

    Raises:
        UsageError: It is no view of a table.
    """
    from feast.errors import FeatureViewNotFoundException
    from feast.feature_view import DUMMY_ENTITY_ID

    try:
        view = store.get_feature_view(projection.name)
    except FeatureViewNotFoundException as error:
        raise UsageError(
            f"{projection.name!r} in the feature service is no view of a table.", "Compute it in source_tables."
        ) from error
    return {key: projection.join_key_map.get(key, key) for key in view.join_keys if key != DUMMY_ENTITY_ID}


def answers(store: Any, projection: Any, directory: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the features of one view for each row of a frame, in its order.

    Args:
        store: Feast's, over the tables in `directory`.
        projection: The view, as the feature service has it.
        directory: Its files are the views' tables.
        frame: The rows' keys and their times; the index is 0, 1, 2 and so on.

    Raises:
        UsageError: The view's table or the rows do not fit the definitions.
        DataError: Feast cannot join it.
    """
    renamed = keys_of(store, projection)
    view = store.get_feature_view(projection.name)
    if absent := sorted(set(renamed.values()) - set(frame.columns)):
        raise UsageError(f"rows() has no column {absent[0]!r}, a key of view {view.name!r}.", "Add it to rows().")
    file = directory / f"{view.name}.parquet"
    require_view(view, file, {key: frame[column] for key, column in renamed.items()})
    names = [f"{projection.name_to_use()}:{feature.name}" for feature in projection.features]
    try:
        return _ask(store, names, frame[[*sorted(renamed.values()), TIME]], _changes(view, file))
    except Exception as error:  # of Feast and of the libraries under it
        raise DataError(f"Feast cannot join view {view.name!r}: {first_line(error)}.", "--debug says more.") from error


def _changes(view: Any, file: Path) -> Any:
    """Return the times at which an answer of a view can change (int64, microseconds, sorted): a row begins or expires.

    A row counts up to and with the end of its time to live, so the change comes a microsecond later.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = view.batch_source.timestamp_field
    times = pq.read_table(file, columns=[column])[column]
    if len(times) == times.null_count:
        logger.warning("view %r has no row with a time: all of its features are missing", view.name)
    elif times.null_count:
        logger.warning("%s rows of view %r have no %s and are left out", f"{times.null_count:,}", view.name, column)
    begins = np.unique(times.drop_null().cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy())
    if not view.ttl:
        return begins
    return np.unique(np.concatenate([begins, begins + int(view.ttl.total_seconds() * 1_000_000) + 1]))


def _ask(store: Any, references: list[str], rows: pd.DataFrame, changes: Any) -> pd.DataFrame:
    """Return a view's features for `rows` (its keys and the time), in their order.

    Feast's join compares every row with every earlier one of its key: for a view whose rows come by the hour, asking
    once for each key and time between two changes, at the last change before a row's own time, gives the same answers
    to a fraction of the questions.
    """
    import numpy as np
    import pandas as pd

    names = [name.partition(":")[2] for name in references]
    if not len(changes):
        return pd.DataFrame({name: np.full(len(rows), np.nan) for name in names})
    row = "row"
    while row in {*rows.columns, *names}:
        row += "_"
    if len(changes) * COARSE > len(rows):
        number: Any = np.arange(len(rows))
        questions = rows.assign(**{row: number})
    else:
        own = rows[TIME].astype("datetime64[us, UTC]").astype("int64").to_numpy()
        last = np.searchsorted(changes, own, side="right") - 1
        times = pd.Series(np.where(last >= 0, changes[last], own))
        keys = rows.drop(columns=TIME).reset_index(drop=True)
        number = keys.assign(**{TIME: times}).groupby([*keys, TIME], sort=False, dropna=False).ngroup().to_numpy()
        _, first = np.unique(number, return_index=True)
        questions = keys.iloc[first].assign(**{row: np.arange(len(first))})
        questions[TIME] = pd.to_datetime(times.iloc[first], unit="us", utc=True)
    answers = store.get_historical_features(entity_df=questions, features=references).to_df().sort_values(row)
    columns: pd.DataFrame = answers[names].take(number)
    return columns.reset_index(drop=True)


def keep_sources(settings: Settings, use_case: UseCase, directory: Path) -> str:
    """Keep the sources of the features behind a stable URI named after their content, and return it."""
    for file in sorted(directory.glob("*.parquet")):
        in_microseconds(file)
    uri = join(settings.artifact_root, "features", use_case.name, hash_directory(directory)[:16])
    if is_remote(uri):
        from pyarrow import fs

        target, path = filesystem(settings, uri)
        fs.copy_files(str(directory), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=target)
    elif not local_path(uri).exists():
        place = local_path(uri)
        place.parent.mkdir(parents=True, exist_ok=True)
        with scratch(place.parent) as staging:
            shutil.copytree(directory, staging, dirs_exist_ok=True)
            staging.chmod(0o755)
            try:
                move_synced(staging, place)
            except OSError:
                if not place.exists():  # else another run kept the same content a moment ago
                    raise
    return uri


def in_microseconds(file: Path) -> None:
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


@contextlib.contextmanager
def locked(settings: Settings, name: str) -> Iterator[None]:
    """Let one process at a time write, e.g. Feast's registry file, which Feast replaces as a whole.

    Raises:
        ConflictError: Another process writes for longer than `WAIT_S`.
    """
    import filelock

    settings.private_state_dir()
    file = settings.state_dir / f"{name}.lock"
    try:
        with filelock.FileLock(file, timeout=WAIT_S):
            yield
    except filelock.Timeout as error:
        raise ConflictError(
            f"Another process has held {file} for {WAIT_S:g} s.", "Wait for it, or end it: fuser names it."
        ) from error

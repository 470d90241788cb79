"""What a model learns from: the rows of a use case with their features, split.

The features come from Feast, or are the columns of a table as they stand. The result is one parquet file a split, the
same bytes for the same input.
"""

from __future__ import annotations

import base64
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shopfloor.data.contract import TIME, as_feature, classes_of, labelled, of_numbers, require_rows
from shopfloor.data.splits import split
from shopfloor.errors import DataError, UsageError
from shopfloor.records import FeatureSet, Kind
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, Metrics, local_copy, publish
from shopfloor.use_case import FeaturesSection, UseCase, load_use_case

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

logger = logging.getLogger(__name__)

FEW_VALUES = 50
"""A text column with no more values than that in the training set is described by them."""
ROWS_A_VALUE = 5
"""Rows of the training set for each value at least, for these to be called few."""
VALUE_CHARACTERS = 100
RESERVED = {"prediction", "model_version", TIME}
"""Columns that batch runs write, and the name that the time of a row gets."""


def build(settings: Settings, use_case_name: str, tables_uri: str, features: Artifact, metrics: Metrics) -> None:
    """Give every row its features, and split the rows.

    Args:
        settings: Say where Feast's registry and stores are.
        use_case_name: Its `features` section says where features come from.
        tables_uri: What `pull_data` made.
        features: Gets `<split>.parquet` and `feature_set.json`.
        metrics: Gets the rows of each split, those without a time, and the number of features.

    Raises:
        DataError: A split has no rows or one class, a feature is not what it is declared to be, or a label is none of
            the task.
        UsageError: `features.py`, or the table, does not fit what use_case.yaml says; the column is named.
    """
    use_case = load_use_case(settings, use_case_name)
    tables = local_copy(settings, tables_uri)
    section = use_case.features
    if section.source is None:
        from shopfloor.data.features import joined

        frame, kinds, timeless = joined(settings, use_case, tables)
        origin = str(section.service)
    else:
        frame, kinds, timeless = rows_of_table(use_case, tables / f"{section.source}.parquet")
        origin = f"table {section.source}"
    target, names = section.target, list(kinds)
    splits = split(frame, use_case)
    entities = [name for name in frame.columns if name not in {TIME, target, *names}]
    texts = [name for name, kind in kinds.items() if kind == "str"]
    values = _values(splits["train"], texts)
    _require_closed(section.closed, values, splits)
    record = FeatureSet(
        feature_service=origin,
        features=kinds,
        optional=[name for name in names if frame[name].isna().any()],
        values=values,
        closed=section.closed,
        lengths=_lengths(frame, [name for name, kind in kinds.items() if kind == "numbers"]),
        target=target,
        classes=classes_of(splits, target) if use_case.task == "multiclass" else [],
        entities=entities,
        rows={name: len(part) for name, part in splits.items()},
    )
    with publish(settings, features, "build_features") as directory:
        columns = [*entities, *([TIME] if TIME in frame.columns else []), *names, target]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: _write(splits[name][columns], directory / f"{name}.parquet"), splits))
        (directory / "feature_set.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    metrics.log_metric("features", len(names))
    metrics.log_metric("rows_without_time", timeless)
    for name, count in record.rows.items():
        metrics.log_metric(f"rows_{name}", count)


def rows_of_table(use_case: UseCase, file: Path) -> tuple[pd.DataFrame, dict[str, Kind], int]:
    """Return the rows of a table as they stand.

    Args:
        use_case: Its `features` section says what each column is for.
        file: The table, a parquet file.

    Returns:
        The rows, by rising time where they have one; the kind of each input, in the table's order; the number of rows
        that have no time and are left out.

    Raises:
        DataError: A column holds what no model takes, or a label is missing or none of the task.
        UsageError: The table has no column that use_case.yaml names, has one twice, or one of a reserved name.
    """
    import pyarrow.parquet as pq

    section = use_case.features
    table = pq.ParquetFile(file).read()
    where = f" in table {section.source!r}"
    inputs = _inputs(section, table, where)
    for name in section.files:
        table = _with_contents(table, name, file.parent, where)
    if section.time is not None:
        table = table.rename_columns([TIME if name == section.time else name for name in table.column_names])
    arrays = {name: _readable(table, name, where) for name in inputs}
    frame = table.drop_columns(inputs).to_pandas()
    if section.time is not None:
        frame[TIME], _ = as_feature(frame[TIME].rename(section.time), "datetime", where)
        frame[TIME] = frame[TIME].dt.tz_localize("UTC")
    if not len(frame):
        raise DataError(f"The table {section.source!r} has no rows.", "Pull or make other data.")
    kinds: dict[str, Kind] = {}
    features = {}
    for name, (array, declared) in arrays.items():
        features[name], kinds[name] = as_feature(array.to_pandas().rename(name), declared, where)
        if features[name].isna().all():
            raise DataError(
                f"The column {name!r}{where} has no value in a row.",
                "Name it in features.leave_out of use_case.yaml.",
            )
    whole = labelled(frame.assign(**features), section)
    rows = require_rows(whole, section.target, use_case.task, timed=section.time is not None)
    if section.time is not None:
        rows = rows.sort_values(TIME, kind="stable", ignore_index=True)
    return rows, kinds, len(whole) - len(rows)


def _inputs(section: FeaturesSection, table: pa.Table, where: str) -> list[str]:
    """Return the columns that the model gets, in the table's order."""
    names = table.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"The column {twice[0]!r} stands twice{where}.", "Give each a name of its own.")
    column = getattr(section.split, "column", None)
    for key, wanted in (
        ("target", [section.target]),
        ("time", [section.time] if section.time else []),
        ("inputs", section.inputs),
        ("leave_out", section.leave_out),
        ("files", section.files),
        ("split.column", [column] if column else []),
    ):
        if absent := [name for name in wanted if name not in names]:
            listed = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
            raise UsageError(
                f"features.{key} of use_case.yaml names {absent[0]!r}, which is no column{where}; it has {listed}.",
                "Mend one of them.",
            )
    others = {section.target, section.time, *section.leave_out, *([column] if column else [])}
    inputs = section.inputs or [name for name in names if name not in others]
    if not inputs:
        raise UsageError(f"No column is left for the model{where}.", "Mend features.leave_out of use_case.yaml.")
    for name in inputs:
        if name in RESERVED or not name.strip():
            raise UsageError(
                f"The name {name!r} of a column{where} is {'reserved' if name.strip() else 'empty'}.",
                "Rename it, or name it in features.leave_out of use_case.yaml.",
            )
    return [name for name in names if name in inputs]


def _with_contents(table: pa.Table, name: str, directory: Path, where: str) -> pa.Table:
    """Return the table with the content of the files that a column names in the place of their names.

    Raises:
        DataError: A name is none of a file in the directory.
    """
    import pyarrow as pa

    root, texts = directory.resolve(), []
    for number, value in enumerate(table[name].to_pylist(), 1):
        place = (root / str(value)).resolve()
        if value is not None and not (place.is_relative_to(root) and place.is_file()):
            raise DataError(
                f"The column {name!r}{where} names {str(value)[:200]!r} in row {number}: the data have no such file.",
                "Name files by their path within data.path, and let DVC track them beside the table.",
            )
        texts.append(None if value is None else base64.b64encode(place.read_bytes()).decode())
    return table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))


def _readable(table: pa.Table, name: str, where: str) -> tuple[pa.ChunkedArray, str]:
    """Return a column of a type that pandas has, and what it is declared to be.

    Raises:
        DataError: No model takes such a column.
    """
    import pyarrow as pa

    array = table[name]
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind, types = array.type, pa.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return array, "str"
    if types.is_boolean(kind):
        return array, "bool"
    if types.is_timestamp(kind) or types.is_date(kind):
        return array.cast(pa.timestamp("us", getattr(kind, "tz", None))), "datetime"
    if types.is_decimal(kind):
        return array.cast(pa.float64()), "float"
    if types.is_integer(kind):
        return _fitting(array, name, where), "int"
    if types.is_floating(kind) or types.is_null(kind):
        return array.cast(pa.float64()), "float"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return array, "bytes"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return of_numbers(array, name, where), "numbers"
    raise DataError(
        f"The column {name!r}{where} is {kind}: the model gets numbers and lists of them, texts, yes or no, times, and "
        "bytes.",
        "Make columns of it, or name it in features.leave_out of use_case.yaml.",
    )


def _fitting(array: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    import pyarrow as pa

    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"The column {name!r}{where} holds a number of more than 64 bits with a sign.",
            "Make it a floating-point number, or a text.",
        ) from error


def _values(rows: pd.DataFrame, names: list[str]) -> dict[str, list[str]]:
    """Return the values of the columns that have few."""
    values: dict[str, list[str]] = {}
    for name in names:
        texts = rows[name].dropna().unique().tolist()
        most = min(FEW_VALUES, len(rows) // ROWS_A_VALUE)
        if 0 < len(texts) <= most and max(map(len, texts)) <= VALUE_CHARACTERS:
            values[name] = sorted(texts)
    return values


def _require_closed(names: list[str], values: dict[str, list[str]], splits: dict[str, pd.DataFrame]) -> None:
    """Check that texts of which all values are known have few, and no split another one.

    Raises:
        UsageError: A name is no text with few values.
        DataError: A split has a value that the training set lacks.
    """
    for name in names:
        if name not in values:
            raise UsageError(
                f"features.closed of use_case.yaml names {name!r}, which is no text of at most {FEW_VALUES} values in "
                "the training set.",
                "Leave it out there.",
            )
        for split_name, rows in splits.items():
            strangers = sorted(set(rows[name].dropna().unique()) - set(values[name]))
            if strangers:
                raise DataError(
                    f"{name!r} is {strangers[0]!r} in split {split_name!r} and in no row of split 'train', and "
                    "features.closed says that there is no other value.",
                    "Leave it out there, or mend features.split in use_case.yaml.",
                )


def _lengths(rows: pd.DataFrame, names: list[str]) -> dict[str, int]:
    """Return the length of the lists of each column where all are of one."""
    lengths = {name: set(rows[name].dropna().map(len)) for name in names}
    return {name: int(next(iter(found))) for name, found in lengths.items() if len(found) == 1}


def _write(frame: Any, file: Path) -> None:
    """Write parquet without pandas' own metadata, which would vary with its version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, file, compression="zstd", coerce_timestamps="us", store_schema=False)

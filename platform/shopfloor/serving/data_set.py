"""A parquet data set on its way to a model: its parts, their partition columns, and which rows are refused.

A part is some row groups of one file. What `/predict` answers with 422 is refused here too, with the file and the
column named: a value is missing where the model needs one, is not finite, or is no whole number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shopfloor.errors import NotFoundError, UsageError
from shopfloor.serving.model.row import ARRAY, FLOAT32_MAX, INT32, INT64, WHOLE_IN_FLOAT, Column
from shopfloor.settings import Settings
from shopfloor.storage import filesystem, is_remote, join

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

PREDICTION = "prediction"
VERSION = "model_version"
_WHOLE = {"integer": INT32, "long": INT64}
_REAL = {"float", "double"}
_IN_FRAMES = {"integer": "int32", "long": "int64", "float": "float32", "double": "float64", "boolean": "bool"}


@dataclass(frozen=True)
class Part:
    """Some row groups of one file, and where their predictions go."""

    file: str
    first: int
    last: int
    """The first row group that does not belong to it."""
    rows: int
    target: str
    partition: dict[str, Any] = field(default_factory=dict)
    """Columns that the file's directory says, as in `shop=eu/`."""


def parts_of(
    settings: Settings, data: str, target: str, version: str, columns: Sequence[Column], rows_per_part: int
) -> list[Part]:
    """Return the parts of a data set; what has no rows is in none.

    Args:
        settings: Say where an S3 store is.
        data: The data set, a file or a directory.
        target: Directory of the predictions.
        version: The model's, to be named in errors.
        columns: The model's; they must be in every file, or in the name of its directory.
        rows_per_part: Rows of a part, unless a single row group has more.

    Raises:
        NotFoundError: There is no parquet file.
        UsageError: A file is no parquet, or does not fit the model; it and the column are named.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    system, path = filesystem(settings, data)
    files = _files(system, path)
    scheme = data.partition("://")[0] + "://" if is_remote(data) else ""
    if not files:
        raise NotFoundError(f"There is no parquet file in {data}.", "Files must end in .parquet.")
    partitions = _partitions(path, files)
    parts: list[Part] = []
    for file, partition in zip(files, partitions, strict=True):
        try:
            with pq.ParquetFile(file, filesystem=system) as parquet:
                schema = with_partition(parquet.schema_arrow.empty_table(), partition).schema
                counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
        except pa.ArrowInvalid as error:
            raise UsageError(f"{file} is no parquet file: {error}.", "Remove or mend it.") from error
        _require_columns(file, schema, version, columns)
        begin = 0
        while begin < len(counts):
            end, rows = begin + 1, counts[begin]
            while end < len(counts) and rows + counts[end] <= rows_per_part:
                rows += counts[end]
                end += 1
            if rows:
                name = join(target, f"part-{len(parts):05}.parquet")
                parts.append(Part(f"{scheme}{file}", begin, end, rows, name, partition))
            begin = end
    return parts


def with_partition(rows: Any, partition: dict[str, Any]) -> Any:
    """Return a table or a batch with the columns that its directory says, where it has none of that name itself."""
    import pyarrow as pa

    for name, value in partition.items():
        if name not in rows.schema.names:
            rows = rows.append_column(name, pa.repeat(pa.scalar(value), len(rows)))
    return rows


def require_values(file: str, columns: Sequence[Column], rows: pa.RecordBatch, matrix: np.ndarray | None) -> None:
    """Refuse rows that the endpoint would refuse.

    Args:
        file: To be named.
        columns: The model's.
        rows: Its columns in that order.
        matrix: The same numbers, NaN where one is missing, if they are at hand.

    Raises:
        UsageError: A value is missing, not finite, too large or no whole number; the column is named.
    """
    import pyarrow as pa

    for index, column in enumerate(columns):
        values = rows.column(index)
        if values.null_count and column.required:
            raise _refused(file, column, "is missing in a row")
        kind = values.type
        if column.closed and not set(values.unique().to_pylist()) <= {*column.values, None}:
            raise _refused(file, column, f"is none of {', '.join(map(repr, column.values))} in a row")
        if column.type == ARRAY:
            _require_lists(file, column, values)
        if pa.types.is_integer(kind) and column.type in _WHOLE:
            _require_range(file, column, values)
        elif pa.types.is_floating(kind) and column.type in _WHOLE | dict.fromkeys(_REAL):
            at_hand = matrix is not None and column.type in _REAL  # in 32 bits a fraction may be lost
            numbers = matrix[:, index] if at_hand and matrix is not None else values.to_numpy(zero_copy_only=False)
            if problem := _wrong(numbers, column):
                raise _refused(file, column, problem)


def _require_lists(file: str, column: Column, values: Any) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(values.type):
        return
    numbers = pc.list_flatten(values)
    if numbers.null_count or not pc.all(pc.is_finite(numbers.cast(pa.float64())), min_count=0).as_py():
        raise _refused(file, column, "has a list in which a number is missing or not finite")
    if column.length is not None and set(pc.list_value_length(values).unique().to_pylist()) - {column.length, None}:
        raise _refused(file, column, f"has a list that is not {column.length} numbers long")


def _wrong(numbers: np.ndarray, column: Column) -> str:
    """Return what is wrong with numbers, NaN where one is missing; a sum is finite where they all are."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(numbers.sum()):
            if column.required and np.isnan(numbers).any():
                return "is missing in a row"
            if np.isinf(numbers).any():
                return f"is not finite, or more than {FLOAT32_MAX:.3g}, in a row"
        limit = WHOLE_IN_FLOAT if column.kind == "int" else _WHOLE.get(column.type)
        values = numbers[~np.isnan(numbers)] if limit or column.kind else numbers
        if limit and ((values != np.floor(values)).any() or (np.abs(values) > limit).any()):
            return "is no whole number in a row, or too large a one"
        if column.kind == "bool" and not np.isin(values, (0, 1)).all():
            return "is neither yes nor no in a row"
    return ""


def _require_range(file: str, column: Column, values: Any) -> None:
    import pyarrow.compute as pc

    if column.type == "long" and values.type.bit_width <= 64 and str(values.type) != "uint64":
        return
    ends = pc.min_max(values).as_py()
    limit = _WHOLE[column.type]
    if ends["max"] is not None and not -limit - 1 <= ends["min"] <= ends["max"] <= limit:
        raise _refused(file, column, f"is outside of {-limit - 1} to {limit} in a row")


def _refused(file: str, column: Column, problem: str) -> UsageError:
    return UsageError(
        f"{file}: column {column.name!r} {problem}.", "The endpoint refuses it too; mend or leave out such rows."
    )


def _files(system: Any, path: str) -> list[str]:
    from pyarrow import fs

    info = system.get_file_info(path)
    if info.is_file:
        return [path]
    infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    hidden = [item for item in infos if any(part.startswith((".", "_")) for part in item.path[len(path) :].split("/"))]
    return sorted(item.path for item in infos if item.is_file and item.extension == "parquet" and item not in hidden)


def _partitions(path: str, files: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each file what the directories below the data set's say (`shop=eu`), numbers where all are numbers."""
    from urllib.parse import unquote

    folders = [file.removeprefix(path).split("/")[:-1] for file in files]
    texts = [dict(folder.split("=", 1) for folder in inside if "=" in folder) for inside in folders]
    whole = {
        name: all(other[name].isdecimal() for other in texts if name in other) for values in texts for name in values
    }
    return [{name: int(text) if whole[name] else unquote(text) for name, text in values.items()} for values in texts]


def _require_columns(file: str, schema: pa.Schema, version: str, columns: Sequence[Column]) -> None:
    import pyarrow as pa

    for name in (PREDICTION, VERSION):
        if name in schema.names:
            raise UsageError(
                f"{file} has a column {name!r} already: it was scored before.", "Leave the column out, or rename it."
            )
    for column in columns:
        if column.name not in schema.names:
            raise UsageError(
                f"{file} has no column {column.name!r}.",
                f"Version {version} needs it. Or name the entities, and the time as event_timestamp, to look it up by.",
            )
        kind = schema.field(column.name).type
        if not _fits(kind, column) and not pa.types.is_null(kind):
            wanted = {"int": "a whole number", "bool": "boolean"}.get(column.kind, column.type)
            raise UsageError(f"{file}: column {column.name!r} is {kind}.", f"Version {version} needs it as {wanted}.")


def _fits(kind: pa.DataType, column: Column) -> bool:
    """Tell whether values of a type of Arrow's can be those of a column."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind):
        return column.type == "boolean" or column.kind == "bool"
    if types.is_integer(kind) or types.is_floating(kind):
        return column.type in _WHOLE or column.type in _REAL
    if types.is_decimal(kind):
        return column.type in _REAL
    if types.is_timestamp(kind) or types.is_date(kind):
        return column.type == "datetime"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = kind.value_type
        return column.type == ARRAY and (types.is_floating(inner) or types.is_integer(inner))
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return column.type == "binary"
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return texts and column.type == "string"


def frame_of(columns: Sequence[Column], rows: pa.RecordBatch) -> pd.DataFrame:
    """Return rows as a model gets them that has no quick way in: of the types that its signature names.

    Args:
        columns: The model's; none: the rows are its own affair.
        rows: They have passed `require_values`.
    """
    import pandas as pd
    import pyarrow as pa

    if not columns:
        whole: pd.DataFrame = rows.to_pandas()
        return whole
    series: dict[str, pd.Series[Any]] = {}
    for column in columns:
        array = rows.column(column.name)
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        values = array.to_pandas()
        if column.type == "datetime":
            series[column.name] = pd.to_datetime(values, utc=True).dt.tz_localize(None)
        elif column.type == ARRAY:
            lists = values.map(lambda one: None if one is None else one.astype("float64"))
            series[column.name] = lists.astype(object)
        elif column.type in {"string", "binary"}:
            texts = values.astype(object)
            series[column.name] = texts.where(texts.notna(), None)
        else:
            complete = column.required or column.type in _REAL
            series[column.name] = values.astype(_IN_FRAMES[column.type]) if complete else values
    return pd.DataFrame(series)

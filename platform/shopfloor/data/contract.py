"""What `features.py` must keep to, and what a column may hold: an error names the view, or the table, and the column.

It is looked at before Feast is asked. Feast and the libraries under it would say the same in words of their own (or not
at all: a number beyond 64 bits becomes negative, a time without a zone means another hour on another machine).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shopfloor.errors import DataError, UsageError
from shopfloor.records import Kind
from shopfloor.use_case import FeaturesSection, Task, UseCase

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

logger = logging.getLogger(__name__)

TIME = "event_timestamp"
_LARGEST = 2**63 - 1
_WHOLE = 2**53
"""Up to here a floating-point number holds every whole one."""
_YEARS = (1678, 2261)
"""Years whose times pandas counts in nanoseconds, as MLflow has it do."""
_OF_FEAST = {"String": "str", "Bool": "bool", "UnixTimestamp": "datetime", "Bytes": "bytes"}
_ZONE = "Say which zone it is in, such as frame[...].dt.tz_localize('UTC')."


def labelled(rows: pd.DataFrame, section: FeaturesSection) -> pd.DataFrame:
    """Return the rows that have a label, where the use case leaves out the others; how many those are is said.

    Args:
        rows: With the label, or without its column: that is told by `require_rows`.
        section: Says what becomes of rows without a label.
    """
    target = section.target
    if section.unlabelled == "refuse" or target not in rows.columns:
        return rows
    there = rows[rows[target].notna()]
    if missing := len(rows) - len(there):
        logger.warning("%s of %s rows have no %s and are left out", f"{missing:,}", f"{len(rows):,}", target)
        labels = there[target].infer_objects()  # of what was true, false or missing
        if labels.dtype.kind == "f" and (labels % 1 == 0).all():  # whole numbers that could be missing
            labels = labels.astype("int64")
        there = there.assign(**{target: labels})
    return there


def require_rows(rows: pd.DataFrame, target: str, task: Task, timed: bool = True) -> pd.DataFrame:
    """Return what `rows` of a features.py returned, of that the rows with a time; how many have none is said.

    Args:
        rows: With the time of each row and its label.
        target: Name of the label.
        task: What the use case's models predict, which says what a label may be.
        timed: Whether rows have a time.

    Raises:
        UsageError: A column is not there, or the times have no zone.
        DataError: A label is missing, or is none of the task.
    """
    import pandas as pd

    needed = {TIME: "Name the time so.", target: "Mend features.target in use_case.yaml."}
    for column, remedy in needed.items():
        if column not in rows.columns and (timed or column != TIME):
            columns = ", ".join(map(str, rows.columns))
            raise UsageError(f"rows() of features.py returns no column {column!r}, but {columns}.", remedy)
    if timed and not isinstance(rows[TIME].dtype, pd.DatetimeTZDtype):
        raise UsageError(f"rows() of features.py: {TIME!r} is {rows[TIME].dtype}, a time without a zone.", _ZONE)
    if missing := int(rows[target].isna().sum()):
        raise DataError(
            f"The label {target!r} is missing in {missing} of {len(rows)} rows.",
            "Write features.unlabelled: leave_out into use_case.yaml, or give them one.",
        )
    if task == "multiclass":
        _require_classes(rows[target])
    elif task != "custom":
        rows = _with_numbers(rows, target, task)
    if timed and (timeless := int(rows[TIME].isna().sum())):
        logger.warning("%s of %s rows have no %s and are left out", f"{timeless:,}", f"{len(rows):,}", TIME)
        return rows[rows[TIME].notna()]
    return rows


def _require_classes(labels: pd.Series[Any]) -> None:
    """Check that labels are classes: all of them texts, or all whole numbers.

    Raises:
        DataError: One is neither, or there are both.
    """
    labels_there = labels.unique().tolist()
    if labels.dtype.kind in "iu" or {type(label) for label in labels_there} == {str}:
        return
    wrong = next(label for label in labels_there if not isinstance(label, str))
    raise DataError(
        f"The label {labels.name!r} is {wrong!r} in some rows; where task is multiclass, all are texts or all whole "
        "numbers.",
        "Mend the labels, or task in use_case.yaml.",
    )


def _with_numbers(rows: pd.DataFrame, target: str, task: Task) -> pd.DataFrame:
    """Return rows with labels that are numbers.

    Raises:
        DataError: One is none, or none of the task.
    """
    labels = as_numbers(rows[target], "label")
    wrong = labels[~labels.isin([0, 1])] if task == "binary" else labels[labels.abs() == float("inf")]
    if len(wrong):
        what = "0 or 1 where task is binary" if task == "binary" else "a finite number where task is regression"
        raise DataError(
            f"The label {target!r} is {wrong.iloc[0]:g} in {len(wrong)} of {len(rows)} rows; it is {what}.",
            "Mend the labels, or task in use_case.yaml.",
        )
    if rows[target].dtype.kind not in "biuf":
        return rows.assign(**{target: labels})
    return rows


def classes_of(splits: Mapping[str, pd.DataFrame], target: str) -> list[int | str]:
    """Return the classes of the training set, sorted.

    Args:
        splits: Name to rows; those of `train` have every class.
        target: Name of the label.

    Raises:
        DataError: Another split has one that the training set lacks: no model would know it.
    """
    classes: list[int | str] = sorted(splits["train"][target].unique().tolist())
    for name, rows in splits.items():
        if strangers := sorted(set(rows[target].unique().tolist()) - set(classes)):
            raise DataError(
                f"Split {name!r} has rows of class {strangers[0]!r}, split 'train' has none.",
                "Leave them out, or mend features.split in use_case.yaml.",
            )
    return classes


def as_numbers(column: pd.Series[Any], what: str = "feature", where: str = "") -> pd.Series[Any]:
    """Return a column as int64 or float64.

    Args:
        column: Of numbers, or of what can be read as numbers.
        what: What one of them is.
        where: The table that it stands in, to be named in the error.

    Raises:
        DataError: It holds something that is no number.
    """
    kind: Literal["int64", "float64"] = "int64" if column.dtype.kind in "iu" else "float64"
    if column.dtype == kind:
        return column
    try:
        return column.astype(kind)
    except (ValueError, TypeError) as error:
        wrong = next((value for value in column.dropna() if not _can_be_number(value)), column.dtype)
        raise DataError(
            f"The {what} {column.name!r}{where} holds {wrong!r}: a {what} is a number.",
            "Make numbers of it; or declare it in features.py as it is: String, Bool, UnixTimestamp, Bytes, Array.",
        ) from error


def declared_kind(feature: Any) -> str:
    """Return `str`, `bool`, `datetime`, `bytes` or `lists` for a field of Feast's of that type, else `number`."""
    name = str(feature.dtype)
    return "lists" if name.startswith("Array(") else _OF_FEAST.get(name, "number")


def as_feature(column: pd.Series[Any], declared: str, where: str = "") -> tuple[pd.Series[Any], Kind]:
    """Return a column as a model gets it, and its kind.

    Args:
        column: Of any type.
        declared: A kind; `number` for the one of the two that fits, `lists` for lists that may be of anything:
            `numbers` are checked already.
        where: The table that it stands in, to be named in the error.

    Raises:
        DataError: It holds what is none of that kind, or is not finite.
    """
    match declared:
        case "str":
            return _as_texts(column, where), "str"
        case "bool":
            return _as_booleans(column, where), "bool"
        case "datetime":
            return _as_times(column, where), "datetime"
        case "bytes":
            return _as_bytes(column, where), "bytes"
        case "lists":
            return _as_lists(column, where), "numbers"
        case "numbers":
            return column, "numbers"
    numbers = as_numbers(column, where=where)
    if numbers.dtype.kind == "f":
        infinite = int((numbers.abs() == float("inf")).sum())
        if infinite:
            raise DataError(
                f"The feature {column.name!r}{where} is infinite in {infinite} of {len(column)} rows.",
                "Leave it out there, or put the number in its place that it stands for.",
            )
        if declared == "int":
            if numbers.abs().max() >= _WHOLE:
                raise DataError(
                    f"The feature {column.name!r}{where} is missing in some rows and 2**53 or more in others.",
                    "Make it a text, or fill it where it is missing.",
                )
            return numbers, "int"
    return numbers, "int" if numbers.dtype.kind == "i" else "float"


def _as_texts(column: pd.Series[Any], where: str) -> pd.Series[Any]:
    """Return texts, `None` where one is missing."""
    values = column.astype(object)
    texts = values.where(values.notna(), None)
    for value in texts.unique():
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"The feature {column.name!r}{where} holds {value!r} and is declared a text.",
                "Make all of its values texts, or declare it as what it is.",
            )
    return texts


def _as_bytes(column: pd.Series[Any], where: str) -> pd.Series[Any]:
    """Return bytes, `None` where they are missing."""
    values = column.astype(object)
    contents = values.where(values.notna(), None)
    for value in contents:
        if value is not None and not isinstance(value, bytes):
            raise DataError(
                f"The feature {column.name!r}{where} holds {str(value)[:50]!r} and is declared bytes.",
                "Declare it as what it is.",
            )
    return contents


def _as_lists(column: pd.Series[Any], where: str) -> pd.Series[Any]:
    """Return lists of numbers, `None` where one is missing."""
    import pyarrow as pa

    try:
        array = pa.Array.from_pandas(column)
        lists = pa.chunked_array([array.cast(pa.list_(pa.float64())) if pa.types.is_null(array.type) else array])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"The feature {column.name!r}{where} is declared lists, and others are among its values.", "Mend it."
        ) from error
    checked: pd.Series[Any] = of_numbers(lists, str(column.name), where).to_pandas()
    checked.index, checked.name = column.index, column.name
    return checked


def of_numbers(array: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Return lists of floating-point numbers.

    Args:
        array: Lists of any numbers.
        name: Of the column.
        where: The table that it stands in, to be named in the error.

    Raises:
        DataError: They are of something else, or a number in one is missing or not finite.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    inner = getattr(array.type, "value_type", pa.null())
    if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
        raise DataError(
            f"The column {name!r}{where} is {array.type}: a list holds numbers.",
            "Make columns of it, or leave it out.",
        )
    lists = array.cast(pa.list_(pa.float64()))
    numbers = pc.list_flatten(lists)
    wrong = numbers.null_count or pc.sum(pc.invert(pc.is_finite(numbers))).as_py()
    if wrong:
        raise DataError(
            f"The column {name!r}{where} has lists in which {wrong} numbers are missing or not finite.",
            "Mend them, or leave out such rows.",
        )
    return lists


def _as_booleans(column: pd.Series[Any], where: str) -> pd.Series[Any]:
    """Return booleans, or where one is missing the numbers 0 and 1, and NaN."""
    strangers = [value for value in column.dropna().unique() if value not in (0, 1)]
    if strangers:
        raise DataError(
            f"The feature {column.name!r}{where} holds {strangers[0]!r}: it is true, false or missing.",
            "Declare it as what it is.",
        )
    return column.astype("float64" if column.isna().any() else "bool")


def _as_times(column: pd.Series[Any], where: str) -> pd.Series[Any]:
    """Return times in UTC without a zone, in microseconds; one that had none was in UTC."""
    import pandas as pd

    try:
        times = pd.to_datetime(column.astype(object) if column.dtype == object else column, utc=True)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"The feature {column.name!r}{where} holds what is no time: {str(error).splitlines()[0]}.",
            "Let all of its values be times.",
        ) from error
    years = times.dt.year
    if len(wrong := times[(years < _YEARS[0]) | (years > _YEARS[1])]):
        raise DataError(
            f"The feature {column.name!r}{where} is {wrong.iloc[0]} in a row: a time lies between the years "
            f"{_YEARS[0]} and {_YEARS[1]}.",
            "Leave it out there.",
        )
    return times.dt.tz_localize(None).astype("datetime64[us]")


def _can_be_number(value: Any) -> bool:
    try:
        float(value)
    except (ValueError, TypeError):
        return False
    return True


def require_view(view: Any, file: Path, keys: Mapping[str, Any] | None = None) -> None:
    """Check the table of a feature view.

    Args:
        view: Feast's.
        file: The parquet file that `source_tables` wrote for it.
        keys: For each join key the pandas column of `rows()` that is compared with it, where one is.

    Raises:
        UsageError: The table is not there, or a column is not there or of a type that cannot be used.
        DataError: A number is larger than 64 bits with a sign hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    what = f"the table of view {view.name!r}"
    if not file.is_file():
        raise UsageError(f"features.py wrote no {file.name}: {what}.", "Write it in source_tables.")
    source = view.batch_source
    types = {source.field_mapping.get(field.name, field.name): field.type for field in pq.read_schema(file)}

    def column(name: str) -> pa.DataType:
        if name not in types:
            raise UsageError(f"{what} has no column {name!r}; it has {_listed(types)}.", "Mend one of them.")
        return types[name]

    time = column(source.field_mapping.get(source.timestamp_field, source.timestamp_field))
    if not pa.types.is_timestamp(time) or time.tz is None:
        raise UsageError(f"{source.timestamp_field!r} in {what} is {time}, a time without a zone.", _ZONE)
    for feature in view.features:
        kind = column(feature.name)
        declared = declared_kind(feature)
        fits = {"number": _kind(kind) == "number", "str": _kind(kind) == "text", "bool": pa.types.is_boolean(kind)}
        if pa.types.is_uint64(kind) or not (fits.get(declared) or pa.types.is_null(kind)):
            source_name = {value: key for key, value in source.field_mapping.items()}.get(feature.name, feature.name)
            values = pq.read_table(file, columns=[source_name])[source_name].to_pandas().rename(feature.name)
            as_feature(values, declared, f" in {what}")
            if pa.types.is_uint64(kind) and values.max() > _LARGEST:
                raise DataError(
                    f"The feature {feature.name!r} in {what} holds {values.max()}, more than {_LARGEST}.",
                    "Make it a floating-point number.",
                )
    for name, values in (keys or {}).items():
        kind = column(name)
        theirs = pa.Array.from_pandas(values).type
        if "null" not in (_kind(kind), _kind(theirs)) and _kind(kind) != _kind(theirs):
            raise UsageError(
                f"The key {name!r} is {kind} in {what} and {theirs} in rows().", "Make them the same type."
            )


def require_names(use_case: UseCase, rows: pd.DataFrame, service: Any) -> None:
    """Check that every feature of a service is another one, and no column of the rows.

    Raises:
        UsageError: Two have one name; both places are named.
    """
    places: dict[str, str] = {
        name: "the target" if name == use_case.features.target else "a column of rows()" for name in rows.columns
    }
    for projection in service.feature_view_projections:
        for feature in projection.features:
            here = f"a feature of view {projection.name_to_use()!r}"
            if feature.name in places:
                remedy = "Leave it out of rows(): a slice may be a feature."
                raise UsageError(
                    f"{use_case.name}: {feature.name!r} is {here} and {places[feature.name]}.",
                    remedy if "rows()" in places[feature.name] else "Give one of them another name.",
                )
            places[feature.name] = here


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def _kind(kind: pa.DataType) -> str:
    """Return which keys can be compared with one of this type."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return "number" if _is_number(kind) else str(kind)


def _listed(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names)

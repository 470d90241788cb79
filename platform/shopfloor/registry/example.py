"""Rows that somebody gives as an example of what a model takes: read, checked, and what they say of its columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shopfloor.errors import NotFoundError, UsageError
from shopfloor.judging.golden import MAX_BYTES

if TYPE_CHECKING:
    import pandas as pd

Scalar = bool | int | float | str | None
Rows = list[dict[str, Scalar]]
_DTYPES = {"double": "float64", "float": "float64", "long": "int64", "integer": "int32", "boolean": "bool"}


def read(file: Path) -> Rows:
    """Return the rows of a JSON file, each with all columns that one of them has; `None` where a row has no value.

    Args:
        file: One object, a list of them, or what MLflow's scoring server takes (`dataframe_split`,
            `dataframe_records`).

    Raises:
        NotFoundError: There is no such file.
        UsageError: It holds no such rows; the message names the line, or the row and the column.
    """
    if not file.is_file():
        raise NotFoundError(f"There is no file {str(file)!r}.", "--example names a JSON file of rows.")
    if file.stat().st_size > MAX_BYTES:
        raise UsageError(f"{file} is larger than {MAX_BYTES} bytes.", "A few dozen rows are enough for an example.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}:{error.lineno}: this is no JSON: {error.msg}.", "Write a list of objects.") from error
    except ValueError as error:  # what is no UTF-8, and NaN
        raise UsageError(
            f"{file} is no JSON: {error}.", "Write a list of objects, null where a value is missing."
        ) from error
    rows = _objects(file, content)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise UsageError(f"{file} holds no row with a column.", "Write a list of objects, one a row.")
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if value is not None and not isinstance(value, (bool, int, float, str)):
                kind = "a list" if isinstance(value, list) else "an object"
                raise UsageError(
                    f"{file}: {name!r} of row {number} is {kind}.", "A column holds numbers, texts or true and false."
                )
    return [{name: row.get(name) for name in names} for row in rows]


def in_order(file: Path, rows: Rows, names: Sequence[str] | None, count: int | None, model: str) -> Rows:
    """Return rows with the columns in the order of the model's.

    Args:
        file: The rows' file, to be named.
        rows: As `read` returns them.
        names: The model's columns; `None` where it does not say.
        count: How many it has; `None` where it does not say.
        model: Name of the model for an error.

    Raises:
        UsageError: They are others.
    """
    present = list(rows[0])
    if names is None:
        if count is not None and count != len(present):
            raise UsageError(
                f"{file} has {len(present)} columns ({_some(present)}), and {model} takes {count}.",
                "Give the rows that it was trained on, in that order.",
            )
        return rows
    lacking, unknown = [name for name in names if name not in present], [name for name in present if name not in names]
    if lacking or unknown:
        problems = [f"lacks {_some(lacking)}"] if lacking else []
        problems += [f"has {_some(unknown)}, which it does not take"] if unknown else []
        raise UsageError(f"{file} does not fit {model}: it {' and '.join(problems)}.", f"It takes {_some(names, 30)}.")
    return [{name: row[name] for name in names} for row in rows]


def types_of(file: Path, rows: Rows, known: Mapping[str, str]) -> dict[str, str]:
    """Return MLflow's type of each column.

    A number is a `double`, however many of the rows hold a whole one: 42 in an example does not say that 42.5 never
    comes, and a `long` would refuse it.

    Args:
        file: The rows' file, to be named.
        rows: As `in_order` returns them.
        known: Types that the model names itself.

    Raises:
        UsageError: A column holds values of several types, of another one than the model says, or none.
    """
    types: dict[str, str] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        kinds = {_kind(value) for value in values}
        if len(kinds) > 1:
            raise UsageError(f"{file}: {name!r} holds a {' and a '.join(sorted(kinds))}.", "A column is of one type.")
        if name in known:
            expected = {"boolean": "boolean", "string": "text", "datetime": "text"}.get(known[name], "number")
            if kinds - {expected}:
                raise UsageError(
                    f"{file}: {name!r} holds a {kinds.pop()}, and the model takes a {expected} ({known[name]}).",
                    "Mend the rows.",
                )
            types[name] = known[name]
        elif not kinds:
            raise UsageError(f"{file}: {name!r} has no value in any row.", "Give a row that has one: its type counts.")
        else:
            types[name] = {"boolean": "boolean", "text": "string", "number": "double"}[kinds.pop()]
    return types


def frame_of(rows: Rows, types: Mapping[str, str]) -> pd.DataFrame:
    """Return rows as the libraries take them: NaN for a missing number, `None` for another missing value."""
    import pandas as pd

    columns = {}
    for name, kind in types.items():
        values = [row[name] for row in rows]
        missing = any(value is None for value in values)
        dtype: Any = _DTYPES.get(kind, "object")
        if missing and dtype != "object":
            dtype = "object" if kind == "boolean" else "float64"
        columns[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(columns)


def anything(types: Mapping[str, str]) -> Rows:
    """Return one row of zeros and empty texts, which shows that a model answers where nobody gave an example."""
    zero: dict[str, Scalar] = {"boolean": False, "string": "", "datetime": "2013-01-01T00:00:00"}
    return [{name: zero.get(kind, 0.0 if kind in {"double", "float"} else 0) for name, kind in types.items()}]


def _objects(file: Path, content: Any) -> list[dict[str, Any]]:
    wrapped = content
    if isinstance(content, dict):
        split = content.get("dataframe_split", content)
        if isinstance(split, dict) and {"columns", "data"} <= set(split) <= {"columns", "data", "index"}:
            names, table = split["columns"], split["data"]
            if not isinstance(table, list) or any(not isinstance(one, list) or len(one) != len(names) for one in table):
                raise UsageError(f"{file}: a row of data has not as many values as there are columns.", "Mend it.")
            wrapped = [dict(zip(map(str, names), one, strict=True)) for one in table]
        else:
            wrapped = content.get("dataframe_records", [content])
    if not isinstance(wrapped, list) or not wrapped or not all(isinstance(row, dict) for row in wrapped):
        raise UsageError(f"{file} holds no rows.", 'Write a list of objects: [{"age": 42, "plan": "basic"}].')
    return wrapped


def _kind(value: Scalar) -> str:
    return "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")

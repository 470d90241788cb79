"""Rows as bytes from one process to another, exactly, and without a pickle: NumPy's own format for arrays, else JSON.

Arrow would make one value of None and NaN, and has no column that holds numbers beside text; what a body described is
kept as it is. Nothing becomes one long piece of JSON: to parse that holds the interpreter, and all requests with it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from shopfloor.serving.protocols.parsed import Rows

PIECE_BYTES = 128 * 1024
"""JSON that is parsed at once, where a value can be cut."""
_ARRAYS = "biufcMmUS"
"""Kinds of NumPy's dtypes whose items are no Python objects."""
_PLAIN = {str, int, float, bool, type(None)}


def pack(rows: Rows) -> tuple[dict[str, Any], list[bytes]]:
    """Return what is small of rows as JSON holds it, and their content in parts.

    Raises:
        TypeError: A value is of a type that no body describes.
    """
    parts: list[bytes] = []
    content = {name: _packed(getattr(rows, name), parts) for name in ("matrix", "records", "table", "params")}
    return {"rows": content, "bare": rows.bare, "typed": rows.typed, "request": rows.request}, parts


def unpack(head: dict[str, Any], parts: Sequence[bytes]) -> Rows:
    """Return the rows of which `pack` made this."""
    content = {name: _unpacked(value, parts) for name, value in head["rows"].items()}
    return Rows(**content, bare=head["bare"], typed=head["typed"], request=head["request"])


def _packed(value: Any, parts: list[bytes]) -> Any:
    """Return what stands for a value: `[how, ...]`, with the number of the part that holds it."""
    import numpy as np
    import pandas as pd

    def part(content: bytes) -> int:
        parts.append(content)
        return len(parts) - 1

    def each(values: Any) -> list[Any]:
        return [_packed(item, parts) for item in values]

    if value is None:
        return None
    if isinstance(value, pd.DataFrame):
        columns = [_packed(value.iloc[:, number], parts) for number in range(value.shape[1])]
        return ["frame", _packed(value.columns, parts), _packed(value.index, parts), columns]
    if isinstance(value, pd.RangeIndex):
        return ["range", value.start, value.stop, value.step, value.name]
    if isinstance(value, pd.Index | pd.Series):
        values = value.to_numpy() if isinstance(value.dtype, np.dtype) else value.astype(object).to_numpy()
        return ["index" if isinstance(value, pd.Index) else "series", str(value.dtype), _packed(values, parts)]
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in _ARRAYS:
            return ["array" if isinstance(value, np.ndarray) else "scalar", part(_array(value))]
        if isinstance(value, np.ndarray) and value.dtype == object:
            return ["objects", list(value.shape), _packed(value.ravel().tolist(), parts)]
    if value is pd.NA:
        return ["missing"]
    if value is pd.NaT or isinstance(value, pd.Timestamp):
        return ["time", str(value)]
    if type(value) is bytes:
        return ["bytes", base64.b64encode(value).decode()]
    if type(value) is tuple:
        return ["tuple", each(value)]
    if _is_json(value):
        text = to_json(value, inf_nan_mode="constants")
        if len(text) <= PIECE_BYTES or type(value) in _PLAIN:
            return ["json", part(text)]
        if type(value) is list and len(value) > 1:
            size = max(1, len(value) * PIECE_BYTES // len(text))
            return ["joined", each(value[at : at + size] for at in range(0, len(value), size))]
    if type(value) is list:
        return ["list", each(value)]
    if type(value) is dict:
        return ["dict", [[_packed(key, parts), _packed(item, parts)] for key, item in value.items()]]
    raise TypeError(f"a {type(value).__name__} is nothing that a body describes")


def _unpacked(packed: Any, parts: Sequence[bytes]) -> Any:
    if packed is None:
        return None
    how, *content = packed
    return _UNPACK[how](parts, *content)


def _frame(parts: Sequence[bytes], names: Any, index: Any, columns: list[Any]) -> Any:
    import pandas as pd

    # Of series and not of arrays: of an array of objects that are all times, pandas makes one of times.
    rows = _unpacked(index, parts)
    series = {number: _unpacked(column, parts) for number, column in enumerate(columns)}
    table = pd.DataFrame(series, index=range(len(rows))).set_axis(rows, axis="index")
    table.columns = _unpacked(names, parts)
    return table


def _series(parts: Sequence[bytes], dtype: str, values: Any) -> Any:
    import pandas as pd

    return pd.Series(_unpacked(values, parts), dtype=dtype)


def _index(parts: Sequence[bytes], dtype: str, values: Any) -> Any:
    import pandas as pd

    items = _unpacked(values, parts)
    if len(items) and all(type(item) is tuple for item in items):
        return pd.MultiIndex.from_tuples(list(items))
    return pd.Index(items, dtype=dtype)


def _range(parts: Sequence[bytes], start: int, stop: int, step: int, name: Any) -> Any:
    import pandas as pd

    return pd.RangeIndex(start, stop, step, name=name)


def _objects(parts: Sequence[bytes], shape: list[int], values: Any) -> Any:
    import numpy as np

    items = _unpacked(values, parts)
    array = np.empty(len(items), dtype=object)
    array[:] = items  # item by item, whatever they are
    return array.reshape(shape)


def _time(parts: Sequence[bytes], text: str) -> Any:
    import pandas as pd

    return pd.Timestamp(text)


def _missing(parts: Sequence[bytes]) -> Any:
    import pandas as pd

    return pd.NA


def _array(value: Any) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
    return file.getvalue()


def _of_array(part: bytes) -> Any:
    import numpy as np

    return np.lib.format.read_array(io.BytesIO(part), allow_pickle=False)


def _is_json(value: Any) -> bool:
    """Tell whether JSON gives back the very same value."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    return kind in _PLAIN or (kind is list and all(map(_is_json, value)))


_UNPACK: dict[str, Callable[..., Any]] = {
    "frame": _frame,
    "series": _series,
    "index": _index,
    "range": _range,
    "objects": _objects,
    "time": _time,
    "missing": _missing,
    "array": lambda parts, number: _of_array(parts[number]),
    "scalar": lambda parts, number: _of_array(parts[number])[()],
    "bytes": lambda parts, text: base64.b64decode(text),
    "tuple": lambda parts, items: tuple(_unpacked(item, parts) for item in items),
    "json": lambda parts, number: from_json(parts[number], allow_inf_nan=True, cache_strings="keys"),
    "joined": lambda parts, pieces: [item for piece in pieces for item in _unpacked(piece, parts)],
    "list": lambda parts, items: [_unpacked(item, parts) for item in items],
    "dict": lambda parts, items: {_unpacked(key, parts): _unpacked(item, parts) for key, item in items},
}

"""The items of one tensor of the Open Inference Protocol, as JSON or as the bytes of its binary extension."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shopfloor.serving.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np

_DTYPES = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Datatypes of a fixed size, to NumPy's name."""
_LENGTH = struct.Struct("<I")


def problem(field: str, text: str) -> dict[str, str]:
    """Return one entry of a refusal's `fields`."""
    return {"field": field, "problem": text}


def items(
    name: str, tensor: dict[str, Any], tail: bytes, begin: int, form: str = "plain"
) -> tuple[np.ndarray | list[Any], int]:
    """Return the items of a tensor, and where the bytes of the next one begin.

    Args:
        name: Of the tensor, as it may be shown.
        tensor: Its `shape`, `datatype`, and `data` or `parameters.binary_data_size`.
        tail: The bytes behind the JSON.
        begin: Where in it this tensor's begin.
        form: `plain`, `list` where an item is a list of numbers, `bytes` where it is any bytes: in base64 as in JSON.

    Raises:
        BadRequest: Its data are not there, are no plain values, or are not as many as its shape says.
    """
    size = (tensor.get("parameters") or {}).get("binary_data_size")
    if size is None:
        data: np.ndarray | list[Any] = _listed(name, tensor.get("data"), nested=form == "list")
    elif not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail) - begin:
        raise _refused(name, "has more bytes than follow the JSON")
    else:
        content = tail[begin : begin + size]
        data = _each(name, content, _as_base64) if form == "bytes" else _from_bytes(name, tensor["datatype"], content)
        begin += size
    if form == "list":
        return _lists(name, tensor["shape"], data), begin
    if tensor["shape"] not in ([len(data)], [len(data), 1]):
        raise _refused(name, f"its shape must be [{len(data)}] or [{len(data)}, 1], as it has {len(data)} items")
    return data, begin


def _lists(name: str, shape: list[int], data: np.ndarray | list[Any]) -> list[list[Any]]:
    """Return the lists of a tensor of two dimensions, whose data may be nested or one after the other."""
    numbers = data.tolist() if not isinstance(data, list) else data
    if numbers and all(isinstance(one, list) for one in numbers):
        numbers = [number for one in numbers for number in one]
    if len(shape) != 2 or min(shape) < 0 or shape[0] * shape[1] != len(numbers):
        raise _refused(name, f"its shape must be [rows, length of a list], of {len(numbers)} numbers in all")
    return [numbers[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]


def to_bytes(datatype: str, values: list[Any]) -> bytes:
    """Return values as the bytes of a tensor, row after row."""
    import numpy as np

    if datatype != "BYTES":
        return np.array(values, dtype=_DTYPES[datatype]).tobytes()
    texts = [str(value).encode() for value in values]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _listed(name: str, data: Any, nested: bool = False) -> list[Any]:
    if not isinstance(data, list):
        raise _refused(name, "has no list `data`")
    if nested:
        return data
    items = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
    if any(isinstance(item, list | dict) for item in items):
        raise _refused(name, "must hold plain values")
    return items


def _from_bytes(name: str, datatype: str, content: bytes) -> np.ndarray | list[Any]:
    import numpy as np

    if datatype == "BYTES":
        return _texts(name, content)
    if datatype == "BOOL" and content.strip(b"\0\1"):
        raise _refused(name, "must hold bytes of 0 and 1")
    dtype = np.dtype(_DTYPES[datatype])
    if len(content) % dtype.itemsize:
        raise _refused(name, f"must hold {dtype.itemsize} bytes an item")
    return np.frombuffer(content, dtype)


def _texts(name: str, content: bytes) -> list[str]:
    """Return texts that stand behind their lengths."""
    try:
        return _each(name, content, bytes.decode)
    except UnicodeDecodeError:
        raise _refused(name, "must hold texts in UTF-8") from None


def _each(name: str, content: bytes, read: Callable[[bytes], str]) -> list[str]:
    """Return what is read of each piece of bytes that stands behind its length."""
    pieces, begin = [], 0
    while begin < len(content):
        if begin + _LENGTH.size > len(content):
            raise _refused(name, "ends within the length of a text")
        (length,) = _LENGTH.unpack_from(content, begin)
        begin += _LENGTH.size
        if begin + length > len(content):
            raise _refused(name, "ends within a text")
        pieces.append(read(content[begin : begin + length]))
        begin += length
    return pieces


def _as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _refused(name: str, text: str) -> BadRequest:
    return BadRequest(422, f"{name}: {text}.", [problem(name, text)])

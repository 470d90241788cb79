"""How Go writes JSON and quotes strings, as far as a workflow can tell: Argo's values pass through both."""

import json
import math
from typing import Any


class Raw(str):
    """A number as it was written: Argo hands the items of a loop on without reading their numbers."""

    __slots__ = ()


def parse(text: str) -> Any:
    """Return the JSON value of `text` as Go's `json.Unmarshal` into `any` does: every number is a float.

    Raises:
        ValueError: It is no JSON.
    """
    return json.loads(text, parse_int=float, parse_constant=_constant)


def parse_items(text: str) -> Any:
    """Return the JSON value of `text` with numbers as they are written.

    Raises:
        ValueError: It is no JSON.
    """
    return json.loads(text, parse_int=Raw, parse_float=Raw, parse_constant=_constant)


def dump(value: Any, sort: bool = True) -> str:
    """Return the JSON of a value as Go's `json.Marshal` writes it, but for its escapes of `<`, `>` and `&`.

    Args:
        value: The value.
        sort: Whether keys are put in order, as those of a Go map are.

    Raises:
        ValueError: It holds what JSON cannot.
    """
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, dict):
        keys = sorted(value) if sort else list(value)
        return "{" + ",".join(f"{dump(key)}:{dump(value[key], sort)}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(dump(item, sort) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def quote(text: str) -> str:
    """Return `text` as Go's `strconv.Quote` writes it, without the quotes around it.

    What Go escapes in a way of its own (`\\x01`, `\\a`, `\\U000e0001`) is no JSON.
    """
    return "".join(_quoted(letter) for letter in text)


_NAMED = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}


def _quoted(letter: str) -> str:
    if letter in _NAMED:
        return _NAMED[letter]
    if letter.isprintable():
        return letter
    code = ord(letter)
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _float(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        raise ValueError(f"json: unsupported value: {value}")
    size = abs(value)
    if size == 0 or 1e-6 <= size < 1e21:
        text = repr(value)
        if "e" in text:
            text = f"{value:.30f}".rstrip("0").rstrip(".") if size < 1 else f"{value:.0f}"
        return text.removesuffix(".0")
    mantissa, _, exponent = repr(value).partition("e")
    number = int(exponent)
    sign = "-" if number < 0 else "+"
    return f"{mantissa.removesuffix('.0')}e{sign}{abs(number):02d}".replace("e-0", "e-")


def _constant(name: str) -> Any:
    raise ValueError(f"invalid character {name[0]!r}")

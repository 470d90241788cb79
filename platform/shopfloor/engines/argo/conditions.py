"""From a condition of KFP (a small part of CEL) to an expression that Argo evaluates.

The expressions of a translated workflow use: `inputs.parameters['x']`, `tasks['t'].outputs.parameters['x']`,
`tasks['t'].status`, `workflow.name`; string, number, `true` and `false` literals; `== != < <= > >= && || ! ?: +`,
parentheses; `asFloat`, `jsonpath`, `toJson`, `fromJSON`, `type`, and `map(list, ...)` with `#` for its item.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shopfloor.engines.argo.launcher import protect

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<parameter>inputs\.parameter_values\[(?:'[^']*'|"[^"]*")\])
  | (?P<cast>(?:int|double|float)(?=\s*\())
  | (?P<number>-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)
  | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<boolean>(?:true|false)\b)
  | (?P<sign>&&|\|\||==|!=|<=|>=|[<>!()])
    )""",
    re.VERBOSE,
)
_COMPARISONS = {"==", "!=", "<", "<=", ">", ">="}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True)
class Operand:
    """One side of a comparison."""

    kind: Literal["text", "number", "boolean"]
    """What its value is; a parameter is text until it is compared with something else."""
    expression: str


def literal(text: str) -> str:
    """Return `text` as a string literal of an expression: no quote, brace or line break in it is seen by anyone."""
    # Braces too: `}}` would end the tag that the expression stands in.
    escaped = "".join(
        letter if letter.isprintable() and letter not in "'\"\\{}" else _escape(letter) for letter in text
    )
    return f"'{escaped}'"


def translate(condition: str, parameter: Callable[[str], Operand | None]) -> str:
    """Return the expression of a condition.

    Args:
        condition: As it stands in `triggerPolicy.condition`.
        parameter: Gives an input parameter of the task, `None` for one that has no value: then nothing is met.

    Raises:
        ValueError: It is not of the part of CEL that KFP writes.
    """
    return _Parser(condition, parameter).whole()


class _Absent(Exception):
    """A parameter without a value."""


class _Parser:
    def __init__(self, condition: str, parameter: Callable[[str], Operand | None]) -> None:
        self._tokens = _tokens(condition)
        self._condition = condition
        self._parameter = parameter
        self._at = 0

    def whole(self) -> str:
        try:
            expression = self._either()
        except _Absent:
            return "false"
        if self._at != len(self._tokens):
            raise self._error()
        return expression

    def _either(self) -> str:
        sides = [self._both()]
        while self._take("||"):
            sides.append(self._both())
        return sides[0] if len(sides) == 1 else f"({' || '.join(sides)})"

    def _both(self) -> str:
        sides = [self._single()]
        while self._take("&&"):
            sides.append(self._single())
        return sides[0] if len(sides) == 1 else f"({' && '.join(sides)})"

    def _single(self) -> str:
        if self._take("!"):
            return f"!({self._single()})"
        if self._take("("):
            inner = self._either()
            self._expect(")")
            return inner
        left = self._operand()
        kind, sign = self._peek()
        if kind != "sign" or sign not in _COMPARISONS:
            return f"({_text(left)} == 'true')"
        self._at += 1
        right = self._operand()
        if "number" in (left.kind, right.kind):
            return f"({_number(left)} {sign} {_number(right)})"
        return f"({_text(left)} {sign} {_text(right)})"

    def _operand(self) -> Operand:
        kind, text = self._peek()
        self._at += 1
        if kind == "parameter":
            found = self._parameter(text.partition("[")[2][1:-2])
            if found is None:
                raise _Absent
            return found
        if kind == "cast":
            self._expect("(")
            inner = self._operand()
            self._expect(")")
            return Operand("number", _number(inner))
        if kind == "number":
            return Operand("number", text)
        if kind == "boolean":
            return Operand("boolean", text)
        if kind == "string":
            plain = re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text[1:-1], flags=re.DOTALL)
            return Operand("text", literal(protect(plain)))
        raise self._error()

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, sign: str) -> bool:
        if self._peek() != ("sign", sign):
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._error()

    def _error(self) -> ValueError:
        return ValueError(f"condition {self._condition!r}")


def _tokens(condition: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    at = 0
    while condition[at:].strip():
        match = _TOKEN.match(condition, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"condition {condition!r}")
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def _number(operand: Operand) -> str:
    if operand.kind == "boolean":
        return "1" if operand.expression == "true" else "0"
    return operand.expression if operand.kind == "number" else f"asFloat({operand.expression})"


def _text(operand: Operand) -> str:
    if operand.kind == "boolean":
        return literal(operand.expression)
    return operand.expression if operand.kind == "text" else f"toJson({operand.expression})"


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

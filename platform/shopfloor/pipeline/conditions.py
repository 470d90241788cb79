"""The one reader of conditions: the part of CEL that KFP writes, as a small tree that is evaluated or printed for Argo.

A value is compared as a value, never read as part of the text: nothing that a step gives is code. A parameter without
a value is equal to nothing else, so that `dsl.Else` runs.

The expressions of a translated workflow use: `inputs.parameters['x']`, `tasks['t'].outputs.parameters['x']`,
`tasks['t'].status`, `workflow.name`; string, number, `true` and `false` literals; `== != < <= > >= && || ! ?: +`,
parentheses; `asFloat`, `jsonpath`, `toJson`, `fromJSON`, `type`, and `map(list, ...)` with `#` for its item.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<parameter>inputs\.parameter_values\[(?:'[^']*'|"[^"]*")\])
  | (?P<cast>(?:int|double|float)(?=\s*\())
  | (?P<number>-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)
  | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<boolean>(?:true|false)\b)
  | (?P<sign>&&|\|\||==|!=|<=|>=|[<>!()])
    )""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class ConditionError(ValueError):
    """A condition that cannot be read, or compares what cannot be compared."""


@dataclass(frozen=True)
class Constant:
    """A literal."""

    value: str | float | bool


@dataclass(frozen=True)
class Parameter:
    """An input parameter of the task that has the condition."""

    name: str


@dataclass(frozen=True)
class Cast:
    """An operand as a number: `int(...)` or `double(...)`."""

    operand: Operand


@dataclass(frozen=True)
class Comparison:
    """Two operands and the sign between them."""

    sign: str
    left: Operand
    right: Operand


@dataclass(frozen=True)
class Not:
    """The opposite of a condition."""

    condition: Condition


@dataclass(frozen=True)
class Joined:
    """Conditions of which all (`&&`) or any (`||`) must hold."""

    sign: Literal["&&", "||"]
    parts: tuple[Condition, ...]


Operand = Constant | Parameter | Cast
Condition = Comparison | Not | Joined


@dataclass(frozen=True)
class Argument:
    """What a parameter is within an expression of Argo."""

    kind: Literal["text", "number"]
    expression: str


def parse(text: str) -> Condition:
    """Return the tree of a condition.

    Args:
        text: As it stands in `triggerPolicy.condition`.

    Raises:
        ConditionError: It is not of the part of CEL that KFP writes.
    """
    return _Parser(text).whole()


def evaluate(condition: Condition, values: Mapping[str, Any]) -> bool | None:
    """Return whether a condition holds, `None` where that depends on what is not known.

    Args:
        condition: The tree.
        values: Input parameters by name, `None` for one that has no value; one that is not there is not known yet.

    Raises:
        ConditionError: It compares what cannot be compared, e.g. which of a text and a number is greater.
    """
    match condition:
        case Not(inner):
            holds = evaluate(inner, values)
            return None if holds is None else not holds
        case Joined(sign, parts):
            # One part that decides is enough, whatever the others turn out to be.
            decides = sign == "||"
            results = [evaluate(part, values) for part in parts]
            return decides if decides in results else None if None in results else not decides
        case Comparison(sign, left, right):
            try:
                return _compare(sign, _value(left, values), _value(right, values))
            except KeyError:
                return None


def parameters(tree: Condition | Operand) -> frozenset[str]:
    """Return the names of the input parameters that a condition asks."""
    match tree:
        case Parameter(name):
            return frozenset({name})
        case Constant():
            return frozenset()
        case Cast(inner) | Not(inner):
            return parameters(inner)
        case Joined(_, parts):
            return frozenset().union(*map(parameters, parts))
        case Comparison(_, left, right):
            return parameters(left) | parameters(right)


def to_argo(
    condition: Condition, argument: Callable[[str], Argument | None], text: Callable[[str], str] = lambda text: text
) -> str:
    """Return the expression of a condition that Argo evaluates.

    Args:
        condition: The tree.
        argument: Gives an input parameter of the task, `None` for one that has no value.
        text: Gives the form in which a text travels through a workflow.
    """
    match condition:
        case Not(inner):
            inside = to_argo(inner, argument, text)
            return {"true": "false", "false": "true"}.get(inside) or f"!({inside})"
        case Joined(sign, parts):
            return f"({f' {sign} '.join(to_argo(part, argument, text) for part in parts)})"
        case Comparison(sign, left, right):
            one, other = (_argument(side, argument, text) for side in (left, right))
            if one is None or other is None:
                return str(_compare(sign, None, None if one is other else "")).lower()
            if "number" in (one.kind, other.kind):
                return f"({_as_float(one)} {sign} {_as_float(other)})"
            return f"({one.expression} {sign} {other.expression})"


def literal(text: str) -> str:
    """Return `text` as a string literal of an expression: no quote, brace or line break in it is seen by anyone."""
    # Braces too: `}}` would end the tag that the expression stands in.
    escaped = "".join(
        letter if letter.isprintable() and letter not in "'\"\\{}" else _escape(letter) for letter in text
    )
    return f"'{escaped}'"


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._text = text
        self._at = 0

    def whole(self) -> Condition:
        condition = self._either()
        if self._at != len(self._tokens):
            raise _unreadable(self._text)
        return condition

    def _either(self) -> Condition:
        parts = [self._both()]
        while self._take("||"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Joined("||", tuple(parts))

    def _both(self) -> Condition:
        parts = [self._single()]
        while self._take("&&"):
            parts.append(self._single())
        return parts[0] if len(parts) == 1 else Joined("&&", tuple(parts))

    def _single(self) -> Condition:
        if self._take("!"):
            return Not(self._single())
        if self._take("("):
            inner = self._either()
            self._expect(")")
            return inner
        left = self._operand()
        kind, sign = self._peek()
        if kind != "sign" or sign not in _COMPARISONS:
            return Comparison("==", left, Constant(True))
        self._at += 1
        return Comparison(sign, left, self._operand())

    def _operand(self) -> Operand:
        kind, text = self._peek()
        self._at += 1
        match kind:
            case "parameter":
                return Parameter(text.partition("[")[2][1:-2])
            case "cast":
                self._expect("(")
                inner = self._operand()
                self._expect(")")
                return Cast(inner)
            case "number":
                return Constant(_number(text))
            case "boolean":
                return Constant(text == "true")
            case "string":
                plain = re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text[1:-1], flags=re.DOTALL)
                return Constant(plain)
        raise _unreadable(self._text)

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, sign: str) -> bool:
        if self._peek() != ("sign", sign):
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise _unreadable(self._text)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _unreadable(text)
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return tokens


def _unreadable(text: str) -> ConditionError:
    return ConditionError(f"condition {text!r}")


def _value(operand: Operand, values: Mapping[str, Any]) -> Any:
    match operand:
        case Constant(value):
            return value
        case Parameter(name):
            return values[name]
        case Cast(inner):
            value = _value(inner, values)
            return _number(value) if isinstance(value, str) else value


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ConditionError(f"the text {text!r}, which is no number")
    return float(text) if re.search(r"[.eE]", text) else int(text)


def _compare(sign: str, left: Any, right: Any) -> bool:
    if left is None or right is None:
        same = left is right
        return same if sign == "==" else not same if sign == "!=" else False
    if isinstance(left, str) == isinstance(right, str) or sign in {"==", "!="}:
        return _COMPARISONS[sign](left, right)
    raise ConditionError(f"the comparison {left!r} {sign} {right!r}")


def _argument(
    operand: Operand, argument: Callable[[str], Argument | None], text: Callable[[str], str]
) -> Argument | None:
    match operand:
        case Parameter(name):
            return argument(name)
        case Cast(Constant(bool() as value)):
            return Argument("number", str(int(value)))
        case Cast(inner):
            number = _argument(inner, argument, text)
            return None if number is None else Argument("number", _as_float(number))
        case Constant(bool() as value):
            # A parameter travels as text: `true` or `false` where it is a boolean.
            return Argument("text", literal(str(value).lower()))
        case Constant(str() as value):
            return Argument("text", literal(text(value)))
        case Constant(value):
            return Argument("number", repr(value))


def _as_float(argument: Argument) -> str:
    if argument.kind == "number":
        return argument.expression
    if argument.expression in {"'true'", "'false'"}:
        return "1" if argument.expression == "'true'" else "0"
    return f"asFloat({argument.expression})"


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

"""The part of expr-lang that workflows use, and Argo's own functions in it. What is not here is refused by name.

https://expr-lang.org/docs/language-definition, argo-workflows util/expr/env/env.go.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from tests.argo import golang


class ExpressionError(Exception):
    """What expr-lang would report: an unknown name, a wrong type, a syntax error."""


class UnknownFeature(Exception):
    """The interpreter does not know this; nothing is skipped in silence."""


_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>0x[0-9A-Fa-f]+|\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?)
  | (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|`[^`]*`)
  | (?P<name>[A-Za-z_$][\w$]*)
  | (?P<sign>\?\.|\?\?|\*\*|&&|\|\||==|!=|<=|>=|\.\.|[-+*/%^<>!?:.,()\[\]{}\#|])
    )""",
    re.VERBOSE,
)
_WORDS = {"not", "in", "or", "and", "matches", "contains", "startsWith", "endsWith", "let", "if", "else"}
_BINARY = {
    "||": 10,
    "or": 10,
    "&&": 15,
    "and": 15,
    **dict.fromkeys(("==", "!=", "<", ">", "<=", ">=", "in", "contains", "startsWith", "endsWith"), 20),
    "+": 30,
    "-": 30,
    "*": 60,
    "/": 60,
    "%": 60,
    "??": 500,
}
_UNKNOWN_BINARY = {"|", "matches", "..", "**", "^"}
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", "'": "'", '"': '"'}
_PREDICATES = {"map", "filter", "all", "any", "none", "count"}


def evaluate(expression: str, env: dict[str, Any]) -> Any:
    """Return the value of an expression.

    Args:
        expression: Its text.
        env: What it can name: nested dicts of strings, as `expand` gives them.

    Raises:
        ExpressionError: expr-lang would refuse it, or fail.
        UnknownFeature: It is not of the part of the language that is here.
    """
    tree = _Parser(expression).whole()
    # All names are looked up before anything runs: one that is unknown is an error in a branch not taken, too.
    for name in _names(tree):
        if name not in env:
            raise ExpressionError(f"unknown name {name}")
    return _value(tree, env, [])


def static_paths(expression: str) -> set[str]:
    """Return what an expression names by constant keys alone, as `tasks.a.outputs.parameters.b`.

    Raises:
        ExpressionError: It is none.
    """
    return set(_paths(_Parser(expression).whole()))


def expand(flat: dict[str, Any]) -> dict[str, Any]:
    """Return `{"a.b": 1}` as `{"a": {"b": 1}}`; of two keys of which one contains the other, the longer one stays."""
    nested: dict[str, Any] = {}
    for key in sorted(flat, key=len, reverse=True):
        place = nested
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                break
        else:
            place.setdefault(last, flat[key])
    return nested


class _Parser:
    """Makes a tree of tuples: the kind of the node first."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        self._at = 0
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise ExpressionError(f"unrecognized character: {text[at:].strip()[0]!r} in {text!r}")
            kind = str(match.lastgroup)
            word = match[kind]
            self._tokens.append(("sign" if kind == "name" and word in _WORDS else kind, word))
            at = match.end()

    def whole(self) -> Any:
        tree = self._ternary()
        if self._at != len(self._tokens):
            raise self._unexpected()
        return tree

    def _ternary(self) -> Any:
        condition = self._binary(0)
        if not self._take("?"):
            return condition
        then = self._ternary()
        self._expect(":")
        return ("ternary", condition, then, self._ternary())

    def _binary(self, strength: int) -> Any:
        left = self._unary()
        while True:
            kind, sign = self._peek()
            if kind != "sign":
                return left
            if sign in _UNKNOWN_BINARY:
                raise UnknownFeature(f"operator {sign!r} in {self._text!r}")
            if sign not in _BINARY or _BINARY[sign] < strength:
                return left
            self._at += 1
            left = ("binary", sign, left, self._binary(_BINARY[sign] + 1))

    def _unary(self) -> Any:
        kind, sign = self._peek()
        if kind == "sign" and sign in {"!", "not", "-", "+"}:
            self._at += 1
            return ("unary", sign, self._binary(50 if sign in {"!", "not"} else 90))
        return self._postfix(self._primary())

    def _primary(self) -> Any:
        kind, text = self._peek()
        self._at += 1
        if kind == "number":
            plain = text.replace("_", "")
            return ("constant", float(plain) if re.search(r"[.eE]", plain) and "x" not in plain else int(plain, 0))
        if kind == "string":
            return ("constant", text[1:-1] if text[0] == "`" else _unescape(text[1:-1]))
        if kind == "name":
            if text in {"true", "false", "nil"}:
                return ("constant", {"true": True, "false": False, "nil": None}[text])
            if self._take("("):
                return self._call(text)
            return ("name", text)
        if (kind, text) == ("sign", "#"):
            return ("item",)
        if (kind, text) == ("sign", "("):
            inner = self._ternary()
            self._expect(")")
            return inner
        if (kind, text) == ("sign", "["):
            return ("list", self._several("]"))
        if (kind, text) == ("sign", "{"):
            pairs = []
            while not self._take("}"):
                kind, key = self._peek()
                self._at += 1
                if kind not in {"name", "string"}:
                    raise UnknownFeature(f"a computed key in {self._text!r}")
                self._expect(":")
                pairs.append((key if kind == "name" else _unescape(key[1:-1]), self._ternary()))
                if not self._take(","):
                    self._expect("}")
                    break
            return ("map", pairs)
        self._at -= 1
        raise self._unexpected()

    def _call(self, name: str) -> Any:
        if name not in _PREDICATES:
            return ("call", name, self._several(")"))
        over = self._ternary()
        self._expect(",")
        braces = self._take("{")
        predicate = self._ternary()
        if braces:
            self._expect("}")
        self._expect(")")
        return ("each", name, over, predicate)

    def _several(self, end: str) -> list[Any]:
        items: list[Any] = []
        while not self._take(end):
            items.append(self._ternary())
            if not self._take(","):
                self._expect(end)
                break
        return items

    def _postfix(self, tree: Any) -> Any:
        while True:
            if self._take("."):
                kind, name = self._peek()
                # After a dot, every word is a name.
                if kind != "name" and name not in _WORDS:
                    raise self._unexpected()
                self._at += 1
                if self._peek() == ("sign", "("):
                    raise UnknownFeature(f"a call of {name!r} in {self._text!r}")
                tree = ("member", tree, ("constant", name))
            elif self._take("["):
                key = self._ternary()
                if self._peek() == ("sign", ":"):
                    raise UnknownFeature(f"a slice in {self._text!r}")
                self._expect("]")
                tree = ("member", tree, key)
            elif self._peek() == ("sign", "?."):
                raise UnknownFeature(f"'?.' in {self._text!r}")
            else:
                return tree

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, sign: str) -> bool:
        if self._peek() != ("sign", sign):
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._unexpected()

    def _unexpected(self) -> ExpressionError:
        kind, text = self._peek()
        return ExpressionError(f"unexpected token {text or kind!r} in {self._text!r}")


def _unescape(text: str) -> str:
    def letter(match: re.Match[str]) -> str:
        escape = match[1]
        if escape[0] in "xuU":
            return chr(int(escape[1:], 16))
        if escape not in _ESCAPES:
            raise ExpressionError(f"invalid char escape \\{escape}")
        return _ESCAPES[escape]

    return re.sub(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", letter, text)


def _names(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return {name for item in tree for name in _names(item)}
    if not isinstance(tree, tuple) or not tree:
        return set()
    if tree[0] == "name":
        return {tree[1]}
    if tree[0] == "call" and tree[1] not in _FUNCTIONS:
        raise UnknownFeature(f"the function {tree[1]!r}")
    return {name for part in tree[1:] if isinstance(part, tuple | list) for name in _names(part)}


def _paths(tree: Any) -> Iterator[str]:
    if isinstance(tree, list):
        for item in tree:
            yield from _paths(item)
    elif isinstance(tree, tuple) and tree:
        path = _path(tree)
        if path:
            yield path
        for part in tree[1:]:
            yield from _paths(part)


def _path(tree: Any) -> str:
    match tree:
        case ("name", name):
            return str(name)
        case ("member", inner, ("constant", str(key))):
            above = _path(inner)
            return f"{above}.{key}" if above else ""
    return ""


def _value(tree: Any, env: dict[str, Any], items: list[Any]) -> Any:
    match tree:
        case ("constant", value):
            return value
        case ("name", name):
            return env[name]
        case ("item",):
            if not items:
                raise ExpressionError("unexpected token '#'")
            return items[-1]
        case ("list", parts):
            return [_value(part, env, items) for part in parts]
        case ("map", pairs):
            return {key: _value(part, env, items) for key, part in pairs}
        case ("ternary", condition, then, other):
            return _value(then if _bool(_value(condition, env, items)) else other, env, items)
        case ("unary", sign, inner):
            value = _value(inner, env, items)
            if sign in {"!", "not"}:
                return not _bool(value)
            return -_number(value) if sign == "-" else _number(value)
        case ("binary", sign, left, right):
            return _binary(sign, left, right, env, items)
        case ("member", inner, key):
            return _member(_value(inner, env, items), _value(key, env, items))
        case ("call", name, arguments):
            return _FUNCTIONS[name](*[_value(argument, env, items) for argument in arguments])
        case ("each", name, over, predicate):
            return _each(name, _value(over, env, items), lambda item: _value(predicate, env, [*items, item]))
    raise UnknownFeature(str(tree))


def _binary(sign: str, left: Any, right: Any, env: dict[str, Any], items: list[Any]) -> Any:
    first = _value(left, env, items)
    if sign in {"&&", "and"}:
        return _bool(first) and _bool(_value(right, env, items))
    if sign in {"||", "or"}:
        return _bool(first) or _bool(_value(right, env, items))
    if sign == "??":
        return _value(right, env, items) if first is None else first
    second = _value(right, env, items)
    if sign in {"==", "!="}:
        return _equal(first, second) == (sign == "==")
    if sign == "in":
        if isinstance(second, dict):
            return first in second
        return any(_equal(first, item) for item in _typed(second, list, "in"))
    if sign in {"contains", "startsWith", "endsWith"}:
        text, part = _typed(first, str, sign), _typed(second, str, sign)
        return {"contains": part in text, "startsWith": text.startswith(part), "endsWith": text.endswith(part)}[sign]
    if isinstance(first, str) and isinstance(second, str):
        if sign == "+":
            return first + second
        one, other = first, second
    else:
        one, other = _number(first), _number(second)
    match sign:
        case "<":
            return one < other
        case "<=":
            return one <= other
        case ">":
            return one > other
        case ">=":
            return one >= other
    one, other = _number(one), _number(other)
    match sign:
        case "+":
            return one + other
        case "-":
            return one - other
        case "*":
            return one * other
        case "/":
            return one / other
        case "%":
            return int(math.fmod(one, other))
    raise UnknownFeature(sign)


def _member(holder: Any, key: Any) -> Any:
    if isinstance(holder, dict):
        return holder.get(key)
    if isinstance(holder, list) and isinstance(key, int | float):
        if not -len(holder) <= int(key) < len(holder):
            raise ExpressionError(f"index out of range: {key}")
        return holder[int(key)]
    raise ExpressionError(f"cannot fetch {key} from {_type(holder)}")


def _each(name: str, over: Any, predicate: Any) -> Any:
    pairs = [(item, predicate(item)) for item in _typed(over, list, name)]
    match name:
        case "map":
            return [value for _, value in pairs]
        case "filter":
            return [item for item, value in pairs if _bool(value)]
        case "all":
            return all(_bool(value) for _, value in pairs)
        case "any":
            return any(_bool(value) for _, value in pairs)
        case "none":
            return not any(_bool(value) for _, value in pairs)
    return sum(1 for _, value in pairs if _bool(value))


def _equal(one: Any, other: Any) -> bool:
    if _type(one) in {"int", "float"} and _type(other) in {"int", "float"}:
        return bool(one == other)
    return _type(one) == _type(other) and bool(one == other)


def _bool(value: Any) -> bool:
    return bool(_typed(value, bool, "a condition"))


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(f"invalid operation on {_type(value)}")
    return value


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ExpressionError(f"{what}: {_type(value)} is no {kind.__name__}")
    return value


def _type(value: Any) -> str:
    kinds = {type(None): "nil", bool: "bool", int: "int", float: "float", str: "string", list: "array", dict: "map"}
    return kinds[type(value)]


def _as_float(value: Any) -> float:
    try:
        if isinstance(value, str):
            if value != value.strip() or value == "":
                raise ValueError
            return float(value.replace("_", "?"))
        return float(_number(value))
    except ValueError as error:
        raise ExpressionError(f"invalid float: {value!r}") from error


def _as_int(value: Any) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"[-+]?\d+", value):
            raise ExpressionError(f"invalid int: {value!r}")
        return int(value)
    return int(_number(value))


def _from_json(text: Any) -> Any:
    try:
        return golang.parse(_typed(text, str, "fromJSON"))
    except ValueError as error:
        raise ExpressionError(f"fromJSON: {error}") from error


def _to_json(value: Any) -> str:
    try:
        return golang.dump(value)
    except ValueError as error:
        raise ExpressionError(f"toJson: {error}") from error


def _json_path(text: Any, path: Any) -> Any:
    value = _from_json(text)
    if not re.fullmatch(r"\$(?:\.[A-Za-z_]\w*|\[(?:'[^']*'|\"[^\"]*\"|\d+)\])*", path):
        raise UnknownFeature(f"the JSON path {path!r}")
    for name, index in re.findall(r"\.([A-Za-z_]\w*)|\[([^\]]*)\]", path):
        key = name or (int(index) if index.isdigit() else index[1:-1])
        if (isinstance(value, dict) and isinstance(key, str) and key in value) or (
            isinstance(value, list) and isinstance(key, int) and key < len(value)
        ):
            value = value[key]
        else:
            raise ExpressionError(f"key: invalid token {key!r} not found")
    return value


def _string(value: Any) -> str:
    return value if isinstance(value, str) else golang.dump(value)


def _flat(items: list[Any]) -> list[Any]:
    return [one for item in items for one in (_flat(item) if isinstance(item, list) else [item])]


_FUNCTIONS = {
    "asFloat": _as_float,
    "float": _as_float,
    "asInt": _as_int,
    "int": _as_int,
    "string": _string,
    "toJson": _to_json,
    "fromJSON": _from_json,
    "jsonpath": _json_path,
    "type": _type,
    "len": lambda value: len(value),
    "replace": lambda text, old, new: _typed(text, str, "replace").replace(old, new),
    "concat": lambda *lists: [item for one in lists for item in _typed(one, list, "concat")],
    "flatten": lambda items: _flat(_typed(items, list, "flatten")),
}

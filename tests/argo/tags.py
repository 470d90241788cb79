"""Argo's `{{...}}`: what is put in their place, and `when`. argo-workflows util/template, workflow/controller/steps.go.

Argo substitutes in the JSON text of an object, several times over, and leaves what it cannot resolve yet. A value is
put in as Go quotes it: a character that Go escapes otherwise than JSON breaks the object.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.argo import expressions, golang
from tests.argo.expressions import ExpressionError, UnknownFeature

RESERVED = ("item.", "steps.", "inputs.", "outputs.", "pod.", "workflow.", "tasks.")
"""What a tag begins with that must be resolved; any other that is unknown stays as it is."""
_WAIT_FOR = ("item", "retries", "lastRetry", "workflow.status", "workflow.failures")


class ArgoError(Exception):
    """What Argo would report of a workflow or of one of its nodes."""


def substitute(value: Any, scope: dict[str, str | None], strict: bool = False) -> Any:
    """Return a JSON value with its tags replaced.

    Args:
        value: The value.
        scope: What tags can name; `None` for an output of a task that did not run and has no default.
        strict: Whether every tag must be resolved, as in an item of a loop.

    Raises:
        ArgoError: A tag cannot be resolved, or the result is no JSON.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if "{{" not in text:
        return value
    pieces: list[str] = []
    at = 0
    while (start := text.find("{{", at)) >= 0:
        end = text.find("}}", start + 2)
        if end < 0:
            raise ArgoError("cannot find the end of a tag")
        pieces += [text[at:start], _replaced(text[start + 2 : end], scope, strict)]
        at = end + 2
    joined = "".join([*pieces, text[at:]])
    try:
        return json.loads(joined)
    except ValueError as error:
        raise ArgoError(
            f"cannot finish template replacement because the result was invalid JSON: {joined[:300]}"
        ) from error


def tags(value: Any) -> Iterator[str]:
    """Yield the insides of the tags in a JSON value."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for match in re.finditer(r"\{\{(.*?)\}\}", text, re.DOTALL):
        yield match[1]


def _replaced(tag: str, scope: dict[str, str | None], strict: bool) -> str:
    if tag.startswith("="):
        return _computed(tag[1:], scope, strict)
    name = tag.strip()
    if name in scope:
        value = scope[name]
        if value is None:
            raise ArgoError(f"failed to resolve {{{{{tag}}}}} to string: its task did not run and gives no default")
        return golang.quote(value)
    outer, separator, inner = tag.rpartition("{{")
    if separator and (value := scope.get(inner)) is not None:
        return "{{" + outer + golang.quote(value)
    if strict:
        raise ArgoError(f"failed to resolve {{{{{tag}}}}}")
    return "{{" + tag + "}}"


def _computed(tag: str, scope: dict[str, str | None], strict: bool) -> str:
    unresolved = "{{=" + tag + "}}"
    try:
        expression = json.loads(f'"{tag}"')
    except ValueError as error:
        raise ArgoError(f"failed to unmarshal JSON expression: {tag}") from error
    env = expressions.expand(dict(scope))
    # Names, not what stands in quotes.
    names = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "''", expression)
    waits = any(re.search(rf"(?<![\w.]){re.escape(name)}\b", names) and not _has(env, name) for name in _WAIT_FOR)
    try:
        result = None if waits else expressions.evaluate(expression, env)
    except ExpressionError as error:
        if strict:
            raise ArgoError(f"failed to evaluate expression: {error}") from error
        return unresolved
    if result is None:
        if strict:
            raise ArgoError(f"failed to evaluate expression {expression!r}")
        return unresolved
    text = golang.dump(result)
    return text[1:-1] if text[0] == '"' else golang.quote(text)


def _has(env: dict[str, Any], path: str) -> bool:
    place: Any = env
    for part in path.split("."):
        if not isinstance(place, dict) or part not in place:
            return False
        place = place[part]
    return True


_WHEN = re.compile(
    r"""\s*(?:(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<number>\d+(?:\.\d+)?)(?![\w-])
    |(?P<sign>&&|\|\||==|!=|<=|>=|[<>!()])|(?P<word>[A-Za-z]\w*)(?![-.\w]))""",
    re.VERBOSE,
)


def holds(when: str) -> bool:
    """Return what a task's `when` says after substitution: govaluate's language, in which a bare word is a string.

    Raises:
        ArgoError: It is no condition.
        UnknownFeature: It is of a part of the language that is not here.
    """
    parts: list[str] = []
    at = 0
    while when[at:].strip():
        match = _WHEN.match(when, at)
        if match is None:
            if when[at:].lstrip().startswith(("{{", "}}")):
                raise ArgoError(f"Invalid 'when' expression '{when}': Invalid token: '{{{{'")
            raise UnknownFeature(f"when: {when!r}")
        kind, text = str(match.lastgroup), match[str(match.lastgroup)]
        if kind == "word" and text not in {"true", "false"}:
            parts.append(golang.dump(text))
        elif kind == "number":
            parts.append(str(float(text)))
        else:
            parts.append(text)
        at = match.end()
    try:
        result = expressions.evaluate(" ".join(parts), {})
    except ExpressionError as error:
        raise ArgoError(f"Invalid 'when' expression '{when}': {error}") from error
    if not isinstance(result, bool):
        raise ArgoError(f"Expected boolean evaluation for '{when}'. Got {result!r}")
    return result

"""How results are shown: JSON for scripts, tables for people, progress on stderr.

The consoles `out` and `err` are made when they are first used, as a command that only shows its help needs none.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

    from shopfloor.records import GateResult

    out: Console
    """What a person reads, on stdout."""
    err: Console
    """Progress, on stderr."""


def __getattr__(name: str) -> Console:
    """Return the console of that name."""
    if name not in {"out", "err"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _console(name)


Document = TypeVar("Document")

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Return `text` with its control characters as `\\x1b`: a log or an answer must not steer the terminal."""
    return text.translate(_CONTROL)


def emit_json(document: type[Document], value: Document) -> None:
    """Print one JSON document on stdout, with the fields that the reference finds in `document`."""
    _write(document, value)


def emit_json_list(document: type[Document], values: Sequence[Document]) -> None:
    """Print a list of such documents on stdout."""
    _write(list[document], list(values))  # type: ignore[valid-type]


def _write(kind: Any, value: object) -> None:
    from pydantic import TypeAdapter

    sys.stdout.write(TypeAdapter(kind).dump_json(value, indent=2).decode() + "\n")


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout: drawn for a terminal, tab-separated for a pipe."""
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write(printable("\t".join(str(cell) for cell in row)) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    _console("out").print(table)


def megabytes(size_bytes: int) -> str:
    """Return a size as a table shows it, in millions of bytes."""
    return f"{size_bytes / 1e6:.1f} MB"


def progress(line: str) -> None:
    """Tell on stderr what happens."""
    if not sys.stderr.isatty():
        sys.stderr.write(printable(line) + "\n")
        return
    _console("err").print(line, markup=False, style="dim")


def confirm(what: str, yes: bool) -> None:
    """Let a person at a terminal think once more before something is replaced or ended; a script has decided."""
    import typer

    if not yes and sys.stdin.isatty():
        typer.confirm(f"{what} Go on?", abort=True, err=True)


@contextlib.contextmanager
def activity(title: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that something goes on: one moving line on a terminal, a line for each message elsewhere."""
    if not sys.stderr.isatty():
        yield progress
        return
    from rich.text import Text

    with _console("err").status(Text(title)) as spinner:
        yield lambda message: spinner.update(Text(printable(message)))


@functools.cache
def _console(name: str) -> Console:
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    return Plain(stderr=name == "err", highlight=False, soft_wrap=True)


def verdict(gate: GateResult) -> str:
    """Return a gate's verdict in words."""
    if gate.undecided:
        return gate.note or "undecided"
    return "met" if gate.passed else f"missed by {gate.missed_by:.4g}"

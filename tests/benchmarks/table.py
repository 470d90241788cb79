"""The table that the benchmarks print."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One comparison: ours, the peer's, and whether the target is met."""

    name: str
    ours: str
    peer: str
    ratio: float | None
    """Ours divided by the peer's."""
    target: str
    ok: bool
    pending: bool = False
    """The target is known not to be met yet: shown as such, and no failure of `make bench`."""


def show(rows: Iterable[Row]) -> bool:
    """Print the table; tell whether no target is missed."""
    table = Table("comparison", "ours", "peer", "ratio", "target", "")
    fine = True
    for row in rows:
        fine &= row.ok or row.pending
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, row.ours, row.peer, ratio, row.target, _verdict(row))
    Console(width=160).print(table)
    return fine


def _verdict(row: Row) -> str:
    if row.ok:
        return "met"
    return "not yet" if row.pending else "MISSED"

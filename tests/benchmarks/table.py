"""One line of the table that `make bench` prints."""

from __future__ import annotations

from dataclasses import dataclass


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

"""What may be freed: things of known kinds at known names, and who keeps which. All else stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from shopfloor.backup.places import Listed
from shopfloor.backup.sources import ARTIFACTS, DATA

KINDS: dict[str, tuple[str, str]] = {
    "artifacts of steps": (ARTIFACTS, r"steps/[^/\s\"\\]+/[0-9a-f]{16}-[0-9a-f]{8}"),
    "stored results": (ARTIFACTS, r"results/[0-9a-f]{2}/[0-9a-f]{64}\.json"),
    "attempts at steps": (ARTIFACTS, r"attempts/[^/\s\"\\]+"),
    "sources of features": (ARTIFACTS, r"features/[^/\s\"\\]+/[0-9a-f]{16}"),
    "checkpoints of searches": (ARTIFACTS, r"tune/[^/\s\"\\.][^/\s\"\\]*"),
    "data versions": (DATA, r"files/md5/[0-9a-f]{2}/[0-9a-f]{30}(?:\.dir)?"),
}
"""Place and name of each kind: a file, or a directory of files that belong together."""
RESULTS, FEATURES = "stored results", "sources of features"
# Looks ahead, as a name may begin within what looks like another one: the artifact store may be called /data/tune.
_NAMES = re.compile(f"(?=({'|'.join(pattern for _, pattern in KINDS.values())}))")
_PATTERNS = {kind: (place, re.compile(rf"({pattern})(?:/.+)?")) for kind, (place, pattern) in KINDS.items()}


class Unit(NamedTuple):
    """Files that are kept or freed together."""

    kind: str
    place: str
    name: str
    """Name of the file, or of the directory, in the place."""
    files: int
    size_bytes: int
    changed_s: float
    """Unix time of the last change of any of them."""


def units(listings: Mapping[str, Mapping[str, Listed]]) -> dict[str, Unit]:
    """Return what is of a known kind, by name.

    Args:
        listings: The files of each place, by name.
    """
    result: dict[str, Unit] = {}
    for place, listing in listings.items():
        for name, file in listing.items():
            for kind, (home, pattern) in _PATTERNS.items():
                match = pattern.fullmatch(name) if home == place else None
                if match is not None:
                    unit = result.get(match[1]) or Unit(kind, place, match[1], 0, 0, 0.0)
                    changed_s = max(unit.changed_s, file.changed_s)
                    size_bytes = unit.size_bytes + file.size_bytes
                    result[unit.name] = unit._replace(files=unit.files + 1, size_bytes=size_bytes, changed_s=changed_s)
                    break
    return result


def names_in(text: str) -> set[str]:
    """Return the names of units that a text has anywhere in it, such as in the URI of an artifact."""
    return set(_NAMES.findall(text))


def with_content(known: Iterable[str], hashes: Iterable[str]) -> set[str]:
    """Return the names of what steps published with one of these content hashes, under whatever name it is kept."""
    beginnings = {value[:16] for value in hashes}
    return {name for name in known if name.startswith("steps/") and name.rpartition("/")[2][:16] in beginnings}


def objects(hashes: Iterable[str]) -> Iterator[str]:
    """Yield the name of each object of DVC's remote with one of these hashes."""
    return (f"files/md5/{value[:2]}/{value[2:]}" for value in hashes)


def mark(known: Iterable[str], owners: Mapping[str, set[str]]) -> dict[str, str]:
    """Return the first owner of each name, empty for what nobody owns.

    Args:
        known: Names of units.
        owners: What each owner keeps; the order is that of importance.
    """
    return {name: next((owner for owner, kept in owners.items() if name in kept), "") for name in known}

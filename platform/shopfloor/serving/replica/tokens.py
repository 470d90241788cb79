"""Who may ask an endpoint: bearer tokens, of which a file holds only the hashes.

A line of the file is a name, the token's SHA-256 in hex, the use cases that it opens (`*` or names with commas), and
where it ends, the day: `alice 9f86d0... flight_delays 2027-01-31`. The file is read again when it changes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from shopfloor.errors import ConflictError, UsageError
from shopfloor.storage import write_atomically

logger = logging.getLogger(__name__)

ALL = "*"
LOOK_EVERY_S = 1.0
"""How often the file is looked at."""


@dataclass(frozen=True)
class Entry:
    """One token."""

    name: str
    digest: str
    use_cases: frozenset[str]
    expires: dt.date | None
    """The last day on which it counts, UTC."""

    def line(self) -> str:
        """Return the entry as the file holds it."""
        ends = [self.expires.isoformat()] if self.expires else []
        return " ".join([self.name, self.digest, ",".join(sorted(self.use_cases)), *ends])


class Tokens:
    """The tokens of one file, as it is now."""

    def __init__(self, file: Path) -> None:
        """Read `file` at the first question."""
        self._file = file
        self._looked = float("-inf")
        self._stamp: tuple[int, int, int] | None = None
        self._entries: list[Entry] = []

    def allow(self, authorization: bytes | None, use_case: str) -> bool:
        """Tell whether an `Authorization` header opens a use case; takes as long for a wrong token as for a right one.

        A file that cannot be read opens nothing.
        """
        self._look()
        scheme, _, token = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).hexdigest()
        today = dt.datetime.now(dt.UTC).date()
        allowed = False
        for entry in self._entries:
            same = hmac.compare_digest(entry.digest, digest)
            opens = bool(entry.use_cases & {ALL, use_case}) and (entry.expires is None or entry.expires >= today)
            allowed |= same and opens
        return allowed and scheme.lower() == b"bearer"

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._entries = read(self._file)
                self._stamp = stamp
        except (OSError, UsageError) as error:
            logger.error("no token counts: %s", error)
            self._entries, self._stamp = [], None


def read(file: Path) -> list[Entry]:
    """Return the entries of a token file.

    Raises:
        UsageError: A line is not an entry; it is named by its number, not by its content.
        OSError: The file cannot be read.
    """
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            entries.append(_entry(line.split(), f"{file}:{number}"))
    return entries


def create(file: Path, name: str, use_cases: list[str], expires: dt.date | None) -> str:
    """Add an entry to a token file, which is made where there is none, and return the token; it is kept nowhere.

    Raises:
        UsageError: The file has a broken line, or the name is none.
        ConflictError: The name is taken.
    """
    if not name or set(name) & set(" \t\n#"):
        raise UsageError(f"{name!r} is no name for a token.", "Use a word without blanks.")
    entries = read(file) if file.exists() else []
    if name in {entry.name for entry in entries}:
        raise ConflictError(f"{file} has a token {name!r} already.", f"shopfloor tokens revoke {name}")
    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    _write(file, [*entries, Entry(name, digest, frozenset(use_cases or [ALL]), expires)])
    return token


def revoke(file: Path, name: str) -> None:
    """Remove an entry.

    Raises:
        UsageError: There is none of that name.
    """
    entries = read(file) if file.exists() else []
    kept = [entry for entry in entries if entry.name != name]
    if len(kept) == len(entries):
        known = ", ".join(sorted(entry.name for entry in entries)) or "none"
        raise UsageError(f"{file} has no token {name!r}.", f"It has {known}.")
    _write(file, kept)


def _write(file: Path, entries: list[Entry]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(f"{entry.line()}\n" for entry in entries))
    file.chmod(0o600)


def _entry(words: list[str], place: str) -> Entry:
    remedy = "Write: name sha256 use_case,use_case [last day, as 2027-01-31]"
    if len(words) not in {3, 4} or len(words[1]) != 64 or set(words[1]) - set("0123456789abcdef"):
        raise UsageError(f"{place} is not a token's line.", remedy)
    try:
        expires = dt.date.fromisoformat(words[3]) if len(words) == 4 else None
    except ValueError as error:
        raise UsageError(f"{place}: its last day is no date.", remedy) from error
    return Entry(words[0], words[1], frozenset(words[2].split(",")), expires)

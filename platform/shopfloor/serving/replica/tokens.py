"""Who may ask an endpoint: bearer tokens, of which a file holds only the hashes.

A line of the file is a name, the token's SHA-256 in hex, the use cases that it opens (`*` or names with commas), and
where it ends, the day: `alice 9f86d0... flight_delays 2027-01-31`. The file is read again when it changes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shopfloor.errors import ConflictError, UsageError
from shopfloor.storage import file_stamp, write_atomically

logger = logging.getLogger(__name__)

ALL = "*"
LOOK_EVERY_S = 1.0
"""How often the file is looked at."""
LOCK_TIMEOUT_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
_USE_CASE = re.compile(r"[a-z][a-z0-9_]*")


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
        self._stamp: list[str | int] | None = None
        self._entries: list[Entry] = []

    def allow(self, authorization: bytes | None, use_case: str) -> bool:
        """Tell whether an `Authorization` header opens a use case; takes as long for a wrong token as for a right one.

        A file that cannot be read opens nothing.
        """
        self._look()
        scheme, _, token = (authorization or b"").partition(b" ")
        digest = _digest(token.strip())
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
            stamp = file_stamp(self._file)
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
    numbered = enumerate(_lines(file), start=1)
    return [_entry(words, f"{file}:{number}") for number, line in numbered if (words := _words(line))]


def create(file: Path, name: str, use_cases: list[str], expires: dt.date | None) -> str:
    """Add an entry to a token file, which is made where there is none, and return the token; it is kept nowhere.

    Args:
        file: The token file.
        name: Of the token.
        use_cases: What it opens; none stands for all.
        expires: The last day on which it counts.

    Raises:
        UsageError: The file has a broken line, or the name or a use case is none.
        ConflictError: The name is taken, or another command holds the file.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a token.", "Use a word of letters, digits and . _ @ + -")
    for use_case in use_cases:
        if use_case != ALL and not _USE_CASE.fullmatch(use_case):
            raise UsageError(
                f"{use_case!r} is no name of a use case.", "Use a name as in `pipelines/`, or leave it out."
            )
    token = secrets.token_urlsafe(32)
    entry = Entry(name, _digest(token.encode()), frozenset(use_cases or [ALL]), expires)

    def added(lines: list[str]) -> list[str]:
        if name in {one.name for one in (read(file) if lines else [])}:
            raise ConflictError(f"{file} has a token {name!r} already.", f"shopfloor tokens revoke {name}")
        return [*lines, entry.line()]

    _change(file, added)
    return token


def put(file: Path, name: str, token: str) -> None:
    """Let a token that was made elsewhere open all use cases, in the place of the one that had its name.

    Raises:
        UsageError: The file holds no text.
        ConflictError: Another command holds the file.
    """
    line = Entry(name, _digest(token.encode()), frozenset([ALL]), None).line()
    _change(file, lambda lines: [*(other for other in lines if _words(other)[:1] != [name]), line])


def revoke(file: Path, name: str) -> None:
    """Remove an entry, also one that is broken.

    Raises:
        UsageError: There is none of that name.
        ConflictError: Another command holds the file.
    """

    def without(lines: list[str]) -> list[str]:
        others = [line for line in lines if _words(line)[:1] != [name]]
        if len(others) == len(lines):
            names = ", ".join(sorted({words[0] for line in lines if (words := _words(line))})) or "none"
            raise UsageError(f"{file} has no token {name!r}.", f"It has {names}.")
        return others

    _change(file, without)


def _change(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Replace the lines of a token file, while no other command of ours does.

    Raises:
        UsageError: The file holds no text.
        ConflictError: Another command holds it for too long.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=LOCK_TIMEOUT_S, mode=0o600)
    try:
        with lock:
            lines = change(_lines(file) if file.exists() else [])
            mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
            write_atomically(file, "".join(f"{line}\n" for line in lines), mode)
    except Timeout as error:
        raise ConflictError(
            f"Another command has been changing {file} for {LOCK_TIMEOUT_S:g} s.", "Wait for it to end, then try again."
        ) from error


def _digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no text in UTF-8.", "Mend it, or make its tokens anew.") from error
    return lines[:-1] if lines[-1] == "" else lines


def _words(line: str) -> list[str]:
    """Return the words of a line; of a comment none."""
    words = re.split(r"[ \t\r]+", line.strip(" \t\r"))
    return [] if words == [""] or words[0].startswith("#") else words


def _entry(words: list[str], place: str) -> Entry:
    remedy = "Write: name sha256 use_case,use_case [last day, as 2027-01-31]"
    if len(words) not in {3, 4} or len(words[1]) != 64 or set(words[1]) - set("0123456789abcdef"):
        raise UsageError(f"{place} is not a token's line.", remedy)
    try:
        expires = dt.date.fromisoformat(words[3]) if len(words) == 4 else None
    except ValueError as error:
        raise UsageError(f"{place}: its last day is no date.", remedy) from error
    return Entry(words[0], words[1], frozenset(words[2].split(",")), expires)

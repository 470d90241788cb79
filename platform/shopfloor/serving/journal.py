"""What a process would lose if it were killed, on the disk of its machine until it is written where it belongs.

Each entry is appended to a file with one call before it is acknowledged. The file is locked as long as its process
lives: one without a lock was left behind, and whoever comes next writes out what is in it. It outlives the process and
its container, not the disk: nothing is synced, as machines seldom lose their power and an `fsync` for each answer
would cost every one of them.

    <directory>/<writer>-<number>    while it is written to, and until its entries are in their place
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

Value = str | int | float | bool | None


class Entry(NamedTuple):
    """One thing to keep."""

    values: Sequence[Value]
    blobs: Sequence[bytes]


class Journal:
    """The files of one writer; to be used by one thread at a time."""

    def __init__(self, directory: Path, writer: str) -> None:
        """Begin to write.

        Args:
            directory: Where the files of all writers of this kind are; made where it is missing.
            writer: Name that no other writer has or had.

        Raises:
            OSError: The directory cannot be written to.
        """
        self._directory, self._writer = directory, writer
        self._numbers = itertools.count(1)
        self._open: dict[str, int] = {}
        self._healthy = True
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._begin()

    def append(self, entry: Entry) -> None:
        """Keep an entry; where the disk takes none, the log says so once, and the entry is in memory only."""
        head = json.dumps([list(entry.values), [len(blob) for blob in entry.blobs]])
        frame = b"".join([head.encode(), b"\n", *entry.blobs])
        try:
            written = os.write(self._descriptor, frame)
            if written < len(frame):  # half an entry would hide those behind it
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(f"{written} of {len(frame)} bytes were written")
        except OSError as error:
            if self._healthy:
                logger.warning("the journal in %s takes nothing: %s", self._directory, error)
            self._healthy = False
        else:
            self._healthy = True

    def turn(self) -> str:
        """Return the name of the file so far, and begin another one.

        Raises:
            OSError: The directory takes no file; the one so far goes on.
        """
        name = self._name
        self._begin()
        return name

    def remove(self, name: str) -> None:
        """Forget a file whose entries are in their place."""
        (self._directory / name).unlink(missing_ok=True)
        os.close(self._open.pop(name))

    def close(self) -> None:
        """Let go of the files: the last one where it is empty, and others for whoever comes next."""
        if os.fstat(self._descriptor).st_size == 0:
            self.remove(self._name)
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def abandon(self) -> None:
        """Remove the files and write no more; their entries are in memory only."""
        for name in list(self._open):
            self.remove(name)

    def _begin(self) -> None:
        name = f"{self._writer}-{next(self._numbers):06}"
        draft = self._directory / f".{name}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            draft.rename(self._directory / name)  # locked before anybody sees it
        except OSError:
            os.close(descriptor)
            raise
        self._name, self._descriptor = name, descriptor
        self._open[name] = descriptor


def left_behind(directory: Path) -> Iterator[tuple[str, list[Entry]]]:
    """Yield the name and the entries of each file whose writer is gone, and remove the file when asked for the next.

    Two who look at once do not get the same file. Whoever does not ask for the next leaves the file where it is.

    Raises:
        OSError: The directory cannot be read.
    """
    if not directory.is_dir():
        return
    for file in sorted(directory.iterdir()):
        if file.name.startswith("."):
            continue
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):  # taken meanwhile, or another account's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                yield file.name, _entries(file)
                file.unlink()
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _entries(file: Path) -> list[Entry]:
    """Return what a file holds, up to what is no whole entry."""
    content, entries, start = file.read_bytes(), [], 0
    while (end := content.find(b"\n", start)) >= 0:
        try:
            values, sizes = json.loads(content[start:end])
            bounds = list(itertools.accumulate(sizes, initial=end + 1))
        except (ValueError, TypeError):
            break
        if bounds[-1] > len(content):
            break
        entries.append(Entry(values, [content[one:other] for one, other in itertools.pairwise(bounds)]))
        start = bounds[-1]
    if start < len(content):
        logger.warning("%s ends in the middle of an entry: its last %d bytes are left out", file, len(content) - start)
    return entries

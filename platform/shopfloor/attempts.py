"""Who has the last word: writes that count only if nobody wrote since, and attempts at a step that know their order.

An attempt that was cut off (its pod deleted, its machine asleep, its run begun again elsewhere) may go on as long as
nobody tells it. So each claims its number before it runs, in one file of the artifact store that is only ever replaced
as it was read, and looks again before anything of it becomes visible: where a newer one has claimed, it publishes
nothing and says who took its place. On a disk a lock of the directory makes the comparison and the write one; an S3
server does the same for `If-Match` and `If-None-Match`. One that knows neither leaves the time of one request between.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shopfloor.errors import ConflictError
from shopfloor.settings import Settings
from shopfloor.storage import filesystem, is_remote, join, local_path, write_atomically

FOLDER = "attempts"
LOCK_TIMEOUT_S = 30.0
"""How long a directory may be held by another process: for no longer than a small file takes, unless it is stopped."""


class SupersededError(ConflictError):
    """A newer attempt at the same step has begun: this one publishes nothing."""


@dataclass(frozen=True)
class Attempt:
    """One attempt among those at the same thing."""

    place: str
    """What is attempted, as a path below `attempts` in the artifact store: a run, or a step of one."""
    number: int
    """Number in the order in which they began, from 1."""
    token: str
    """Tells it from one that got the same number after the file was lost."""

    def __str__(self) -> str:
        return f"{self.place}#{self.number}#{self.token}"

    @classmethod
    def parse(cls, text: str) -> Attempt:
        """Return the attempt that `str` gave."""
        place, number, token = text.rsplit("#", 2)
        return cls(place, int(number), token)


def claim(settings: Settings, place: str, who: str) -> Attempt:
    """Begin an attempt, which supersedes all before it; `settings.attempt` of its processes is its text.

    Args:
        settings: Say where the artifact store is.
        place: What is attempted, a path that is the same for each attempt at it.
        who: Who makes this one, for whoever is superseded.

    Raises:
        ServiceError: The store does not answer.
        ConflictError: Too many claim at once, or a process holds the store's directory.
    """
    uri = _uri(settings, place)
    for _ in range(100):
        standing, version = read(settings, uri)
        number = int(json.loads(standing)["number"]) + 1 if standing else 1
        own = Attempt(place, number, uuid.uuid4().hex[:12])
        began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        text = json.dumps({"number": number, "token": own.token, "by": who, "began": began})
        if replace(settings, uri, text, version):
            return own
    raise ConflictError(f"Too many attempts at {place} begin at once.", "Do it again.")


def require_newest(settings: Settings) -> None:
    """Let only the newest attempt go on to what others see; of a process without one nothing is known.

    Args:
        settings: Name the attempt of this process, and where the artifact store is.

    Raises:
        SupersededError: A newer one has begun; says whose.
        ServiceError: The store does not answer.
    """
    if settings.attempt is None:
        return
    own = Attempt.parse(settings.attempt)
    standing, _ = read(settings, _uri(settings, own.place))
    newest = json.loads(standing) if standing else {}
    if newest and newest["token"] != own.token:
        raise superseded(own, f"attempt {newest['number']}, which {newest['by']} began at {newest['began']}")


def superseded(own: Attempt, by: str) -> SupersededError:
    """Return the error that says by whom an attempt was superseded."""
    return SupersededError(
        f"Attempt {own.number} at {own.place} was superseded by {by}: it publishes nothing.",
        "Nothing is to be done: the newer one counts.",
    )


def read(settings: Settings, uri: str) -> tuple[str, str] | tuple[None, None]:
    """Return a small file of the artifact store and its version, for `replace`; nothing where there is none."""
    try:
        if not is_remote(uri):
            text = local_path(uri).read_text(encoding="utf-8", errors="replace")
            return text, _digest(text)
        source, path = filesystem(settings, uri)
        handler = getattr(source, "handler", None)
        if handler is not None and hasattr(handler.fs, "read_with_tag"):
            content, version = handler.fs.read_with_tag(path)
            return content.decode(errors="replace"), version
        with source.open_input_stream(path) as stream:
            text = str(stream.read().decode(errors="replace"))
        return text, _digest(text)
    except FileNotFoundError:
        return None, None


def replace(settings: Settings, uri: str, text: str, version: str | None) -> bool:
    """Write a small file unless it has changed since it was read.

    Args:
        settings: Say where the store is.
        uri: The file.
        text: Its new content.
        version: What `read` gave with what is to be replaced; `None` where nothing was there.

    Returns:
        Whether it is written; otherwise what somebody else wrote stands.

    Raises:
        ServiceError: The store does not answer.
        ConflictError: Another process holds the directory.
    """
    if not is_remote(uri):
        file = local_path(uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _held(file.parent):
            if read(settings, uri)[1] != version:
                return False
            write_atomically(file, text)
        return True
    # A server may take no notice of a condition: it is looked at here too.
    if read(settings, uri)[1] != version:
        return False
    target, path = filesystem(settings, uri)
    handler = getattr(target, "handler", None)
    if handler is not None and hasattr(handler.fs, "put_if"):
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        # The client asks again where an answer was lost, and is then refused because of its own write.
        return bool(handler.fs.put_if(path, text.encode(), **condition)) or read(settings, uri)[0] == text
    with target.open_output_stream(path) as stream:
        stream.write(text.encode())
    return True


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold a directory against other processes that write to it as here.

    Raises:
        ConflictError: Another process has held it for too long.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConflictError(
                        f"Another process holds {directory} for {LOCK_TIMEOUT_S:.0f} s.",
                        "It is stopped or hangs: `lslocks` shows it. End it, then do it again.",
                    ) from error
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _uri(settings: Settings, place: str) -> str:
    return join(settings.artifact_root, FOLDER, f"{place}.json")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

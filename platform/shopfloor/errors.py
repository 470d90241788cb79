"""The errors that a user can act on: each says what is wrong and what to do about it.

Anything else that escapes is a bug of ours. The command line turns a ShopfloorError into one line and an exit code; a
step's process leaves what ends it as data, for the engine that began the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

FAILURE_FILE = "SHOPFLOOR_FAILURE_FILE"
"""Variable of a step's process: the file that takes why it failed."""
_USER = re.compile(r"(?<=://)[^\s/?#]*@")
EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception): \S")
"""The line of a traceback that names the exception."""
_VALUE = re.compile(r"([?&,;]\w*(?:password|passwd|pwd|token|secret)=)[^\s&,;'\"]+", re.IGNORECASE)


class ShopfloorError(Exception):
    """Something failed that the user can mend.

    Args:
        message: What is wrong, with the value that is wrong.
        remedy: What to do, with the command to type.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class UsageError(ShopfloorError):
    """The command was asked wrongly: an unknown name, a wrong type, a broken configuration file."""

    exit_code = 2


class NotFoundError(UsageError):
    """What was named does not exist: a run, a model, a revision, a use case."""


class ServiceError(ShopfloorError):
    """A service that the command needs does not answer."""


class AccessError(ServiceError):
    """A service does not let the caller in, or not do that."""


class DataError(ShopfloorError):
    """The data do not meet the expectations of the use case."""


class RefusalError(ShopfloorError):
    """A run may not do what a person decided against; a person may."""


class ConflictError(ShopfloorError):
    """Another process does the same thing at this moment."""


MAX_CHARACTERS = 2000
"""Length of a line that another program wrote, at most."""


def first_line(error: BaseException, limit: int = MAX_CHARACTERS) -> str:
    """Return what an error says, or its type, in one line of at most `limit` characters without a full stop."""
    return without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0]).rstrip(".")[:limit]


def exception_in(text: str) -> str:
    """Return the last line of what a program wrote that names an exception, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in reversed(lines) if EXCEPTION.match(line)), lines[-1])


def whole(error: BaseException) -> str:
    """Return all that an error says; one that is not ours does not say what it is without its type."""
    return str(error) if isinstance(error, ShopfloorError) else f"{type(error).__name__}: {error}"


def without_secrets(text: str) -> str:
    """Return a text without what stands before the host in its addresses, and without the passwords behind it."""
    return _VALUE.sub(r"\1***", _USER.sub("", text))


@dataclass(frozen=True)
class Failure:
    """Why a step failed."""

    kind: str
    """Name of the exception's class, of the signal that ended the process, or `exit`."""
    message: str
    """What is wrong."""
    remedy: str = ""
    """What to do about it, where somebody knows."""

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return what an exception says."""
        kind = type(error).__name__
        if isinstance(error, ShopfloorError):
            return cls(kind, error.message, error.remedy)
        # What a program ends itself with is a sentence already.
        words = str(error) if isinstance(error, SystemExit) else f"{kind}: {error}".rstrip(": ")
        return cls(kind, without_secrets(words))


def leave(why: BaseException | Failure | None) -> None:
    """Write why this process fails, or will have failed if it ends now, where an engine reads it; `None` takes it back.

    Without an engine that began this process nothing happens.
    """
    file = os.environ.get(FAILURE_FILE)
    if file:
        failure = Failure.of(why) if isinstance(why, BaseException) else why
        text = json.dumps(asdict(failure)) if failure else ""
        with contextlib.suppress(OSError):  # the exit code is told in any case
            Path(file).write_text(text, encoding="utf-8")

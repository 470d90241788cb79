"""The errors that a user can act on: each says what is wrong and what to do about it.

Anything else that escapes is a bug of ours. The command line turns a ShopfloorError into one line and an exit code.
"""

from __future__ import annotations


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
"""Of a line that another program wrote."""


def first_line(error: BaseException, limit: int = MAX_CHARACTERS) -> str:
    """Return what an error says, or its type, in one line of at most `limit` characters without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:limit]

"""What a replica answers instead of a prediction, and why a model has no typed row."""

from __future__ import annotations

Problems = list[dict[str, str]]
"""Wrong fields of a request, each with its name and its problem."""


class BadRequest(Exception):
    """The request cannot be answered as it is, or not now; the client can mend it or come back.

    Args:
        status: HTTP status: 400 to 499, or 503 where it can be answered later.
        message: What is wrong with the request as a whole.
        fields: For each wrong field its name and its problem.
    """

    def __init__(self, status: int, message: str, fields: Problems | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.fields = fields or []


class NoRowSchema(Exception):
    """The model's signature does not describe a row of named scalar columns."""


class MethodNotAllowed(BadRequest):
    """There is such a route, and it takes another method."""

    def __init__(self, route: str, method: str, allowed: str) -> None:
        super().__init__(405, f"{route} takes {allowed}, not {method[:20]}.")
        self.allowed = allowed

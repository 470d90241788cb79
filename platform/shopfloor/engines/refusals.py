"""What a cluster's API means with an answer other than success, as one of our errors: one line and what to do.

Argo's server and Kubeflow Pipelines answer alike: gRPC codes as JSON, with the words of Kubernetes in them. The token
that was sent never stands in an error.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from shopfloor.errors import ConflictError, NotFoundError, ServiceError, ShopfloorError, UsageError

_SAID_LIMIT = 400
_BY_CODE = {3: 400, 5: 404, 6: 409, 7: 403, 9: 400, 16: 401}
"""gRPC's codes as HTTP has them: a proxy between may give every error the status 500."""
_UNKNOWN = 2
_BY_WORDS = (
    (re.compile(r"\bis forbidden\b|\bcannot \w+ resource\b"), 403),
    (re.compile(r"\balready exists\b|\bobject has been modified\b"), 409),
    (re.compile(r"\bnot found\b"), 404),
    (re.compile(r"\bUnauthorized\b"), 401),
    (re.compile(r"\bis invalid\b"), 422),
)
"""What Kubernetes says, where an older server hands it on as an unknown error."""


@dataclass(frozen=True)
class Api:
    """A cluster's API as its errors name it."""

    kind: str
    """Kind of the service, as in `Argo server`."""
    url: str
    namespace: str
    token_variable: str
    address: str
    """The setting that holds the URL."""
    how: str = ""
    """The command that gives a user a token."""

    @property
    def name(self) -> str:
        """The server as the subject of a sentence."""
        return f"The {self.kind}"

    def refused(self, status: int, body: Any, token: str, right: str, at_name_taken: str) -> ShopfloorError:
        """Return what an answer means.

        Args:
            status: HTTP status.
            body: The answer as JSON, or `None` where it is none.
            token: What was sent; empty where there was none.
            right: What was to be done and to what, as in `create workflows`.
            at_name_taken: What to do about a conflict.
        """
        meaning, detail = _read(status, body, token)
        if meaning == 401:
            how = f" (`{self.how}`)" if self.how else ""
            return ServiceError(
                f"{self.name} {self.url} {_fault_of(token)}.",
                f"Put a valid token into ${self.token_variable} or the file cluster.token_file{how}.",
            )
        if meaning == 403:
            return ServiceError(
                f"No right to {right} in the namespace {self.namespace}{_after_colon(detail)}.",
                "Ask the platform team for it, or mend cluster.namespace.",
            )
        if meaning == 404 and detail:
            if (
                f'namespaces "{self.namespace}" not found' in detail
                or f"namespaces '{self.namespace}' not found" in detail
            ):
                return NotFoundError(f"There is no namespace {self.namespace!r}.", "Mend cluster.namespace.")
            return NotFoundError(
                f"{self.name} does not know it{_after_colon(detail)}.",
                "Its record is kept; `shopfloor runs resume` goes on.",
            )
        if meaning == 409:
            return ConflictError(f"{self.name} refuses{_after_colon(detail or 'the name is taken')}.", at_name_taken)
        if meaning in {400, 422}:
            return UsageError(f"{self.name} refuses it{_after_colon(detail)}.", "Mend the pipeline or the profile.")
        if meaning == 429 or meaning >= 500:
            return ServiceError(
                f"{self.name} {self.url} failed with status {status}{_after_colon(detail)}.",
                "Try again; the server's own log says more.",
            )
        return self.another()

    def another(self) -> ServiceError:
        """Return the error for an answer that such a server does not give."""
        return ServiceError(f"What answers at {self.url} is no {self.kind}.", f"Mend {self.address}.")

    def silent(self, timeout_s: float | None) -> tuple[str, str]:
        """Return what is wrong, and what to do, where no answer came: within a time, or at all."""
        late = f"did not answer within {timeout_s:g} s" if timeout_s is not None else "does not answer"
        return f"{self.name} {self.url} {late}.", f"Look whether it is up and {self.address} is right, then try again."

    def untrusted(self) -> ServiceError:
        """Return the error for a certificate that nobody here vouches for."""
        return ServiceError(
            f"{self.name} {self.url} has no certificate that is trusted.",
            "Give the file of the authority that signed it in REQUESTS_CA_BUNDLE.",
        )


def _read(status: int, body: Any, token: str) -> tuple[int, str]:
    """Return the HTTP status that an answer means, and what the server says, in one line."""
    detail = ""
    code = None
    if isinstance(body, dict):
        code = body.get("code")
        detail = str(body.get("message") or body.get("error") or body.get("error_message") or "")
        if detail.startswith("{"):
            detail = _within(detail)
    detail = " ".join(detail.split())
    detail = (detail.replace(token, "***") if token else detail)[:_SAID_LIMIT].rstrip(". ")
    if status != 500 or not isinstance(code, int):
        return status, detail
    if code == _UNKNOWN:
        return next((meaning for words, meaning in _BY_WORDS if words.search(detail)), status), detail
    return _BY_CODE.get(code, status), detail


def _within(detail: str) -> str:
    """Return the message of a Kubernetes Status that stands as JSON in a message."""
    try:
        return str(json.loads(detail)["message"])
    except (ValueError, KeyError, TypeError):
        return detail


def _fault_of(token: str) -> str:
    if not token:
        return "wants a token"
    expiry = _expiry(token)
    if expiry is not None and expiry <= time.time():
        since = dt.datetime.fromtimestamp(expiry, dt.UTC)
        return f"refuses the token: it expired at {since:%Y-%m-%d %H:%M} UTC"
    return "refuses the token: it is wrong or has expired"


def _expiry(token: str) -> float | None:
    """Return when a token that says so ends, as those of Kubernetes do; read, not verified."""
    try:
        claims = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def _after_colon(detail: str) -> str:
    return f": {detail}" if detail else ""

"""One HTTP request as ASGI hands it in, its body within the limits, and the forms of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from shopfloor.serving.schema import BadRequest

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = tuple[int, str, bytes]
"""Status, content type and body."""

READ = ("GET", "HEAD")
REQUEST_ID = b"x-request-id"
_GIVEN_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_process = secrets.token_hex(6)
_numbers = itertools.count(1)


class MethodNotAllowed(BadRequest):
    """There is such a route, and it takes another method."""

    def __init__(self, route: str, method: str, allowed: str) -> None:
        super().__init__(405, f"{route} takes {allowed}, not {method[:20]}.")
        self.allowed = allowed


class Request:
    """What a client asks, and what came of it, for the metrics and the log."""

    __slots__ = (
        "_receive",
        "allowed",
        "body",
        "failed",
        "headers",
        "method",
        "named",
        "path",
        "request_id",
        "role",
        "root",
        "route",
        "scheme",
        "version",
    )

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """Read the head; the body waits."""
        self.method: str = scope["method"]
        self.scheme: str = scope["scheme"]
        self.root: str = scope.get("root_path", "")
        self.path: str = scope["path"].removeprefix(self.root)
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.body: bytes | None = None
        """`None` until it is here."""
        self.route = "other"
        """One of a few, for the metrics."""
        self.version = ""
        """That answered; empty while none does."""
        self.role = "live"
        self.allowed = ""
        """The methods that the route takes, where it does not take this one."""
        self.failed = False
        """Whether the model failed, not the client."""
        given = self.headers.get(REQUEST_ID, b"")
        self.named = _GIVEN_ID.fullmatch(given) is not None
        """Whether the id came with the request."""
        self.request_id = given.decode() if self.named else f"{_process}-{next(_numbers):x}"
        self._receive = receive

    async def read(self, limit: int) -> bytes:
        """Return the body, and read no more of it than may be.

        Args:
            limit: In bytes.

        Raises:
            BadRequest: It is empty or larger.
        """
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > limit:
            raise BadRequest(413, f"The body holds {int(length)} bytes; at most {limit} are read.")
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BadRequest(400, "The body ends too early.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise BadRequest(413, f"The body holds more than {limit} bytes.")
            more = message.get("more_body", False)
        self.body = parts[0] if len(parts) == 1 else b"".join(parts)
        if not self.body:
            raise BadRequest(400, "The body is empty.")
        return self.body

    def require_json(self) -> None:
        """Refuse another content type.

        Raises:
            BadRequest: It is none or another.
        """
        kind = self.headers.get(b"content-type", b"")
        if kind != b"application/json" and kind.partition(b";")[0].strip().lower() != b"application/json":
            named = kind.decode("latin-1")[:100] or "none"
            raise BadRequest(415, f"The content type must be application/json, not {named}.")


def as_json(status: int, content: dict[str, Any]) -> Answer:
    """Return an answer in JSON."""
    return status, "application/json", json.dumps(content).encode()


def problem(status: int, message: str, fields: list[dict[str, str]] | None = None) -> Answer:
    """Return a refusal."""
    return as_json(status, {"message": message} | ({"fields": fields} if fields else {}))


async def decline(scope: Scope, receive: Receive, send: Send) -> None:
    """Go through the lifespan that ASGI servers announce; refuse web sockets."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

"""One HTTP request as ASGI hands it in, its body within the limits, and the forms of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from shopfloor.serving.contract import VERSION_HEADER
from shopfloor.serving.errors import BadRequest

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = tuple[int, str, bytes]
"""Status, content type and body."""

READ = ("GET", "HEAD")
REQUEST_ID = b"x-request-id"
ASKED_VERSION = VERSION_HEADER.lower().encode()
JSON_BYTES = b"inference-header-content-length"
RETRY_AFTER_S = 1
MAX_HELD_BYTES = 512 * 1024 * 1024
"""Bytes of all bodies together, from which on those that are not here as a whole are refused."""
ONCE = (
    b"authorization",
    b"content-type",
    b"content-length",
    b"host",
    b"x-request-key",
    REQUEST_ID,
    ASKED_VERSION,
    JSON_BYTES,
)
"""Headers that a request has once: of two, a proxy and the endpoint might each believe another one."""
_GIVEN_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_process = secrets.token_hex(6)
_numbers = itertools.count(1)


class Reading:
    """The requests that a replica answers, and the bodies that it holds, those still on their way included."""

    def __init__(self) -> None:
        """Begin with none."""
        self.held = 0
        """Bytes of all bodies."""
        self.admitted = 0
        """Requests whose body is here, and that are not answered yet."""

    def require_room(self, limit: int) -> None:
        """Refuse a request where `limit` of them are being answered.

        Raises:
            BadRequest: So many are.
        """
        if self.admitted >= limit:
            raise BadRequest(503, f"{limit} requests are being answered; come back.")

    def admit(self, request: Request, limit: int) -> None:
        """Give a request a place among those that are answered.

        Raises:
            BadRequest: There is none.
        """
        self.require_room(limit)
        self.admitted += 1
        request.admitted = True

    def let_go(self, request: Request) -> None:
        """Count a request that was answered no more, and nothing that a thread still does for it."""
        working = request.working
        if working is not None and not working.done():
            when_done(working, lambda: self._let_go(request))
        else:
            self._let_go(request)

    def _let_go(self, request: Request) -> None:
        self.held -= request.held
        self.admitted -= request.admitted
        request.held, request.admitted = 0, False


class Request:
    """What a client asks, and what came of it, for the metrics and the log."""

    __slots__ = (
        "_reading",
        "_receive",
        "admitted",
        "allowed",
        "body",
        "doubled",
        "failed",
        "features",
        "has_client_id",
        "headers",
        "held",
        "json_bytes",
        "method",
        "path",
        "request_id",
        "role",
        "root",
        "route",
        "scheme",
        "version",
        "working",
    )

    def __init__(self, scope: Scope, receive: Receive, reading: Reading) -> None:
        """Read the head; the body waits."""
        self.method: str = scope["method"]
        self.scheme: str = scope["scheme"]
        self.root: str = scope.get("root_path", "")
        self.path: str = scope["path"].removeprefix(self.root)
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.doubled = b""
        """The header that it has more than once, though that may be there once."""
        if len(self.headers) < len(scope["headers"]):
            names = [name for name, _ in scope["headers"]]
            self.doubled = next((name for name in ONCE if names.count(name) > 1), b"")
        self.body: bytes | None = None
        """Body of the request; `None` until it is here."""
        self.route = "other"
        """Route for the metrics, one of a few."""
        self.version = ""
        """Version that answered; empty while none does."""
        self.role = "live"
        self.admitted = False
        """Whether it takes a place among those that are answered."""
        self.allowed = ""
        """The methods that the route takes, where it does not take this one."""
        self.failed = False
        """Whether the model failed, not the client."""
        value = self.headers.get(REQUEST_ID, b"")
        self.has_client_id = _GIVEN_ID.fullmatch(value) is not None
        """Whether the id came with the request."""
        self.request_id = value.decode() if self.has_client_id else f"{_process}-{next(_numbers):x}"
        self.features = b""
        """The row that the model was given, where it was completed."""
        self.json_bytes: int | None = None
        """Bytes of JSON in the answer, where tensors follow as bytes."""
        self.held = 0
        """Bytes of the body that are here."""
        self.working: Future[Any] | None = None
        """What a thread does for it, perhaps still when nobody waits for the answer any more."""
        self._receive = receive
        self._reading = reading

    async def read(self, limit: int) -> bytes:
        """Return the body, and read no more of it than may be.

        Args:
            limit: In bytes.

        Raises:
            BadRequest: It is empty or larger, or the replica holds too much already.
        """
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > limit:
            raise BadRequest(413, f"The body holds {int(length)} bytes; at most {limit} are read.")
        parts: list[bytes] = []
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BadRequest(400, "The body ends too early.")
            parts.append(message.get("body", b""))
            self.held += len(parts[-1])
            self._reading.held += len(parts[-1])
            if self.held > limit:
                raise BadRequest(413, f"The body holds more than {limit} bytes.")
            more = message.get("more_body", False)
            if more and self._reading.held > MAX_HELD_BYTES:
                raise BadRequest(503, "Too many large bodies are on their way; come back.")
        self.body = parts[0] if len(parts) == 1 else b"".join(parts)
        if not self.body:
            raise BadRequest(400, "The body is empty.")
        return self.body

    def json_length(self) -> int | None:
        """Return how much of the body is JSON, where tensors follow it as bytes.

        Raises:
            BadRequest: That is no number; or all of it is to be JSON, and is said to be something else.
        """
        length = self.headers.get(JSON_BYTES)
        if length is None:
            self.require_json()
            return None
        if not length.isdigit() or len(length) > 12:
            raise BadRequest(400, "Inference-Header-Content-Length must be a number.")
        return int(length)

    def require_json(self) -> None:
        """Refuse another content type.

        Raises:
            BadRequest: It is none or another.
        """
        kind = self.headers.get(b"content-type", b"")
        if kind != b"application/json" and kind.partition(b";")[0].strip().lower() != b"application/json":
            name = kind.decode("latin-1")[:100] or "none"
            raise BadRequest(415, f"The content type must be application/json, not {name}.")


def when_done(future: Future[Any], callback: Callable[[], None]) -> None:
    """Call something on this event loop when a thread has done its work, unless the loop has ended by then."""
    loop = asyncio.get_running_loop()

    def done(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(callback)

    future.add_done_callback(done)


def answer_headers(request: Request, status: int, content_type: str, length: int) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer whose body has `length` bytes."""
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(length).encode()),
    ]
    if not request.has_client_id:  # Serve names each request and says so in the answer
        headers.append((REQUEST_ID, request.request_id.encode()))
    if request.version:
        headers.append((ASKED_VERSION, request.version.encode()))
    if request.json_bytes is not None:
        headers.append((JSON_BYTES, str(request.json_bytes).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    elif status == 405:
        headers.append((b"allow", request.allowed.encode()))
    elif status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    return headers


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

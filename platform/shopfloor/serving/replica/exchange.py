"""A request and its answer in the uvicorn of a replica, which does two things otherwise than uvicorn does.

Answers are written in one piece; uvicorn writes the head of an answer and its body apart. HAProxy can ask another
replica for what a dead one had not begun to answer. Between two writes an answer is begun and not there; and the second
costs a system call here, in HAProxy and in the client.

Headers that Ray Serve reads reach it only where they are text: it reads them before the application is asked, and
answers 500 where it cannot.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http import httptools_impl

READ_BY_SERVE = frozenset(
    {
        b"x-request-id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
        b"serve-multiplexed-model-id",
    }
)
"""Headers, with `-` for `_`, that Ray Serve decodes on every request."""


def install() -> None:
    """Have the uvicorn of this process use `Exchange`, from its next request on.

    Neither uvicorn nor Ray Serve, which starts it, lets one choose that class.
    """
    httptools_impl.RequestResponseCycle = Exchange  # type: ignore[misc]


class Exchange(httptools_impl.RequestResponseCycle):
    """One request and its answer, whose head waits for the first of its body."""

    _head: Any = None

    async def run_asgi(self, app: Any) -> None:
        """Ask the application, as uvicorn does, without the headers that Ray Serve would fail on."""
        headers = self.scope["headers"]
        if not all(value.isascii() for _, value in headers):
            self.scope["headers"] = [(name, value) for name, value in headers if not _fails_serve(name, value)]
        await super().run_asgi(app)

    async def send(self, message: Any) -> None:
        """Take a message of ASGI, as uvicorn does."""
        if message["type"] == "http.response.start" and not self.response_started:
            self._head = message
            return
        if self._head is None:
            await super().send(message)
            return
        head, self._head = self._head, None
        connection, on_response = self.transport, self.on_response
        self.transport = _OneWrite(connection)  # type: ignore[assignment]
        # What begins the next request of the connection looks whether that is closed: it is, once this is written.
        self.on_response = _nothing
        try:
            await super().send(head)
            await super().send(message)
        finally:
            one_write, self.transport, self.on_response = self.transport, connection, on_response
            one_write.finish()  # type: ignore[attr-defined]
        if self.response_complete:
            on_response()


def _nothing() -> None:
    pass


def _fails_serve(name: bytes, value: bytes) -> bool:
    if name.replace(b"_", b"-") not in READ_BY_SERVE:
        return False
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False


class _OneWrite:
    """What uvicorn uses of a transport; it writes at the end."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._closes = False

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def close(self) -> None:
        self._closes = True

    def finish(self) -> None:
        if self._parts:
            self._connection.write(b"".join(self._parts))
        if self._closes:
            self._connection.close()

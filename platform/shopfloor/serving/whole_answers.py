"""Answers that are written in one piece; uvicorn writes the head of an answer and its body apart.

HAProxy can ask another replica for what a dead one had not begun to answer. Between two writes an answer is begun and
not there; and the second costs a system call here, in HAProxy and in the client.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http import httptools_impl


def write_answers_whole() -> None:
    """Have the uvicorn of this process write each answer at once, from its next request on.

    Neither uvicorn nor Ray Serve, which starts it, lets one choose the class that writes an answer.
    """
    httptools_impl.RequestResponseCycle = WholeAnswer  # type: ignore[misc]


class WholeAnswer(httptools_impl.RequestResponseCycle):
    """One request and its answer, whose head waits for the first of its body."""

    _head: Any = None

    async def send(self, message: Any) -> None:
        """Take a message of ASGI, as uvicorn does."""
        if message["type"] == "http.response.start" and not self.response_started:
            self._head = message
            return
        if self._head is None:
            await super().send(message)
            return
        head, self._head = self._head, None
        connection = self.transport
        self.transport = _OneWrite(connection)  # type: ignore[assignment]
        try:
            await super().send(head)
            await super().send(message)
        finally:
            written, self.transport = self.transport, connection
            written.finish()  # type: ignore[attr-defined]


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

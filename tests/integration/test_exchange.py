"""A real uvicorn on a real socket: what reaches the application, and a client that reads as it comes."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from shopfloor.serving.replica import exchange as exchanges
from uvicorn.protocols.http import httptools_impl

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
BETWEEN_S = 0.3


@pytest.fixture(autouse=True)
def whole(monkeypatch):
    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", httptools_impl.RequestResponseCycle)
    exchanges.install()


async def slow(scope, receive, send):
    await send(HEAD)
    await asyncio.sleep(BETWEEN_S)
    await send({"type": "http.response.body", "body": b"done"})


async def in_pieces(scope, receive, send):
    await send({**HEAD, "headers": []})
    for piece in (b"one", b"two", b""):
        await send({"type": "http.response.body", "body": piece, "more_body": piece != b""})


async def failing(scope, receive, send):
    await send(HEAD)
    raise RuntimeError("between head and body")


def exchange(app, *requests: bytes) -> list[bytes]:
    """Send requests on one connection, each when the last was answered; return what came within a moment, in pieces."""

    async def run() -> list[bytes]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, http="httptools", lifespan="off", log_config=None))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            pieces = []
            for request in requests:
                writer.write(request)
                with contextlib.suppress(TimeoutError):
                    while piece := await asyncio.wait_for(reader.read(65536), 3 * BETWEEN_S):
                        pieces.append(piece)
            pieces.append(b"closed" if reader.at_eof() else b"open")
            writer.close()
            server.should_exit = True
            await serving
            return pieces

    return asyncio.run(run())


def test_an_answer_comes_in_one_piece_however_long_its_body_takes():
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    first, second, connection = exchange(slow, request, request)
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.endswith(b"\r\n\r\ndone")
    assert second.endswith(b"\r\n\r\ndone")
    assert connection == b"open"


def test_a_connection_that_the_client_wants_closed_is_closed_behind_the_answer():
    answer, connection = exchange(slow, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\ndone")
    assert connection == b"closed"


def test_what_follows_the_last_request_of_a_connection_is_not_carried_out():
    paths = []

    async def app(scope, receive, send):
        paths.append(scope["path"])
        await slow(scope, receive, send)

    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer, connection = exchange(app, last + b"POST /more HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\ndone")
    assert connection == b"closed"
    assert paths == ["/last"]


def test_requests_that_do_not_wait_for_answers_get_them_in_their_order():
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    *pieces, connection = exchange(slow, request * 3)
    assert b"".join(pieces).count(b"\r\n\r\ndone") == 3
    assert connection == b"open"


def test_head_gets_no_body():
    answer, connection = exchange(slow, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.endswith(b"content-length: 4\r\n\r\n")
    assert connection == b"open"


def test_a_streamed_answer_is_as_it_was():
    *pieces, connection = exchange(in_pieces, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"".join(pieces).endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert connection == b"open"


def test_an_application_that_fails_before_the_body_gets_to_say_so():
    *pieces, connection = exchange(failing, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b"".join(pieces)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.endswith(b"Internal Server Error")
    assert connection == b"closed"


def test_headers_that_ray_serve_cannot_read_do_not_reach_it():
    headers_read = []

    async def app(scope, receive, send):
        headers_read.append(dict(scope["headers"]))
        await slow(scope, receive, send)

    lines = [
        b"GET / HTTP/1.1",
        b"Host: x",
        b"X-Request-Id: \xff",
        b"serve_multiplexed_model_id: \xff",
        b"X-Session-Id: caf\xc3\xa9",
        b"User-Agent: caf\xe9",
        b"\r\n",
    ]
    answer, _ = exchange(app, b"\r\n".join(lines))
    assert answer.endswith(b"done")
    assert headers_read == [{b"host": b"x", b"x-session-id": "café".encode(), b"user-agent": b"caf\xe9"}]

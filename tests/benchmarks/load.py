"""Load on an HTTP endpoint: as much as it takes, or so many requests a second."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CONNECTIONS = 8


@dataclass(frozen=True)
class Load:
    """What one server did in one round."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends the same request again as soon as it is answered, or when it is its time."""

    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self.request, self.latencies = request, latencies
        self.buffer, self.running = b"", True
        self.last = False
        """The server has said that it closes the connection behind its answer."""
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def connection_lost(self, problem: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(problem)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        fields = head.lower()
        length = int(fields.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self.last = b"\r\nconnection: close" in fields
        status, self.buffer = int(head.split(b" ", 2)[1]), b""
        self.answered(status, head + separator + body)

    def answered(self, status: int, answer: bytes) -> None:
        if status != 200:
            raise RuntimeError(answer.decode())
        self.latencies.append(time.perf_counter() - self.sent)
        if self.running:
            self.send()
        else:
            self.transport.close()


def request(
    url: str, body: bytes, token: str | None = None, headers: tuple[str, ...] = ("Content-Type: application/json",)
) -> tuple[str, int, bytes]:
    """Return host, port and the bytes of a POST request."""
    _, _, host, path = url.split("/", 3)
    lines = [f"POST /{path} HTTP/1.1", f"Host: {host}", *headers]
    lines += [f"Content-Length: {len(body)}", *([f"Authorization: Bearer {token}"] if token else [])]
    name, _, port = host.partition(":")
    return name, int(port), "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def load(url: str, body: bytes, seconds: float, token: str | None = None, connections: int = CONNECTIONS) -> Load:
    """Ask `url` for a row as fast as it answers."""
    return repeat(request(url, body, token), seconds, connections)


def repeat(order: tuple[str, int, bytes], seconds: float, connections: int) -> Load:
    """Send one request again and again on several connections, on each as soon as the last one is answered."""
    latencies: list[float] = []
    name, port, content = order

    async def run() -> None:
        loop = asyncio.get_running_loop()
        opened = [
            (await loop.create_connection(lambda: Connection(content, latencies), name, port))[1]
            for _ in range(connections)
        ]
        await asyncio.sleep(seconds)
        for connection in opened:
            connection.running = False
        for connection in opened:  # the next server begins when this one has answered everything
            await connection.closed

    asyncio.run(run())
    latencies.sort()
    return Load(len(latencies) / seconds, percentile(latencies, 50) * 1000, percentile(latencies, 99) * 1000)


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile of values, which need not be sorted."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


@dataclass
class Steady:
    """What came of a steady load."""

    answers: list[tuple[float, float, int]] = field(default_factory=list)
    """When the request was due (`time.perf_counter()`), how long from then its answer took in seconds, its status."""
    lost: int = 0
    """Requests whose connection broke."""

    def p99_ms(self, begin: float, end: float) -> float:
        """Return the 99th percentile of the requests that were due between two times."""
        return percentile([took for due, took, _ in self.answers if begin <= due < end], 99) * 1000

    @property
    def failed(self) -> int:
        """Return how many requests got no answer, or another than 200."""
        return self.lost + sum(status != 200 for _, _, status in self.answers)


@contextmanager
def steady(url: str, body: bytes, requests_per_s: float, token: str = "") -> Iterator[Steady]:
    """Ask `url` so often for the time of the block, from a process of its own; a late answer delays nobody's due time.

    What is yielded is filled in at the end of the block. Its times compare with `time.perf_counter()` of this process.
    """
    steady_load = Steady()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.load", url, body.decode(), str(requests_per_s), token],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield steady_load
    finally:
        output, _ = process.communicate("\n", timeout=60)
        result = json.loads(output)
        steady_load.answers = [tuple(answer) for answer in result["answers"]]
        steady_load.lost = result["lost"]


def _ask_steadily(url: str, body: bytes, requests_per_s: float, token: str) -> Steady:
    """Ask until a line comes on stdin."""
    steady_load = Steady()
    end = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), end.set()), daemon=True).start()
    name, port, content = request(url, body, token)
    interval_s = CONNECTIONS / requests_per_s

    class Paced(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def answered(self, status: int, answer: bytes) -> None:
            self.done.set_result(status)

        def connection_lost(self, problem: Exception | None) -> None:
            super().connection_lost(problem)
            if hasattr(self, "done") and not self.done.done():
                self.done.set_exception(ConnectionError())

    async def one(number: int) -> None:
        loop = asyncio.get_running_loop()
        due = time.perf_counter() + number * interval_s / CONNECTIONS
        connection = None
        while not end.is_set():
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            try:
                if connection is None or connection.last or connection.closed.done():
                    connection = (await loop.create_connection(lambda: Paced(content, []), name, port))[1]
                connection.done = loop.create_future()
                connection.send()
                status = await connection.done
                steady_load.answers.append((due, time.perf_counter() - due, status))
            except OSError:
                steady_load.lost += 1
                connection = None
            due += interval_s
        if connection is not None:
            connection.transport.close()

    async def run() -> None:
        await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))

    gc.disable()
    asyncio.run(run())
    return steady_load


if __name__ == "__main__":
    outcome = _ask_steadily(sys.argv[1], sys.argv[2].encode(), float(sys.argv[3]), sys.argv[4])
    json.dump({"answers": outcome.answers, "lost": outcome.lost}, sys.stdout)

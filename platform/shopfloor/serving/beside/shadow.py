"""Copies of requests for the challenger, which answers them for nobody, in a process of its own.

A shadow may cost the live answer nothing: copies wait in a bounded queue, and are dropped and counted when that is
full. The process that answers them (`shadow_process.py`) shares no interpreter with the replica, and has only the CPU
time that nobody else wants. It is started again where it ends, and ends by itself when the replica does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO

from pydantic import BaseModel, ConfigDict

from shopfloor.errors import ServiceError
from shopfloor.serving.beside import process as side_process

logger = logging.getLogger(__name__)

QUEUE = 2000
"""Copies that wait at most."""
QUEUE_BYTES = 64 * 1024 * 1024
"""Bytes of all bodies in the queue."""
BATCH = 500
"""Copies that are answered together, at most."""
BATCH_BYTES = 1024 * 1024
"""Bytes of the bodies in a batch, from which on no more are added: to put them together, a request waits for."""
PAUSE_S = 0.1
"""Pause between two batches."""
RESTART_S = (1.0, 10.0, 60.0)
"""Pauses before a process that ended is started again; the last one repeats."""
LOAD_S = 600.0
"""How long a process may take to load its version."""
REPLY_S = 120.0
"""How long a process may take to answer a batch."""
CLOSE_S = 5.0
"""How long a process may take to answer what waits, and to write its log."""

_LOG = "What it wrote stands in Ray's log of the replica's process."


class Orders(BaseModel):
    """Which version answers copies, and where its answers are logged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_case: str
    version: str
    tracking_uri: str
    replica: str
    log_root: str | None
    """URI of the log of its answers; `None` logs nothing."""
    s3_endpoint_url: str | None


class Shadow:
    """The queue of a replica, and the process that answers what is in it."""

    def __init__(self, answered: Callable[[str, int, int], None]) -> None:
        """Begin with nothing; `answered` gets version, status and how many answers had it, in any thread."""
        self._answered = answered
        self._orders: Orders | None = None
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._bytes_in = self._bytes_out = self._refused = self._lost = 0  # each counted by one thread
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dropped(self) -> int:
        """Return how many copies found no room, or no process that answered them."""
        return self._refused + self._lost

    @property
    def waiting(self) -> int:
        """Return how many copies are in the queue."""
        return len(self._waiting)

    def offer(self, request_id: str, body: bytes) -> None:
        """Take a copy of a request that was answered, if there is room; on the event loop only."""
        if self._orders is None:
            return
        if len(self._waiting) >= QUEUE or self._bytes_in - self._bytes_out + len(body) > QUEUE_BYTES:
            self._refused += 1
            return
        self._bytes_in += len(body)
        self._waiting.append((request_id, body))

    def follow(self, orders: Orders | None) -> None:
        """Let this version answer from now on; `None` answers no copies."""
        if orders == self._orders:
            return
        self._orders = orders
        self._end.set()
        if orders is not None:
            self._end = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(orders, self._end, self._thread), name="shadow", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Have what waits answered and logged, and end."""
        self.follow(None)
        if self._thread is None:
            return
        self._thread.join(CLOSE_S)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
            logger.error("the shadow did not end within %g s, and was killed", CLOSE_S)

    def _run(self, orders: Orders, end: threading.Event, before: threading.Thread | None) -> None:
        """Keep a process that answers, until the end."""
        if before is not None:
            before.join()
        attempt = 0
        while True:
            try:
                with _process(orders) as self._process:
                    _reply(self._process, LOAD_S)
                    attempt = 0
                    while not end.wait(PAUSE_S):
                        _require_alive(self._process)
                        self._pass_on(self._process, orders)
                    self._pass_on(self._process, orders)
                    return
            except (OSError, ValueError, ServiceError) as error:
                logger.warning("the shadow %s of %s has ended: %s", orders.version, orders.use_case, error)
            if end.wait(RESTART_S[min(attempt, len(RESTART_S) - 1)]):
                while batch := self._take():
                    self._lost += len(batch)
                return
            attempt += 1

    def _pass_on(self, process: subprocess.Popen[bytes], orders: Orders) -> None:
        """Have answered what waits.

        Raises:
            OSError: The process has ended.
            ServiceError: It has ended, and its copies are lost.
        """
        while batch := self._take():
            try:
                # Bodies go as they are: whatever is done to them here, a request waits for.
                _say(process, json.dumps([(request_id, len(body)) for request_id, body in batch]).encode())
                _pipe(process.stdin).write(b"".join(body for _, body in batch))
                statuses: dict[str, int] = json.loads(_reply(process, REPLY_S))
            except Exception:
                self._lost += len(batch)
                raise
            for status, answers in statuses.items():
                self._answered(orders.version, int(status), answers)

    def _take(self) -> list[tuple[str, bytes]]:
        batch: list[tuple[str, bytes]] = []
        size = 0
        while self._waiting and len(batch) < BATCH and size < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][1])
        self._bytes_out += size
        return batch


@contextlib.contextmanager
def _process(orders: Orders) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that answers for the time of the block; it is told to end, and then waited for."""
    process = side_process.start("shopfloor.serving.beside.shadow_process")
    try:
        _say(process, orders.model_dump_json().encode())
        yield process
    finally:
        with contextlib.suppress(OSError):
            _pipe(process.stdin).close()
        try:
            process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()


def _require_alive(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise ServiceError(f"Its process has ended with {process.returncode}.", _LOG)


def _say(process: subprocess.Popen[bytes], line: bytes) -> None:
    _pipe(process.stdin).write(line + b"\n")


def _reply(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """Return what the process says next.

    Raises:
        OSError: It reads nothing any more.
        ServiceError: It ends, or says nothing in time.
    """
    _pipe(process.stdin).flush()
    stdout = _pipe(process.stdout)
    waiting = select.poll()  # takes any descriptor, where `select` takes the first thousand
    waiting.register(stdout, select.POLLIN)
    if not waiting.poll(timeout_s * 1000):
        raise ServiceError(f"Its process has said nothing for {timeout_s:g} s.", _LOG)
    line = stdout.readline()
    if not line:
        raise ServiceError("Its process ends.", _LOG)
    return line


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise AssertionError("it was started with pipes")
    return pipe

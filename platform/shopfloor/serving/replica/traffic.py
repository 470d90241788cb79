"""Which version answers a request that names none, in which threads, and which requests are answered together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from shopfloor.serving.model.loading import ServedModel
from shopfloor.serving.model.row import Value
from shopfloor.serving.replica.http import Request, when_done

KEY_HEADER = "X-Request-Key"
"""Requests with the same key are answered by the same version, as long as the split is the same."""
MAX_ROWS = 64
"""Rows that go together where nobody has asked for another number."""
PATIENCE_S = 0.25
PATIENCE_ROWS = 20
"""What waits for a call does so for `PATIENCE_S`, or as long as the model takes for so many rows one by one."""

P = ParamSpec("P")
T = TypeVar("T")


def takes(percent: float, use_case: str, key: bytes | None) -> bool:
    """Tell whether a request belongs to the canary's share.

    Args:
        percent: The share, 0 to 100.
        use_case: Makes the shares of two use cases differ for the same key.
        key: What the client wants to be sticky by; `None` throws dice.
    """
    if percent <= 0:
        return False
    if key is None:
        return random.random() * 100 < percent  # noqa: S311  no secret
    return zlib.crc32(use_case.encode() + b"/" + key) / 2**32 * 100 < percent


class Threads:
    """So many threads, and no queue in them: what waits is let go with its request."""

    def __init__(self, count: int, name: str) -> None:
        """Have up to `count` threads."""
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._free = asyncio.Semaphore(count)

    async def take(self) -> None:
        """Wait for a thread that is free; it goes with `start`, or with `give_back`."""
        await self._free.acquire()

    def give_back(self) -> None:
        """Leave a thread that was taken to somebody else."""
        self._free.release()

    def start(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
        """Call a function in a thread that was taken, which is free again when it returns."""
        future = self._pool.submit(function, *arguments, **keywords)
        when_done(future, self.give_back)
        return future

    async def run(self, request: Request, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Return what a function returns in a thread; a request that no longer waits for it counts until it ends."""
        await self.take()
        request.working = future = self.start(function, *arguments, **keywords)
        return await asyncio.wrap_future(future)


@dataclass(eq=False)
class _Row:
    """A row that waits for its prediction."""

    values: list[Value]
    request: Request
    since_s: float
    """When it came, in the time of the event loop."""
    prediction: asyncio.Future[Any]
    alone: bool = False
    """Whether it goes with no other: it was in a call that failed."""


class Batcher:
    """Gathers single rows while their model is busy, and lets it answer them at once.

    A model that is idle is asked at once, or after a time in which the first row waits for others. Where a call takes
    too long, what has gathered meanwhile goes in another thread. Rows whose call fails are asked one by one, so that
    one that the model refuses fails alone.
    """

    def __init__(
        self,
        model: ServedModel,
        threads: Threads,
        gathered: Callable[[int], None],
        max_rows: int = MAX_ROWS,
        wait_s: float = 0.0,
    ) -> None:
        """Begin with no row.

        Args:
            model: Answers them.
            threads: Where it is asked.
            gathered: Gets the number of rows of each call.
            max_rows: Rows that go together.
            wait_s: How long the first waits for the others.
        """
        self._many, self._threads, self._gathered = model.many, threads, gathered
        self._max_rows, self._wait_s = max_rows, wait_s
        self._patience_s = max(PATIENCE_S, PATIENCE_ROWS * model.row_s)
        self._waiting: dict[_Row, None] = {}
        self._full = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None

    async def predict(self, request: Request, values: list[Value]) -> Any:
        """Return the prediction of a row.

        Raises:
            Exception: Whatever the model's library raises at this row.
        """
        loop = asyncio.get_running_loop()
        row = _Row(values, request, loop.time(), loop.create_future())
        self._wait(row)
        try:
            return await row.prediction
        finally:
            self._waiting.pop(row, None)  # its client has gone

    def _wait(self, row: _Row) -> None:
        """Have a row wait for a call, and see to it that there is one."""
        self._waiting[row] = None
        if len(self._waiting) >= self._max_rows:
            self._full.set()
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        """Ask the model until no row waits, one call after the other as long as they are quick."""
        try:
            while self._waiting:
                if self._wait_s and len(self._waiting) < self._max_rows:
                    self._full.clear()
                    await _patiently(self._full, next(iter(self._waiting)).since_s + self._wait_s)
                await self._threads.take()
                rows = self._next()
                if not rows:
                    self._threads.give_back()
                    continue
                ended = asyncio.Event()
                call = self._threads.start(self._many, [row.values for row in rows])
                for row in rows:
                    row.request.working = call
                self._gathered(len(rows))
                when_done(call, functools.partial(self._answer, rows, call, ended))
                await _patiently(ended, asyncio.get_running_loop().time() + self._patience_s)
        finally:
            self._asking = None

    def _next(self) -> list[_Row]:
        """Return the rows of the next call, which wait no more."""
        together = itertools.takewhile(lambda row: not row.alone, self._waiting)
        rows = list(itertools.islice(together, self._max_rows)) or list(itertools.islice(self._waiting, 1))
        for row in rows:
            del self._waiting[row]
        return rows

    def _answer(self, rows: list[_Row], call: Future[list[Any]], ended: asyncio.Event) -> None:
        """Hand out what a call has come to."""
        ended.set()
        error = call.exception()
        for number, row in enumerate(rows):
            if row.prediction.done():  # its client has gone
                continue
            if error is None:
                row.prediction.set_result(call.result()[number])
            elif len(rows) == 1:
                row.prediction.set_exception(error)
            else:
                row.alone = True
                self._wait(row)


async def _patiently(event: asyncio.Event, until_s: float) -> None:
    """Wait for an event until a time of the event loop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(until_s):
            await event.wait()

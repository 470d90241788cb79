"""Which version answers a request that names none, and which requests are answered together."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import ServedModel

KEY_HEADER = "X-Request-Key"
"""Requests with the same key are answered by the same version, as long as the split is the same."""
MAX_BATCHES = 32
"""Batches that wait for a model: one that hangs gathers no more."""


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


class Batcher:
    """Gathers single rows that arrive close together, and lets a model answer them at once."""

    def __init__(
        self,
        model: ServedModel,
        max_rows: int,
        wait_s: float,
        gathered: Callable[[int], None],
        threads: Executor | None = None,
    ) -> None:
        """Gather up to `max_rows` rows for at most `wait_s` seconds; `gathered` is told how many they were.

        Args:
            model: Answers them.
            max_rows: Rows that go together.
            wait_s: How long the first waits for the others.
            gathered: Gets the number of rows of each batch.
            threads: Where the model is asked; `None` for asyncio's own.
        """
        self._model, self._max_rows, self._wait_s, self._gathered = model, max_rows, wait_s, gathered
        self._threads = threads
        self._rows: list[list[Any]] = []
        self._futures: list[asyncio.Future[Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._alone = asyncio.Lock()

    async def predict(self, row: list[Any]) -> Any:
        """Return the prediction of a row, with those that came at the same time.

        Raises:
            BadRequest: Too many batches wait for the model already.
        """
        if len(self._running) >= MAX_BATCHES:
            raise BadRequest(503, f"{MAX_BATCHES} batches wait for the model; come back.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._rows.append(row)
        self._futures.append(future)
        if len(self._rows) >= self._max_rows:
            self._go()
        elif self._timer is None:
            self._timer = loop.call_later(self._wait_s, self._go)
        return await future

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, futures = self._rows, self._futures
        self._rows, self._futures = [], []
        task = asyncio.get_running_loop().create_task(self._run(rows, futures))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, rows: list[list[Any]], futures: list[asyncio.Future[Any]]) -> None:
        self._gathered(len(rows))
        try:
            async with self._alone:
                loop = asyncio.get_running_loop()
                predictions = await loop.run_in_executor(self._threads, self._model.many, rows)
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, prediction in zip(futures, predictions, strict=True):
            if not future.done():  # its client has gone
                future.set_result(prediction)

"""Which version answers a request that names none, and the copy of it that the challenger answers for nobody.

A shadow may cost the live answer nothing: it waits in a bounded queue, is dropped and counted when that is full, and
is computed in small batches, in a thread of its own, on a copy of the model.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from shopfloor.serving.predictors import ServedModel
from shopfloor.serving.schema import BadRequest

logger = logging.getLogger(__name__)

KEY_HEADER = "X-Request-Key"
"""Requests with the same key are answered by the same version, as long as the split is the same."""
Role = Literal["live", "canary", "shadow", "asked"]
"""Why a version answered: it is the champion, it has a share of the requests, it is watched, it was asked for."""
SHADOW_QUEUE = 2000
SHADOW_BATCH = 32
"""Rows at a time: so few that the interpreter is soon free for a live request."""
SHADOW_PAUSE_S = 0.01


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


@dataclass(frozen=True, slots=True)
class ShadowAnswer:
    """What a shadow said to a row."""

    request_id: str
    body: bytes
    version: str
    answer: bytes
    """Empty where it has none."""
    status: int
    latency_s: float


class Shadow:
    """Lets a version answer copies of requests, and hands its answers on."""

    def __init__(self, answered: Callable[[ShadowAnswer], None]) -> None:
        """Begin with nothing; `answered` gets each answer, on the event loop."""
        self.dropped = 0
        """Copies that found the queue full."""
        self.model: ServedModel | None = None
        """The version that answers; `None` takes no copies."""
        self._answered = answered
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Return how many copies are in the queue."""
        return len(self._waiting)

    def offer(self, request_id: str, body: bytes) -> None:
        """Take a copy of a request that was answered, if there is room."""
        if self.model is None:
            return
        if len(self._waiting) >= SHADOW_QUEUE:
            self.dropped += 1
            return
        self._waiting.append((request_id, body))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(SHADOW_PAUSE_S)
            model = self.model
            if model is None:
                self._waiting.clear()
                return
            batch = [self._waiting.popleft() for _ in range(min(SHADOW_BATCH, len(self._waiting)))]
            try:
                for answer in await asyncio.to_thread(_answers, model, batch):
                    self._answered(answer)
            except Exception:
                logger.exception("the shadow %s failed", model.version)


def _answers(model: ServedModel, batch: list[tuple[str, bytes]]) -> list[ShadowAnswer]:
    began = time.perf_counter()
    answers: list[tuple[bytes, int]] = [(b"", 422)] * len(batch)
    rows: dict[int, list[Any]] = {}
    for number, (_, body) in enumerate(batch):
        try:
            rows[number] = model.parse(body)
        except BadRequest:
            continue
    if rows:
        try:
            predictions = model.many(list(rows.values()))
            for number, prediction in zip(rows, predictions, strict=True):
                answers[number] = model.answer(prediction), 200
        except Exception:
            logger.warning("the shadow %s refused a batch", model.version, exc_info=True)
            for number in rows:
                answers[number] = b"", 500
    seconds = (time.perf_counter() - began) / len(batch)
    return [
        ShadowAnswer(request_id, body, model.version, answer, status, seconds)
        for (request_id, body), (answer, status) in zip(batch, answers, strict=True)
    ]


class Batcher:
    """Gathers single rows that arrive close together, and lets a model answer them at once."""

    def __init__(self, model: ServedModel, max_rows: int, wait_s: float, gathered: Callable[[int], None]) -> None:
        """Gather up to `max_rows` rows for at most `wait_s` seconds; `gathered` is told how many they were."""
        self._model, self._max_rows, self._wait_s, self._gathered = model, max_rows, wait_s, gathered
        self._rows: list[list[Any]] = []
        self._futures: list[asyncio.Future[Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._alone = asyncio.Lock()

    async def predict(self, row: list[Any]) -> Any:
        """Return the prediction of a row, with those that came at the same time."""
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
                predictions = await asyncio.to_thread(self._model.many, rows)
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, prediction in zip(futures, predictions, strict=True):
            if not future.done():  # its client has gone
                future.set_result(prediction)

"""Rows that are answered together: which ones, and what becomes of those whose call hangs or fails."""

import asyncio
import threading

import pytest
from shopfloor.serving.replica import traffic
from shopfloor.serving.replica.http import Reading, Request
from shopfloor.serving.replica.traffic import Batcher, Threads

SECONDS = 10
"""How long a test waits for what must come at once."""


class Model:
    """Answers a number by its double; -1 when the gate is open, and calls with -2 never."""

    row_s = 0.0

    def __init__(self):
        self.calls, self.sizes = [], []
        self.begun, self.gate = threading.Semaphore(0), threading.Event()

    def many(self, rows):
        self.calls.append([number for [number] in rows])
        self.begun.release()
        if [-1] in rows:
            assert self.gate.wait(SECONDS)
        if [-2] in rows:
            raise ValueError("no such number")
        return [2 * number for [number] in rows]


class Asked:
    """A batcher of a model, and who has asked it."""

    def __init__(self, model, threads=2, **options):
        self.model, self.reading = model, Reading()
        self.batcher = Batcher(model, Threads(threads, "test"), model.sizes.append, **options)

    def ask(self, *numbers):
        return [asyncio.create_task(self._ask(number)) for number in numbers]

    async def _ask(self, number):
        scope = {"method": "POST", "scheme": "http", "path": "/predict", "headers": []}
        request = Request(scope, None, self.reading)
        self.reading.admit(request, 100)
        try:
            return await self.batcher.predict(request, [number])
        finally:
            self.reading.let_go(request)

    async def begun(self):
        """Wait until the model has been asked once more."""
        assert await asyncio.to_thread(self.model.begun.acquire, timeout=SECONDS)

    async def busy(self, *numbers):
        """Return the request that the model is busy with, and those that wait for it."""
        first = self.ask(-1)
        await self.begun()
        waiting = self.ask(*numbers)
        await asyncio.sleep(0)  # each has begun to wait
        return *first, waiting


@pytest.fixture
def model():
    model = Model()
    yield model
    model.gate.set()  # whatever failed, its thread ends


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, SECONDS))


def test_an_idle_model_is_asked_at_once_and_what_comes_meanwhile_goes_together(model):
    async def scenario():
        first, others = await Asked(model).busy(1, 2, 3)
        model.gate.set()
        return await asyncio.gather(first, *others)

    assert run(scenario()) == [-2, 2, 4, 6]
    assert model.calls == [[-1], [1, 2, 3]]
    assert model.sizes == [1, 3]


def test_no_more_rows_go_together_than_may(model):
    async def scenario():
        first, others = await Asked(model, max_rows=2).busy(1, 2, 3)
        model.gate.set()
        return await asyncio.gather(first, *others)

    assert run(scenario()) == [-2, 2, 4, 6]
    assert model.calls == [[-1], [1, 2], [3]]


def test_what_waits_for_a_call_that_hangs_goes_in_another_thread(model, monkeypatch):
    monkeypatch.setattr(traffic, "PATIENCE_S", 0.005)

    async def scenario():
        first, others = await Asked(model).busy(1, 2)
        assert await asyncio.gather(*others) == [2, 4]
        assert not first.done()
        model.gate.set()
        assert await first == -2

    run(scenario())
    assert model.calls == [[-1], [1, 2]]


def test_a_model_that_needs_long_for_a_row_is_waited_for_longer(model, monkeypatch):
    monkeypatch.setattr(traffic, "PATIENCE_S", 0.0)
    model.row_s = SECONDS

    async def scenario():
        first, others = await Asked(model).busy(1)
        assert await asyncio.gather(*Asked(Model()).ask(2)) == [4]  # by then, what does not wait has begun
        assert model.calls == [[-1]]
        model.gate.set()
        return await asyncio.gather(first, *others)

    assert run(scenario()) == [-2, 2]


def test_a_row_that_the_model_refuses_fails_alone(model):
    async def scenario():
        first, others = await Asked(model).busy(1, -2, 3)
        model.gate.set()
        await first
        return await asyncio.gather(*others, return_exceptions=True)

    one, refused, three = run(scenario())
    assert (one, three) == (2, 6)
    assert isinstance(refused, ValueError)
    assert model.calls == [[-1], [1, -2, 3], [1], [-2], [3]]


def test_who_has_gone_is_not_asked_for_and_counts_until_its_thread_ends(model, monkeypatch):
    monkeypatch.setattr(traffic, "PATIENCE_S", 0.0)

    async def scenario():
        asked = Asked(model, threads=1)
        first, [gone, other] = await asked.busy(1, 2)
        for request in (gone, first):
            request.cancel()
        await asyncio.wait([gone, first])
        assert asked.reading.admitted == 2  # the one whose thread goes on, and the one that waits for it
        model.gate.set()
        assert await other == 4
        await asyncio.sleep(0)
        assert asked.reading.admitted == 0
        assert not asked.batcher._waiting

    run(scenario())
    assert model.calls == [[-1], [2]]


def test_rows_wait_for_others_where_that_is_asked_for(model):
    async def scenario():
        asked = Asked(model, max_rows=3, wait_s=SECONDS)
        assert await asyncio.gather(*asked.ask(1, 2, 3)) == [2, 4, 6]
        return await asyncio.gather(*Asked(model, max_rows=3, wait_s=0.001).ask(4, 5))

    assert run(scenario()) == [8, 10]
    assert model.calls == [[1, 2, 3], [4, 5]]

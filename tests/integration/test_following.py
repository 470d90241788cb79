"""A replica follows its assignment whatever the registry answers in between."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from shopfloor.serving.contract import Config
from shopfloor.serving.replica import versions
from shopfloor.serving.replica.versions import Holding

from tests.integration.test_asking_mlflow import ABSENT, address

__all__ = ["address"]


def ledger(number, **assignment):
    tags = {"shopfloor.base": str(number - 1), "shopfloor.endpoint": json.dumps(assignment)}
    entry = {
        "name": "flights.endpoint",
        "version": str(number),
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }
    return 200, json.dumps({"model_versions": [entry]}).encode()


@pytest.fixture
def holding(monkeypatch):
    monkeypatch.setattr(versions, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(versions, "load_model", lambda uri, name, version, fetch: SimpleNamespace(version=version))

    async def expect():
        return None

    return Holding(expect, lambda: None)


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "answer",
    [(200, b"{}"), (200, b'{"model_versions": [{"version": "x"}]}'), (404, b"no page"), (404, ABSENT), (503, b"")],
)
def test_only_an_assignment_takes_the_champion_off(address, holding, answer):
    uri, answers, requests = address
    answers.append(ledger(1, champion="3"))

    async def follow():
        await holding.follow(Config(use_case="flights", tracking_uri=uri))
        assert holding.champion.version == "3"
        answers.append(answer)
        before = len(requests)
        await until(lambda: len(requests) > before + 4)
        assert holding.champion.version == "3"
        answers.append(ledger(2, champion="4"))
        await until(lambda: holding.champion.version == "4")
        answers.append(ledger(3, champion=None, action="remove"))
        await until(lambda: holding.champion is None)

    asyncio.run(follow())


def test_a_replica_without_a_champion_does_not_wait_for_a_follower_that_another_replaced(address, holding):
    uri, answers, _ = address
    answers.append((503, b""))

    async def follow():
        waiting = asyncio.create_task(holding.follow(Config(use_case="flights", tracking_uri=uri)))
        await asyncio.sleep(0.01)
        assert not waiting.done()  # while the registry is away it has nothing to answer with
        answers.append(ledger(1, champion="3"))
        await holding.follow(Config(use_case="flights", tracking_uri=uri, max_rows=7))
        async with asyncio.timeout(5):
            await waiting
        assert holding.champion.version == "3"

    asyncio.run(follow())


def test_a_replica_of_a_use_case_that_nobody_assigned_anything_begins_without_a_champion(address, holding):
    uri, answers, _ = address
    answers.append((404, ABSENT))
    asyncio.run(asyncio.wait_for(holding.follow(Config(use_case="flights", tracking_uri=uri)), 5))
    assert holding.champion is None

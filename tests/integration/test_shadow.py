"""The shadow of a replica: the queue, and the process that answers what is in it, with a model of a real registry."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter

import psutil
import pytest
from shopfloor.serving.beside import shadow as shadows
from shopfloor.serving.beside.shadow import Orders, Shadow
from shopfloor.serving.log_files import read_log

from tests.support.endpoints import offline, register_models, rows_of
from tests.support.project import ROOT
from tests.support.waiting import wait_until

CASE = "toy_shadow"


@pytest.fixture(scope="module")
def model(servers):
    return register_models(servers, CASE, versions=1)


@pytest.fixture
def orders(servers, tmp_path):
    return Orders(
        use_case=CASE,
        version="1",
        tracking_uri=servers.tracking_uri,
        replica="r1",
        log_root=str(tmp_path / "log"),
        s3_endpoint_url=None,
    )


@pytest.fixture
def answered():
    return Counter()


@pytest.fixture
def shadow(answered, monkeypatch):
    monkeypatch.setattr(shadows, "CLOSE_S", 20.0)  # others use the CPU, which it gets last

    def count(version, status, answers):
        answered[version, status] += answers

    shadow = Shadow(count)
    yield shadow
    shadow.close()


def process():
    """Return the process that answers, or `None`."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "shopfloor.serving.beside.shadow_process" in child.cmdline():
                return child
    return None


def offer(shadow, rows, start=0):
    for number, row in enumerate(rows, start):
        shadow.offer(f"id-{number}", json.dumps(row).encode())


def test_copies_are_answered_counted_and_logged_by_the_time_it_is_closed(servers, model, orders, shadow, answered):
    frame, [booster] = model
    rows = rows_of(frame.head(300))
    shadow.follow(orders)
    offer(shadow, [*rows, {"no": "row"}])
    wait_until(lambda: answered.total() == 301)
    offer(shadow, rows[:5], start=1000)
    shadow.close()

    assert answered == {("1", 200): 305, ("1", 422): 1}
    assert process() is None
    log = {row["request_id"]: row for row in read_log(servers, orders.log_root, CASE, "predictions").to_pylist()}
    assert len(log) == 306
    assert {(row["role"], row["version"], row["route"]) for row in log.values()} == {("shadow", "1", "/predict")}
    expected = offline(booster, frame.head(300))
    for number, row in enumerate(rows):
        assert json.loads(log[f"id-{number}"]["output"])["prediction"] == pytest.approx(expected[number], abs=1e-6)
        assert json.loads(log[f"id-{number}"]["inputs"]) == row
    assert (log["id-300"]["status"], log["id-300"]["failed"], log["id-300"]["output"]) == (422, False, None)


def test_a_killed_process_is_started_again_and_costs_only_what_it_had(model, orders, shadow, answered):
    rows = rows_of(model[0].head(10))
    shadow.follow(orders)
    offer(shadow, rows)
    wait_until(lambda: answered.total() == 10)
    killed = process()
    killed.kill()
    wait_until(lambda: process() not in {None, killed})
    offer(shadow, rows)
    wait_until(lambda: answered.total() + shadow.dropped == 20)
    offer(shadow, rows)
    wait_until(lambda: answered.total() + shadow.dropped == 30)
    assert answered["1", 200] >= 20


def test_a_process_that_hangs_is_replaced(model, orders, shadow, answered, monkeypatch):
    rows = rows_of(model[0].head(10))
    shadow.follow(orders)
    offer(shadow, rows)
    wait_until(lambda: answered.total() == 10)
    stopped = process()
    stopped.suspend()
    with monkeypatch.context() as impatient:  # only with this one: a process with idle priority may be slow
        impatient.setattr(shadows, "REPLY_S", 1.0)
        impatient.setattr(shadows, "CLOSE_S", 1.0)
        offer(shadow, rows)
        wait_until(lambda: shadow.dropped == 10)
    offer(shadow, rows)
    wait_until(lambda: answered.total() == 20)
    assert not stopped.is_running()


def test_it_takes_no_more_than_its_queue_holds(orders, shadow):
    shadow.offer("nobody-answers-yet", b"{}")
    assert (shadow.waiting, shadow.dropped) == (0, 0)
    shadow.follow(orders.model_copy(update={"version": "99"}))
    for number in range(shadows.QUEUE + 50):
        shadow.offer(str(number), b"{}")
    assert (shadow.waiting, shadow.dropped) == (shadows.QUEUE, 50)
    shadow.follow(None)
    wait_until(lambda: shadow.waiting == 0)
    assert shadow.dropped == shadows.QUEUE + 50


def test_its_queue_is_bounded_in_bytes_too(orders, shadow):
    shadow.follow(orders.model_copy(update={"version": "99"}))
    body = b" " * (shadows.QUEUE_BYTES // 4)
    for number in range(6):
        shadow.offer(str(number), body)
    assert (shadow.waiting, shadow.dropped) == (4, 2)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no such class of processes")
def test_the_process_has_only_the_time_that_nobody_wants(model, orders, shadow, answered):
    shadow.follow(orders)
    offer(shadow, rows_of(model[0].head(1)))
    wait_until(answered.total)
    assert os.sched_getscheduler(process().pid) == os.SCHED_IDLE


def test_the_process_ends_when_its_replica_is_killed(model, orders):
    replica = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from shopfloor.serving.beside.shadow import Orders, Shadow\n"
            "shadow = Shadow(lambda *answers: print(*answers, flush=True))\n"
            "shadow.follow(Orders.model_validate_json(sys.argv[1]))\n"
            "shadow.offer('a', b'{}')\n"
            "time.sleep(1000)\n",
            orders.model_dump_json(),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert replica.stdout.readline() == "1 422 1\n"
        [child] = psutil.Process(replica.pid).children()
    finally:
        replica.kill()
        replica.communicate()
    assert child.wait(60) in {None, 0}

"""The endpoint while versions and replicas come and go: half of the load that it takes, and what the requests notice.

The peer is the same endpoint in peace, just before. A share of the load is due at fixed times, whatever the answers do.

Everything happens several times. A figure is that of its best round, for both: whatever else the machine does makes a
round worse, never better. The worst stands beside it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from shopfloor.serving.deploy.champion import promote_version, roll_back
from shopfloor.serving.deploy.rollout import KEEP, Traffic, deploy, endpoint
from shopfloor.settings import Settings

from tests.benchmarks.load import load, steady
from tests.benchmarks.table import Row
from tests.support.endpoints import CASE, MODEL, USE_CASE, register_models, running_replicas, serving_cluster

ROUNDS = 3
LOAD_S = 60.0
"""Of steady load around each change."""
PEACE_S = 30.0
"""Of it before the change."""
AFTER_S = 2.0
"""Behind the change that still count as during it."""
SHADOW_ROUNDS = 4
SHADOW_S = 10.0
SHADOW_WITHIN_S = 60.0
REPLICAS = 2
"""Where one is killed."""
REPLACED_WITHIN_S = 120.0


@dataclass(frozen=True)
class Round:
    """A change under load."""

    before_ms: float
    """The 99th percentile in peace."""
    during_ms: float
    failed: int


def measure() -> list[Row]:
    """Return what a swap, a promotion, a rollback, a shadow and a killed replica cost the requests of others."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        case = directory / "pipelines" / CASE
        case.mkdir(parents=True)
        (case / "use_case.yaml").write_text(USE_CASE.format(name=CASE))
        (case / "model.py").write_text(MODEL)
        settings: Settings = stack.enter_context(serving_cluster(directory))
        register_models(settings, CASE, versions=2, columns=40, rounds=100, rows=20_000)
        promote_version(settings, CASE, "1")
        url = f"{endpoint(settings, CASE)}/predict"
        document = requests.get(f"{endpoint(settings, CASE)}/openapi.json", timeout=10).json()
        described = document["paths"][f"/{CASE}/predict"]["post"]["requestBody"]["content"]["application/json"]
        body = json.dumps(described["example"]).encode()
        half = _capacity(url, body) / 2

        def load_other() -> None:
            deploy(settings, CASE, challenger="2")

        loaded, promoted, back = [], [], []
        for _ in range(ROUNDS):
            deploy(settings, CASE, challenger=None)  # it is loaded anew
            loaded.append(_noticed(url, body, half, load_other))
        for _ in range(ROUNDS):
            promoted.append(_noticed(url, body, half, lambda: promote_version(settings, CASE, "2")))
            back.append(_noticed(url, body, half, lambda: roll_back(settings, CASE)))
        rows = [
            _row("a version loaded beside the champion", half, loaded),
            _row("a promotion", half, promoted),
            _row("a rollback", half, back),
        ]
        load_other()
        rows.append(_shadowed(settings, url, body, half))
        replicated = USE_CASE.replace("cpus: 0.2", f"cpus: 0.2, replicas: {REPLICAS}")
        (case / "use_case.yaml").write_text(replicated.format(name=CASE))
        deploy(settings, CASE, challenger=None)
        half = _capacity(url, body) / 2
        killed = [_noticed(url, body, half, lambda: _lose_replica(settings)) for _ in range(ROUNDS)]
        rows.append(_row(f"a killed replica of {REPLICAS}", half, killed))
    return rows


def _capacity(url: str, body: bytes) -> float:
    """Return how many requests a second the endpoint takes."""
    load(url, body, 2.0)
    return load(url, body, 4.0).requests_per_s


def _lose_replica(settings: Settings) -> None:
    """Kill a replica in the middle of its requests, and return when Serve has another in its place."""
    killed = min(running_replicas(settings))
    psutil.Process(killed).kill()
    deadline = time.monotonic() + REPLACED_WITHIN_S
    while killed in (running := running_replicas(settings)) or len(running) < REPLICAS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"Serve runs {len(running)} replicas, not {REPLICAS}")
        time.sleep(0.5)


def _noticed(url: str, body: bytes, rate: float, change: Callable[[], object]) -> Round:
    with steady(url, body, rate) as steady_load:
        time.sleep(1)
        start_s = time.perf_counter()
        time.sleep(PEACE_S)
        changing = time.perf_counter()
        change()
        time.sleep(AFTER_S)
        ended = time.perf_counter()
        time.sleep(max(0.0, start_s + LOAD_S - ended))
    return Round(steady_load.p99_ms(start_s, changing), steady_load.p99_ms(changing, ended), steady_load.failed)


def _row(what: str, rate: float, rounds: list[Round]) -> Row:
    before, during = min(one.before_ms for one in rounds), min(one.during_ms for one in rounds)
    failed = sum(one.failed for one in rounds)
    return Row(
        name=f"{what}, {rate:,.0f} requests/s",
        ours=f"p99 {during:.1f} to {max(one.during_ms for one in rounds):.1f} ms, {failed} failed",
        peer=f"in peace {before:.1f} to {max(one.before_ms for one in rounds):.1f} ms",
        ratio=during / before,
        target="<= 2, 0 failed",
        ok=during <= 2 * before and not failed,
        pending=not failed,  # the load, the proxy, the replica and the command share two cores here
    )


def _shadowed(settings: Settings, url: str, body: bytes, rate: float) -> Row:
    """Compare the requests with and without a shadow, in turn."""
    p99: dict[bool, list[float]] = {False: [], True: []}
    failed = 0
    for shadow in (False, True) * SHADOW_ROUNDS:
        deploy(settings, CASE, challenger=KEEP, traffic=Traffic(shadow=shadow))
        with steady(url, body, rate) as steady_load:
            if shadow:
                _wait_for_shadow(settings)
            time.sleep(1)
            start_s = time.perf_counter()
            time.sleep(SHADOW_S)
            ended = time.perf_counter()
        p99[shadow].append(steady_load.p99_ms(start_s, ended))
        failed += steady_load.failed
    ours, peer = min(p99[True]), min(p99[False])
    return Row(
        name=f"a shadow, {rate:,.0f} requests/s",
        ours=f"p99 {ours:.1f} to {max(p99[True]):.1f} ms, {failed} failed",
        peer=f"without {peer:.1f} to {max(p99[False]):.1f} ms",
        ratio=ours / peer,
        target="<= 1.1, 0 failed",
        ok=ours <= 1.1 * peer and not failed,
        pending=not failed,  # rounds differ by more than that: this machine's host takes cores away
    )


def _wait_for_shadow(settings: Settings) -> None:
    """Return when the shadow answers copies."""
    before = _shadow_answers(settings)
    deadline = time.monotonic() + SHADOW_WITHIN_S
    while _shadow_answers(settings) == before:
        if time.monotonic() > deadline:
            raise TimeoutError("The shadow answers nothing")
        time.sleep(0.5)


def _shadow_answers(settings: Settings) -> float:
    metrics = requests.get(f"{endpoint(settings, CASE)}/metrics", timeout=10).text
    counted = [line for line in metrics.splitlines() if line.startswith("shopfloor_shadow_answers_total")]
    return sum(float(line.rpartition(" ")[2]) for line in counted)

"""Twenty minutes of load, and whether the endpoint's memory and descriptors stay what they are: `make soak`.

    python -m tests.benchmarks.soak [minutes]

Rows, scoring requests, tensors, feedback and wrong requests come at a steady pace from clients that come and go, with
tokens, log, metrics and a shadow switched on. Exit code 1 when something grows, or a request is answered wrongly.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psutil
import requests
from shopfloor.serving.deploy.rollout import Traffic, deploy, endpoint
from shopfloor.serving.replica import tokens
from shopfloor.settings import Settings

from tests.benchmarks.bench_serving import roomy_cluster
from tests.benchmarks.table import Row, show
from tests.support.endpoints import CASE, register_models, running_replicas

MINUTES = 20.0
CLIENTS = 8
REQUESTS_PER_S = 200.0
"""Of all clients together."""
STAY = 100
"""Requests after which a client goes away in the middle of one, and comes back on another connection."""
ROWS = 100
SAMPLE_S = 2.0
SAY_EVERY_S = 30.0
WARM_UP = 0.25
"""Share of the time that does not count."""
MIB_PER_MINUTE = 1.0
DESCRIPTORS = 10
"""By so many a process may hold more at the end than after the warm-up: the clients come and go."""
WATCHED = {
    "replica": f"ray::ServeReplica:{CASE}",
    "shadow": f"{sys.executable} -m shopfloor.serving.beside.shadow_process",
    "proxy": "haproxy",
    "proxy's manager": "ray::HAProxyManager",
    "controller": "ray::ServeController",
}
"""What is watched, and how the names or the command lines of its processes begin."""


@dataclass(frozen=True)
class Ask:
    """A request, and the status that it is to be answered with."""

    path: str
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    weight: int = 1


@dataclass
class Tally:
    """What came of the requests so far."""

    answered: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    """Requests with another status than they were to have, or none."""


class Client(threading.Thread):
    """One that asks again and again, each time something else."""

    def __init__(self, address: str, asks: list[Ask], token: str, tally: Tally, end: threading.Event) -> None:
        super().__init__(daemon=True)
        self.address, self.asks, self.tally, self.end = address, asks, tally, end
        self.headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        self.request_id = "none yet"

    def run(self) -> None:
        interval_s = CLIENTS / REQUESTS_PER_S
        due = time.monotonic() + random.uniform(0, interval_s)
        while not self.end.is_set():
            connection = http.client.HTTPConnection(self.address, timeout=60)
            for ask in random.choices(self.asks, [ask.weight for ask in self.asks], k=STAY):
                if self.end.wait(max(0.0, due - time.monotonic())):
                    break
                due += interval_s
                self.ask(connection, ask)
            self.leave(connection)

    def ask(self, connection: http.client.HTTPConnection, ask: Ask) -> None:
        body = ask.body.replace(b"THE-LAST", self.request_id.encode())
        try:
            connection.request("POST", ask.path, body, self.headers | ask.headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.tally.wrong[f"{ask.path} {type(error).__name__}"] += 1
            return
        self.tally.answered += 1
        if answer.status != ask.status:
            self.tally.wrong[f"{ask.path} {answer.status}, not {ask.status}"] += 1
        elif ask.path.endswith("/predict"):
            self.request_id = answer.headers["X-Request-Id"] or self.request_id

    def leave(self, connection: http.client.HTTPConnection) -> None:
        """Go away in the middle of a request."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.putrequest("POST", self.asks[0].path)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", "1000")
            connection.endheaders(b"{")
        connection.close()


@dataclass(frozen=True)
class Sample:
    """What the processes of one name hold together."""

    minute: float
    mib: float
    """Memory that is theirs alone (USS)."""
    descriptors: int


def main() -> int:
    """Run the soak and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak")
    parser.add_argument("minutes", type=float, nargs="?", default=MINUTES)
    return 0 if show(measure(parser.parse_args().minutes)) else 1


def measure(minutes: float) -> list[Row]:
    """Load the endpoint for so long, and return what grew."""
    with contextlib.ExitStack() as stack:
        directory, cluster = stack.enter_context(roomy_cluster())
        settings = cluster.model_copy(update={"serve_tokens_file": str(directory / "tokens")})
        token = tokens.create(directory / "tokens", "soak", [CASE], None)
        frame, _ = register_models(settings, CASE, versions=2, columns=40, rounds=100, rows=20_000)
        deploy(settings, CASE, champion="1", challenger="2", traffic=Traffic(shadow=True))
        url = endpoint(settings, CASE)
        document = requests.get(f"{url}/openapi.json", timeout=10).json()
        tally, end = Tally(), threading.Event()
        clients = [Client(url.split("/")[2], _asks(document, frame), token, tally, end) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            samples = _watch(settings, minutes, tally)
        finally:
            end.set()
            for client in clients:
                client.join()
    return [row for what in WATCHED for row in _grown(what, samples[what])] + [_answered(tally, minutes)]


def _asks(document: dict[str, Any], frame: Any) -> list[Ask]:
    """Return what the clients ask: the examples of the OpenAPI document, many rows, and what is refused."""

    def example(path: str) -> Any:
        return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]

    predict, infer = f"/{CASE}/predict", f"/{CASE}/v2/models/{CASE}/infer"
    row = example(predict)
    some = frame.head(ROWS)
    split = some.astype(object).where(some.notna(), None).to_dict("split")
    many = {"dataframe_split": {"columns": split["columns"], "data": split["data"]}}
    whole = json.dumps(row).encode()
    return [
        Ask(predict, whole, weight=20),
        Ask(f"/{CASE}/invocations", json.dumps(many).encode(), weight=2),
        Ask(infer, json.dumps(example(infer)).encode(), weight=3),
        Ask(f"/{CASE}/feedback", b'{"request_id": "THE-LAST", "outcome": true}', 202, weight=5),
        Ask(predict, whole[:-1], 400),
        Ask(predict, b"{}", 422),
        Ask(predict, json.dumps(row | {"rate_0": "fast"}).encode(), 422),
        Ask(predict, whole, 401, {"Authorization": "Bearer wrong"}),
        Ask(predict, whole, 404, {"X-Shopfloor-Version": "9"}),
        Ask(predict, whole, 415, {"Content-Type": "text/plain"}),
        Ask(f"/{CASE}/invocations", b'{"dataframe_records": 5}', 400),
        Ask(f"/{CASE}/nowhere", whole, 404),
    ]


def _watch(settings: Settings, minutes: float, tally: Tally) -> dict[str, list[Sample]]:
    """Sample the processes for so long, say how it goes, and read the metrics as Prometheus does."""
    session = os.getsid(min(running_replicas(settings)))  # others on this machine may run the same
    samples: dict[str, list[Sample]] = {what: [] for what in WATCHED}
    began = last_word_s = time.monotonic()
    while (now := time.monotonic()) < began + minutes * 60:
        requests.get(f"{endpoint(settings, CASE)}/metrics", timeout=10).raise_for_status()
        for what, sample in _sample(session, (now - began) / 60).items():
            samples[what].append(sample)
        if now - last_word_s >= SAY_EVERY_S:
            last_word_s = now
            _say(samples, tally)
        time.sleep(SAMPLE_S)
    return samples


def _sample(session: int, minute: float) -> dict[str, Sample]:
    """Return what the processes of a session hold."""
    memory, descriptors = Counter[str](), Counter[str]()
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) != session:
                continue
            for what, name in WATCHED.items():
                if any(text.startswith(name) for text in (process.name(), " ".join(process.cmdline()))):
                    memory[what] += process.memory_full_info().uss
                    descriptors[what] += process.num_fds()
    return {what: Sample(minute, memory[what] / 2**20, descriptors[what]) for what in WATCHED}


def _say(samples: dict[str, list[Sample]], tally: Tally) -> None:
    last = {what: series[-1] for what, series in samples.items()}
    held = ", ".join(f"{what} {one.mib:.1f} MiB {one.descriptors} fds" for what, one in last.items())
    minute = last["replica"].minute
    sys.stderr.write(f"{minute:5.1f} min  {tally.answered:,} answered, {tally.wrong.total()} wrong  {held}\n")


def _grown(what: str, samples: list[Sample]) -> list[Row]:
    """Return by how much memory and descriptors rise after the warm-up, by least squares."""
    counted = samples[int(len(samples) * WARM_UP) :]
    minutes = [sample.minute for sample in counted]
    memory = statistics.linear_regression(minutes, [sample.mib for sample in counted]).slope
    descriptors = statistics.linear_regression(minutes, [sample.descriptors for sample in counted]).slope
    risen = descriptors * (minutes[-1] - minutes[0])
    return [
        Row(
            name=f"soak, memory of the {what}",
            ours=f"{memory:+.2f} MiB a minute",
            peer=f"from {counted[0].mib:.1f} to {counted[-1].mib:.1f} MiB",
            ratio=None,
            target=f"< {MIB_PER_MINUTE:g}",
            ok=memory < MIB_PER_MINUTE and all(sample.mib for sample in counted),
        ),
        Row(
            name=f"soak, descriptors of the {what}",
            ours=f"{risen:+.1f}",
            peer=f"from {counted[0].descriptors} to {counted[-1].descriptors}",
            ratio=None,
            target=f"< {DESCRIPTORS}",
            ok=risen < DESCRIPTORS,
        ),
    ]


def _answered(tally: Tally, minutes: float) -> Row:
    for wrong, times in tally.wrong.most_common():
        sys.stderr.write(f"{times} times: {wrong}\n")
    return Row(
        name=f"soak, requests in {minutes:g} minutes",
        ours=f"{tally.answered:,}, {tally.wrong.total()} wrong",
        peer="",
        ratio=None,
        target="0 wrong",
        ok=not tally.wrong.total(),
    )


if __name__ == "__main__":
    sys.exit(main())

"""The endpoint against a hand-written FastAPI application and `mlflow models serve`: one model, one row, 8 connections.

The three answer in turn, each alone under load, round after round. A figure is that of its best round, for all three:
whatever else the machine does makes a round worse, never better.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
from shopfloor.serving.rollout import deploy, endpoint
from shopfloor.settings import Settings

from tests.benchmarks.table import Row
from tests.integration.test_serving import (
    BIN,
    CASE,
    ROOT,
    USE_CASE,
    free_port,
    register_models,
    serving_cluster,
    stop,
    wait_for,
)

CONNECTIONS = 8
ROUNDS = 5
ROUND_S = 4.0
WARM_UP_S = 2.0
PAUSE_S = 0.5
COLUMNS = 40
TREES = 100


@dataclass(frozen=True)
class Load:
    """What one server did in one round."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends the same request again as soon as it is answered."""

    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self.request, self.latencies = request, latencies
        self.buffer, self.running = b"", True
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def connection_lost(self, problem: Exception | None) -> None:
        self.closed.set_result(problem)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(self.buffer.decode())
        self.latencies.append(time.perf_counter() - self.sent)
        self.buffer = b""
        if self.running:
            self._send()
        else:
            self.transport.close()


def load(url: str, body: bytes, seconds: float) -> Load:
    """Ask `url` as fast as it answers on 8 connections."""
    _, _, host, path = url.split("/", 3)
    head = f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    latencies: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        name, _, port = host.partition(":")
        request = f"{head}\r\n\r\n".encode() + body
        connections = [
            (await loop.create_connection(lambda: Connection(request, latencies), name, int(port)))[1]
            for _ in range(CONNECTIONS)
        ]
        await asyncio.sleep(seconds)
        for connection in connections:
            connection.running = False
        for connection in connections:  # the next server begins when this one has answered everything
            await connection.closed

    asyncio.run(run())
    latencies.sort()
    return Load(
        requests_per_s=len(latencies) / seconds,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000,
    )


@contextlib.contextmanager
def process(directory: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen]:
    """Run a server as a process of its own for the time of the block."""
    with (directory / "peers.log").open("a") as log:
        server = subprocess.Popen(
            command, env=os.environ | environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
        )
        try:
            yield server
        finally:
            stop(server)


def measure() -> list[Row]:
    """Return the endpoint's figures beside those of the two peers."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        case = directory / "pipelines" / CASE
        case.mkdir(parents=True)
        (case / "use_case.yaml").write_text(USE_CASE.format(name=CASE))
        settings: Settings = stack.enter_context(serving_cluster(directory))
        _, boosters = register_models(settings, CASE, versions=1, columns=COLUMNS, rounds=TREES, rows=20_000)
        deploy(settings, CASE, champion="1")
        document = requests.get(f"{endpoint(settings, CASE)}/openapi.json", timeout=10).json()
        described = document["paths"][f"/{CASE}/predict"]["post"]["requestBody"]["content"]["application/json"]
        boosters[0].save_model(directory / "model.ubj")

        fastapi_port, mlflow_port = free_port(), free_port()
        fastapi = stack.enter_context(
            process(
                directory,
                *(str(BIN / "uvicorn"), "tests.benchmarks.serving_peer:app", "--port", str(fastapi_port)),
                *("--no-access-log", "--log-level", "warning"),
                PEER_MODEL=str(directory / "model.ubj"),
                PEER_SCHEMA=json.dumps(described["schema"]),
                OMP_NUM_THREADS="1",
            )
        )
        mlflow = stack.enter_context(
            process(
                directory,
                *(str(BIN / "mlflow"), "models", "serve", "-m", f"models:/{CASE}/1", "--env-manager", "local"),
                *("--port", str(mlflow_port)),
                MLFLOW_TRACKING_URI=settings.tracking_uri,
                PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
            )
        )
        wait_for(f"http://127.0.0.1:{fastapi_port}/docs", fastapi)
        wait_for(f"http://127.0.0.1:{mlflow_port}/ping", mlflow)
        row = described["example"]
        body, records = json.dumps(row).encode(), json.dumps({"dataframe_records": [row]}).encode()
        servers = {
            "ours": (f"{endpoint(settings, CASE)}/predict", body),
            "fastapi": (f"http://127.0.0.1:{fastapi_port}/predict", body),
            "mlflow": (f"http://127.0.0.1:{mlflow_port}/invocations", records),
        }
        for url, content in servers.values():
            load(url, content, WARM_UP_S)
        rounds: dict[str, list[Load]] = {name: [] for name in servers}
        for _ in range(ROUNDS):
            for name, (url, content) in servers.items():
                rounds[name].append(load(url, content, ROUND_S))
                time.sleep(PAUSE_S)
    return _rows({name: _best(loads) for name, loads in rounds.items()})


def _best(loads: list[Load]) -> Load:
    return Load(
        requests_per_s=max(item.requests_per_s for item in loads),
        p50_ms=min(item.p50_ms for item in loads),
        p99_ms=min(item.p99_ms for item in loads),
    )


def _rows(figures: dict[str, Load]) -> list[Row]:
    ours, fastapi, mlflow = figures["ours"], figures["fastapi"], figures["mlflow"]

    def rate(peer: Load, name: str, least: float) -> Row:
        ratio = ours.requests_per_s / peer.requests_per_s
        return Row(
            name=f"endpoint, requests/s against {name}",
            ours=f"{ours.requests_per_s:,.0f}",
            peer=f"{peer.requests_per_s:,.0f}",
            ratio=ratio,
            target=f">= {least:g}",
            ok=ratio >= least,
        )

    def latency(name: str, our: float, peer: float, most: float | None) -> Row:
        ratio = our / peer
        target, ok = (f"<= {most:g}", ratio <= most) if most else ("", True)
        return Row(name=name, ours=f"{our:.1f} ms", peer=f"{peer:.1f} ms", ratio=ratio, target=target, ok=ok)

    return [
        rate(fastapi, "FastAPI", 0.8),
        rate(mlflow, "mlflow models serve", 4),
        latency("endpoint, p99 against FastAPI", ours.p99_ms, fastapi.p99_ms, 1),
        latency("endpoint, p50 against FastAPI", ours.p50_ms, fastapi.p50_ms, None),
        latency("endpoint, p99 against mlflow models serve", ours.p99_ms, mlflow.p99_ms, None),
    ]


if __name__ == "__main__":
    for line in measure():
        print(line)
    sys.exit(0)

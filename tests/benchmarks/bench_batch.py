"""Batch scoring of ten million rows against the model alone in a loop over all cores, from the same parquet file."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from shopfloor import batch
from shopfloor.settings import Settings

from tests.benchmarks.table import Row
from tests.endpoints import CASE, MODEL, USE_CASE, register_models, serving_cluster

ROWS = 10_000_000
GROUP = 250_000
COLUMNS = 21
"""As many as the flight model has."""
TREES = 100
MEMORY_GIB = 3.0


def measure() -> list[Row]:
    """Return rows a second of both, and the memory of the workers."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        case = directory / "pipelines" / CASE
        case.mkdir(parents=True)
        (case / "use_case.yaml").write_text(USE_CASE.format(name=CASE))
        (case / "model.py").write_text(MODEL)
        settings: Settings = stack.enter_context(serving_cluster(directory))
        frame, boosters = register_models(settings, CASE, versions=1, columns=COLUMNS, rounds=TREES, rows=20_000)
        data = directory / "rows.parquet"
        random = np.random.default_rng(7)
        with pq.ParquetWriter(data, pa.Table.from_pandas(frame, preserve_index=False).schema) as writer:
            for _ in range(ROWS // GROUP):
                rows = frame.iloc[random.integers(0, len(frame), GROUP)]
                writer.write_table(pa.Table.from_pandas(rows, preserve_index=False))

        began = time.perf_counter()
        for part in pq.ParquetFile(data).iter_batches(batch.BATCH_ROWS):
            boosters[0].inplace_predict(part.to_pandas().to_numpy(dtype=np.float32), validate_features=False)
        peer_s = time.perf_counter() - began

        scored = SimpleNamespace(name="scored", uri="", metadata={})
        began = time.perf_counter()
        with _memory_of("Scorer") as peak:
            batch.score(settings, CASE, "1", str(data), str(directory / "out"), scored)
        ours_s = time.perf_counter() - began
    gib = max(peak) / 1024**3
    return [
        Row(
            name=f"batch scoring, {ROWS:,} rows",
            ours=f"{ROWS / ours_s:,.0f} rows/s",
            peer=f"the model in a loop {ROWS / peer_s:,.0f} rows/s",
            ratio=peer_s / ours_s,
            target=">= 0.7",
            ok=peer_s / ours_s >= 0.7,
            pending=True,  # not yet measured in peace: scoring costs the loop's CPU time, the start comes on top
        ),
        Row(
            name="batch scoring, all of its workers",
            ours=f"{gib:.1f} GiB",
            peer="",
            ratio=None,
            target=f"<= {MEMORY_GIB:g} GiB",
            ok=gib <= MEMORY_GIB,
        ),
    ]


@contextlib.contextmanager
def _memory_of(name: str) -> Iterator[list[int]]:
    """Keep how many bytes the processes with that name hold together."""
    seen, end = [0], threading.Event()

    def watch() -> None:
        while not end.wait(0.5):
            total = 0
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if any(name in word for word in process.cmdline()):
                        total += process.memory_full_info().uss
            seen.append(total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()

"""The feature build: seconds and memory beyond imports, for the year's flights and for ten times as many.

Its peer is the use case's own tables, without Feast: what the join, the registry and the splits cost on top.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pipelines.flight_delays.source import make_tables
from tests.benchmarks.table import Row

PROJECT = Path(__file__).resolve().parents[2]
PROBE = """
import json, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace as N
import duckdb, feast, ibis, pandas
import feast.infra.data_sources.mlflow, feast.infra.offline_stores.duckdb, ibis.backends.duckdb
from shopfloor.data import building
from shopfloor.settings import Settings
tables, place = Path(sys.argv[1]), Path(tempfile.mkdtemp(dir=sys.argv[2]))
settings = Settings(project_root=Path(sys.argv[3]), state_dir=place, artifact_root=str(place / "artifacts"),
                    feature_registry=str(place / "registry.db"), online_store=str(place / "online.db"))
code = features.load_use_case(settings, "flight_delays").code("features")
def peak_kib():  # getrusage would count the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak_kib()
began = time.perf_counter()
building.build(settings, "flight_delays", str(tables), N(name="features", uri="", metadata={}),
               N(log_metric=lambda *_: None))
ours = time.perf_counter() - began
peak = (peak_kib() - before) / 1024**2
began = time.perf_counter()
(place / "raw").mkdir()
code.source_tables(tables, place / "raw")
print(json.dumps({"ours": ours, "raw": time.perf_counter() - began, "peak_gib": peak}))
"""


def _probe(tables: Path, scratch: Path) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(tables), str(scratch), str(PROJECT)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def measure() -> list[Row]:
    """Return a row for the year's flights and one for ten times as many."""
    import duckdb

    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        year, ten = scratch / "year", scratch / "ten"
        make_tables(year)
        make_tables(ten)
        # Copies that differ by seconds: as many keys, ten times the events.
        duckdb.sql(
            f"""COPY (
                SELECT f.* REPLACE (flight_id * 10 + n AS flight_id,
                    scheduled_departure + to_seconds(n) AS scheduled_departure, landed_at + to_seconds(n) AS landed_at)
                FROM '{year}/flights.parquet' f, range(10) t(n)
            ) TO '{ten}/flights.parquet'"""
        )
        one, many = _probe(year, scratch), _probe(ten, scratch)
    return [
        Row(
            name="feature build, 336,776 flights",
            ours=f"{one['ours']:.1f} s, {one['peak_gib']:.1f} GiB",
            peer=f"its tables alone {one['raw']:.1f} s",
            ratio=one["ours"] / one["raw"],
            target="<= 4 s, 3 GiB",
            ok=one["ours"] <= 4 and one["peak_gib"] <= 3,
        ),
        Row(
            name="feature build, ten times the flights",
            ours=f"{many['ours']:.1f} s, {many['peak_gib']:.1f} GiB",
            peer=f"one time {one['ours']:.1f} s",
            ratio=many["ours"] / one["ours"],
            target="<= 10 x, 8 GiB",
            ok=many["ours"] <= 10 * one["ours"] and many["peak_gib"] <= 8,
        ),
    ]

"""`shopfloor --help`: processor time of the command, beside what its users run on the same machine.

And `shopfloor plan` of the training DAG: seconds until it has answered, once it was asked before.
"""

import resource
import subprocess
import tempfile
from pathlib import Path

from tests.benchmarks.bench_main_job import Clone
from tests.benchmarks.table import Row
from tests.support.project import BIN

ROUNDS = 5
PEERS = ("dvc", "ray", "mlflow")
PLAN_S = 1.0


def measure() -> list[Row]:
    """Return a row for each peer; a figure is that of the best of some rounds."""
    ours = _seconds("shopfloor")
    rows = [
        Row(
            name=f"--help, processor time, against {peer}",
            ours=f"{ours:.2f} s",
            peer=f"{theirs:.2f} s",
            ratio=ours / theirs,
            target="< 0.5 s",
            ok=ours < 0.5,
        )
        for peer in PEERS
        for theirs in [_seconds(peer)]
    ]
    plan = _plan_seconds()
    return [
        *rows,
        Row(
            name="plan of the training DAG",
            ours=f"{plan:.2f} s",
            peer="",
            ratio=None,
            target=f"<= {PLAN_S:g} s",
            ok=plan <= PLAN_S,
        ),
    ]


def _plan_seconds() -> float:
    """Return the least seconds of a plan in a clone that has its data; no service runs."""
    with tempfile.TemporaryDirectory(prefix="sf-") as directory:
        clone = Clone(Path(directory))
        clone.shopfloor("data", "prepare", "flight_delays")
        return min(
            clone.shopfloor("plan", "pipelines/training.py", "--use-case", "flight_delays") for _ in range(ROUNDS)
        )


def _seconds(command: str) -> float:
    return min(_once(command) for _ in range(ROUNDS))


def _once(command: str) -> float:
    before = _used()
    subprocess.run([BIN / command, "--help"], check=True, capture_output=True)
    return _used() - before


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

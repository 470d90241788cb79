"""`shopfloor --help`: processor time of the command, beside what its users run on the same machine."""

import resource
import subprocess

from tests.benchmarks.table import Row
from tests.support.project import BIN

ROUNDS = 5
PEERS = ("dvc", "ray", "mlflow")


def measure() -> list[Row]:
    """Return a row for each peer; a figure is that of the best of some rounds."""
    ours = _seconds("shopfloor")
    return [
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


def _seconds(command: str) -> float:
    return min(_once(command) for _ in range(ROUNDS))


def _once(command: str) -> float:
    before = _used()
    subprocess.run([BIN / command, "--help"], check=True, capture_output=True)
    return _used() - before


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

"""`make bench`: run every comparison and print one table; exit code 1 when a target is missed."""

import importlib
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.table import Row


def main() -> int:
    """Run `measure()` of each `bench_*.py` beside this file, or of those named on the command line."""
    names = sys.argv[1:] or sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    table = Table("comparison", "ours", "peer", "ratio", "target", "")
    missed = 0
    for name in names:
        sys.stderr.write(f"{name}\n")
        for row in importlib.import_module(f"tests.benchmarks.{name}").measure():
            missed += not (row.ok or row.pending)
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            table.add_row(row.name, row.ours, row.peer, ratio, row.target, _verdict(row))
    Console(width=160).print(table)
    return 1 if missed else 0


def _verdict(row: Row) -> str:
    if row.ok:
        return "met"
    return "not yet" if row.pending else "MISSED"


if __name__ == "__main__":
    sys.exit(main())

"""`make bench`: run every comparison and print one table; exit code 1 when a target is missed."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.table import Row, show


def main() -> int:
    """Run `measure()` of each `bench_*.py` beside this file, or of those named on the command line."""
    names = sys.argv[1:] or sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    return 0 if show(_measured(names)) else 1


def _measured(names: list[str]) -> Iterator[Row]:
    for name in names:
        sys.stderr.write(f"{name}\n")
        yield from importlib.import_module(f"tests.benchmarks.{name}").measure()


if __name__ == "__main__":
    sys.exit(main())

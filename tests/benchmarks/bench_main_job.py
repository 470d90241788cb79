"""`make run` cold and again in a fresh clone, and the DAG against one plain script that makes the same calls."""

import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.benchmarks.table import Row
from tests.support.project import bare_environment, copy_project, git

PROJECT = Path(__file__).resolve().parents[2]
COLD_S, AGAIN_S, PEAK_GIB, RATIO = 150, 10, 8, 1.3
MARK = "BENCHMARK_MARK"
SUBMIT = ("-m", "shopfloor", "submit", "pipelines/training.py", "--use-case", "flight_delays")
SAMPLE_S = 0.5
PLAIN = """
import sys
from types import SimpleNamespace
from shopfloor.settings import load_settings
from shopfloor.judging import evaluate as evaluation
from shopfloor.data import building
from shopfloor.data import quality
from shopfloor.registry import register as registry
from shopfloor.training import tuning
from shopfloor.data import versions
from shopfloor.serving.deploy import steps
from shopfloor.serving.deploy import verify

def made(name):
    return SimpleNamespace(name=name, uri="", metadata={})

settings, use_case = load_settings(), "flight_delays"
numbers = SimpleNamespace(log_metric=lambda *_: None)
tables, checks, joined, model, search, judged, version, deployment, champion = map(made, "abcdefghi")
versions.pull(settings, use_case, "", "", tables, numbers)
quality.validate(settings, use_case, tables.uri, checks, numbers)
building.build(settings, use_case, tables.uri, joined, numbers)
tuning.tune(settings, use_case, joined.uri, 0, model, search, numbers)
assert evaluation.evaluate(settings, use_case, joined.uri, model.uri, "", judged, numbers)
made_of = {"model": model, "evaluation": judged, "features": joined, "checks": checks, "tables": tables}
number = registry.register(settings, use_case, made_of, version)
steps.introduce(settings, use_case, number, deployment)
verify.verify(settings, use_case, number, joined.uri, model.uri, numbers)
steps.promote(settings, use_case, number, champion)
"""


class Clone:
    """A fresh clone of what stands here, run with this environment's Python."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mark = uuid.uuid4().hex
        copy_project(root)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
            git(root, *command)

    def python(self, *arguments: str) -> float:
        """Run Python in the clone and return the seconds that it took."""
        # Python keeps the modules that it has compiled, as it does where nobody forbids it.
        environment = bare_environment("MLFLOW_", "PYTHONDONTWRITEBYTECODE")
        paths = os.pathsep.join(map(str, (self.root, self.root / "platform")))
        path = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", "")))
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env={**environment, "PYTHONPATH": paths, "PATH": path, MARK: self.mark},
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - began

    def shopfloor(self, *arguments: str) -> float:
        return self.python("-m", "shopfloor", *arguments)

    def submit(self) -> float:
        return self.python(*SUBMIT)

    def run(self) -> float:
        """Do what `make run` does once everything is installed."""
        return self.shopfloor("up") + self.shopfloor("data", "prepare", "flight_delays") + self.submit()

    def memory(self) -> float:
        """Return the memory of all processes that this clone started, in GiB; shared pages count once."""
        total = 0
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total / 1024**3


class Peak:
    """The most memory that a clone had within the block."""

    def __init__(self, clone: Clone) -> None:
        self.gib = 0.0
        self._clone = clone
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.gib = max(self.gib, self._clone.memory())


def measure() -> list[Row]:
    """Return the rows of `make run`, and of the DAG against the script."""
    with tempfile.TemporaryDirectory(prefix="sf-") as directory:
        ours = Clone(Path(directory) / "ours")
        try:
            with Peak(ours) as peak:
                cold = ours.run()
            again = ours.run()
        finally:
            ours.shopfloor("down")
        dag = _stacked(Path(directory) / "dag", lambda clone: clone.submit())
        plain = _stacked(Path(directory) / "plain", lambda clone: clone.python("-c", PLAIN))
    return [
        Row(
            name="make run, cold",
            ours=f"{cold:.0f} s, {peak.gib:.1f} GiB",
            peer="",
            ratio=None,
            target=f"<= {COLD_S} s, {PEAK_GIB} GiB",
            ok=cold <= COLD_S and peak.gib <= PEAK_GIB,
        ),
        Row(
            name="make run again, all cached",
            ours=f"{again:.1f} s",
            peer=f"cold {cold:.0f} s",
            ratio=again / cold,
            target=f"<= {AGAIN_S} s",
            ok=again <= AGAIN_S,
        ),
        Row(
            name="the training DAG",
            ours=f"{dag:.1f} s",
            peer=f"one plain script {plain:.1f} s",
            ratio=dag / plain,
            target=f"<= {RATIO} x",
            ok=dag <= RATIO * plain,
        ),
    ]


def _stacked(root: Path, timed: Callable[[Clone], float]) -> float:
    """Return the seconds of `timed` in a new clone whose stack is up and whose data are in place."""
    clone = Clone(root)
    try:
        clone.shopfloor("up")
        clone.shopfloor("data", "prepare", "flight_delays")
        return timed(clone)
    finally:
        clone.shopfloor("down")

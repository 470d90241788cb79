"""The stack of docker-compose.yml: its start, the flight pipeline against the embedded stack, a backup and its restore.

All of it in one run, each from nothing. It needs Docker's engine with the images (`make images`), 16 GiB of memory and
some 12 minutes; without them it says so and measures nothing. Nothing else should run on the machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.bench_main_job import Clone
from tests.benchmarks.table import Row
from tests.support.compose import SUBMIT, Stack, engine_answers

HEALTHY_S, RATIO, CREATE_S, RESTORE_S = 60, 1.3, 20, 180
KEY = "a key of enough characters"


def measure() -> Iterator[Row]:
    """Yield the rows, or the one that says why there are none."""
    if why := _missing():
        yield Row(name="the stack of Docker Compose", ours=why, peer="", ratio=None, target="", ok=False, pending=True)
        return
    with tempfile.TemporaryDirectory(prefix="bench-compose-") as directory:
        embedded = _embedded(Path(directory) / "embedded")
        clone = Clone(Path(directory) / "compose")
        stack = Stack(clone.root)
        try:
            stack.shopfloor("secrets", "init")
            yield _row("docker compose up to healthy, no volume before", _timed(stack, _up), HEALTHY_S)
            stack.shopfloor("data", "prepare", "flight_delays")
            seconds = _timed(stack, lambda stack: stack.shopfloor(*SUBMIT))
            yield Row(
                name="the flight pipeline cold, 16 trials",
                ours=f"Compose {seconds:.0f} s",
                peer=f"embedded {embedded:.0f} s",
                ratio=seconds / embedded,
                target=f"<= {RATIO} x",
                ok=seconds <= RATIO * embedded,
            )
            yield from _backup(stack, Path(directory))
        finally:
            _down(stack)


def _missing() -> str:
    """Return what is missing, in words; empty where nothing is."""
    if not engine_answers():
        return "no Docker engine answers here"
    root = Path(__file__).resolve().parents[2]
    text = (root / "docker-compose.yml").read_text(encoding="utf-8")
    image = text.partition("${PLATFORM_IMAGE:-")[2].partition("}")[0]
    inspected = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    return f"the engine has no {image}: make images" if inspected.returncode else ""


def _embedded(root: Path) -> float:
    """Return the seconds of the pipeline on the embedded stack, which is gone afterwards."""
    clone = Clone(root)
    try:
        clone.shopfloor("up")
        clone.shopfloor("data", "prepare", "flight_delays")
        return clone.submit()
    finally:
        clone.shopfloor("down")
        shutil.rmtree(root)


def _backup(stack: Stack, place: Path) -> Iterator[Row]:
    """Back the stack up, lose it with its secrets, and restore it."""
    (place / "key").write_text(KEY)
    options = ("--store", str(place / "store"), "--key-file", str(place / "key"), "--json")
    made = json.loads(stack.shopfloor("backup", "create", *options))
    name = f"backup create, {made['files']} files, {made['size_bytes'] / 1e6:.0f} MB"
    yield _row(name, made["seconds"], CREATE_S)
    _down(stack)
    for lost in (".secrets", ".shopfloor"):
        shutil.rmtree(stack.root / lost, ignore_errors=True)
    (stack.root / ".env").unlink()
    restored = json.loads(stack.run(sys.executable, "-m", "shopfloor", "backup", "restore", *options))
    assert [(one["version"], one["largest_difference"]) for one in restored["champions"]] == [("1", 0)], restored
    yield _row("backup restore, until the champion has answered as it did", restored["seconds"], RESTORE_S)


def _row(name: str, seconds: float, limit_s: float) -> Row:
    return Row(
        name=name, ours=f"{seconds:.0f} s", peer="", ratio=None, target=f"<= {limit_s:.0f} s", ok=seconds <= limit_s
    )


def _timed(stack: Stack, action: Callable[[Stack], object]) -> float:
    began = time.perf_counter()
    action(stack)
    return time.perf_counter() - began


def _up(stack: Stack) -> None:
    stack.compose("up", "-d", "--wait")


def _down(stack: Stack) -> None:
    """Take the stack away by its names: compose wants the secrets even for that, and they may be lost."""
    project = stack.environment["COMPOSE_PROJECT_NAME"]
    for command in (("container", "rm", "--force", "--volumes"), ("volume", "rm"), ("network", "rm")):
        shown = ["docker", command[0], "ls", "--quiet", "--filter", f"label=com.docker.compose.project={project}"]
        names = stack.run(*shown, *(["--all"] if command[0] == "container" else [])).split()
        if names:
            stack.run("docker", *command, *names)

"""Wait for a fact, never for a time; and find a port that nobody has."""

import contextlib
import itertools
import random
import socket
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

import requests

Value = TypeVar("Value")

_ports = itertools.cycle(range(29_000, 32_768))
for _ in range(random.randrange(3_768)):
    next(_ports)


def free_port() -> int:
    """Return a port that is free, and that nobody gets by chance until a server listens on it.

    The system gives ports from 32,768 on to whoever connects, and Serve starts HAProxy for ever where one is taken.
    """
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports never end")


def wait_until(condition: Callable[[], Value], timeout_s: float = 180, every_s: float | None = None) -> Value:
    """Return what a condition gives once that is true; who does not answer yet, or not in full, is no error.

    Without `every_s` it is asked less and less often: what it waits for may need the processor that asking takes.
    """
    deadline, pause_s = time.monotonic() + timeout_s, every_s or 0.05
    while True:
        with contextlib.suppress(OSError, KeyError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, f"it did not come within {timeout_s} s"
        time.sleep(pause_s)
        if every_s is None:
            pause_s = min(1.2 * pause_s, 0.25)


def wait_for(url: str, process: subprocess.Popen, timeout_s: float = 120, **headers: str) -> None:
    """Wait until a server answers at this address."""

    def answers() -> bool:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        return requests.get(url, timeout=2, headers=headers).ok

    wait_until(answers, timeout_s)


def wait_for_port(port: int, timeout_s: float = 60) -> None:
    """Wait until somebody listens on this port of this machine."""

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    wait_until(listens, timeout_s)

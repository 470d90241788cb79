"""Holds what a unit test is: it starts no process, opens no server, and takes next to no time.

A test's time is the CPU time of its own thread, without what its imports take: a busy machine makes everything slow,
and the first test of a file imports for all. It is meant to be under 50 ms. What fails is far above that, because even
CPU time doubles where two processes share a core: this finds the test that does too much, and compares nothing.
"""

import builtins
import sys
import time

import pytest

LIMIT_S = 1.5
PROPERTY_LIMIT_S = 6.0
"""For a property, which is tried with a hundred examples."""
STARTED = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system", "socket.bind"}
_running = [""]
_importing = [0, 0.0]
"""Depth of the imports that go on, and the CPU seconds of those that are done."""


def _watch(event, arguments):
    if _running[0] and event in STARTED and arguments[0] != "uname":  # `platform` asks it, for whoever is imported
        test, _running[0] = _running[0], ""
        pytest.fail(f"{test} does {event}{arguments[:1]}: its place is tests/integration", pytrace=False)


sys.addaudithook(_watch)


def _counted(real):
    def counting(*arguments, **options):
        _importing[0] += 1
        start_s = time.thread_time()
        try:
            return real(*arguments, **options)
        finally:
            _importing[0] -= 1
            if not _importing[0]:
                _importing[1] += time.thread_time() - start_s

    return counting


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    _running[0] = item.name
    try:
        return (yield)
    finally:
        _running[0] = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    real = builtins.__import__
    _importing[1] = 0.0
    _running[0] = item.name
    start_s = time.thread_time()
    builtins.__import__ = _counted(real)
    try:
        result = yield
    finally:
        builtins.__import__ = real
        _running[0] = ""
    spent = time.thread_time() - start_s - _importing[1]
    limit = PROPERTY_LIMIT_S if getattr(item.obj, "is_hypothesis_test", False) else LIMIT_S
    if spent > limit:
        pytest.fail(f"{spent:.2f} s of CPU time, more than {limit} s: test less, or elsewhere", pytrace=False)
    return result

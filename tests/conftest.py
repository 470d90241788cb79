"""What holds for every test."""

import signal

import pytest

RAY = "ray"
"""Group of the tests that need a Ray cluster, one after the other: two that start at once are too slow for Ray."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it runs in its background, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # nohup does the same with the end of a terminal.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_itemcollected(item):
    """Let a module's tests run in one process where there are several, and all that need Ray in the same."""
    if not item.get_closest_marker("xdist_group"):
        group = RAY if "servers" in getattr(item, "fixturenames", ()) else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))

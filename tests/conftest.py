"""What holds for every test."""

import os
import signal
import sys
from pathlib import PurePath

import pytest
from hypothesis import HealthCheck, settings

OWN_CLUSTERS = {
    "test_main_job.py",
    "test_ray_engine.py",
    "test_stack.py",
    "test_steps_on_s3.py",
}
"""Modules that start Ray clusters of their own, one after the other."""
ONE_CLUSTER = {
    "test_batch_scoring.py",
    "test_columns.py",
    "test_costs.py",
    "test_engine_step_records.py",
    "test_golden_requests.py",
    "test_hostile_input.py",
    "test_imported_rollout.py",
    "test_importing.py",
    "test_interleavings.py",
    "test_online_features.py",
    "test_promotion.py",
    "test_register.py",
    "test_rollout.py",
    "test_serving.py",
    "test_shadow.py",
    "test_tasks.py",
    "test_traffic.py",
}
"""Modules that need a Ray cluster with endpoints, most of them the same; one after the other too."""

# How fast examples are drawn and tried says how busy the machine is, and nothing of what is tried.
settings.register_profile("shopfloor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "shopfloor")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it runs in its background, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # nohup does the same with the end of a terminal.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# A hundred commands run here: none of them is to compile every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def group(file: str) -> str:
    """Return the name of what runs in one process, one after the other, with the tests of this file."""
    if file in OWN_CLUSTERS:
        return "own clusters"
    return "one cluster" if file in ONE_CLUSTER else file


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that the rest fills up what is left."""
    first = ("own clusters", "one cluster")
    items.sort(key=lambda item: group(item.path.name) not in first)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let a module's tests run in one process where there are several, and those of a group in the same."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(PurePath(nodeid.split("::", 1)[0]).name)

    return ByGroup(config, log)

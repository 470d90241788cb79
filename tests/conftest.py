"""What holds for every test."""

import signal
from pathlib import PurePath

RAY = {
    "test_batch_scoring.py",
    "test_engine_step_records.py",
    "test_golden_requests.py",
    "test_hostile_input.py",
    "test_interleavings.py",
    "test_main_job.py",
    "test_online_features.py",
    "test_promotion.py",
    "test_ray_engine.py",
    "test_register.py",
    "test_rollout.py",
    "test_serving.py",
    "test_shadow.py",
    "test_stack.py",
    "test_steps_on_s3.py",
    "test_traffic.py",
}
"""Modules that need a Ray cluster, one after the other: beside another one that works, Ray's own 30 s to start a node
are too short on two cores."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it runs in its background, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # nohup does the same with the end of a terminal.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_make_scheduler(config, log):
    """Let a module's tests run in one process where there are several, and all that need Ray in the same."""
    from xdist.scheduler import LoadScopeScheduling

    class ByNeed(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = PurePath(nodeid.split("::", 1)[0]).name
            return "ray" if file in RAY else file

    return ByNeed(config, log)

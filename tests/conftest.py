"""What holds for every test."""

import signal
from pathlib import PurePath

OWN_RAY = {"test_main_job.py", "test_ray_engine.py", "test_stack.py", "test_steps_on_s3.py"}
"""Modules that start Ray clusters of their own, one after the other."""
SHARED_RAY = {
    "test_batch_scoring.py",
    "test_engine_step_records.py",
    "test_golden_requests.py",
    "test_hostile_input.py",
    "test_interleavings.py",
    "test_online_features.py",
    "test_promotion.py",
    "test_register.py",
    "test_rollout.py",
    "test_serving.py",
    "test_shadow.py",
    "test_traffic.py",
}
"""Modules that use the cluster of tests/integration/conftest.py: in one process, which starts it once."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it runs in its background, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # nohup does the same with the end of a terminal.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_make_scheduler(config, log):
    """Let a module's tests run in one process where there are several, and no more than two clusters at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByNeed(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = PurePath(nodeid.split("::", 1)[0]).name
            return "own ray" if file in OWN_RAY else "shared ray" if file in SHARED_RAY else file

    return ByNeed(config, log)

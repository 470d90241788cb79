"""A small process that has imported what most steps import, and forks one process for each step.

It imports only what the lock pins: a step imports the modules of the project itself, as its content key hashes them. It
forks only while it has one thread, so that no lock of another thread is ever copied; libraries that would start threads
when they are imported are told not to, and a step gets its threads back. A step finds what a process of its own would:
its environment, working directory, log, session, signals, and random numbers of its own.

Usage: as the program of `python -c`, see `forks.py`. It imports nothing of ours, which would come from another place
than the step's. A line of JSON on its standard input starts a step; lines of JSON on its standard output tell.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
from typing import Any

LIBRARIES = (
    "kfp.dsl.executor",
    "pandas",
    "pyarrow.parquet",
    "pydantic_settings",
    "ibis.backends.duckdb",
    "mlflow.tracking",
    "xgboost",
    "ray.tune",
    "optuna",
)
"""Libraries that steps import, in the order in which the training DAG first needs it.

Not Feast, which maps files of its own into memory when it is imported.
"""
QUIET = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Variables that keep libraries from starting threads when they are imported."""
_PR_SET_PDEATHSIG = 1


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def serve(requests: int, answers: int) -> dict[str, Any] | None:
    """Fork a process for each request.

    Args:
        requests: File descriptor of the requests.
        answers: File descriptor of the answers.

    Returns:
        In a forked process the request that it is for; in the server `None`, at its end.
    """

    def tell(**answer: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(answers, json.dumps(answer).encode() + b"\n")

    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    pending, open_ = b"", True
    tell(ready=_threads() == 1)
    while open_ or children:
        readable = select.select([requests, woken] if open_ else [woken], [], [])[0]
        if woken in readable:
            os.read(woken, 512)
            for child in list(children):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    children.discard(pid)
                    tell(pid=pid, code=os.waitstatus_to_exitcode(status))
        if requests not in readable:
            continue
        text = os.read(requests, 65536)
        open_ = bool(text)
        *lines, pending = (pending + text).split(b"\n")
        for line in lines:
            request = json.loads(line)
            start_read, start_write = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if pid == 0:
                os.setsid()
                signal.set_wakeup_fd(-1)
                for descriptor in (start_write, start_read, requests, answers, woken, wake):
                    os.close(descriptor)
                return dict(request)
            os.close(start_write)
            os.read(start_read, 1)  # it has a session of its own: its group can be ended from now on
            os.close(start_read)
            children.add(pid)
            tell(request=request["request"], pid=pid)
    return None


def become(request: dict[str, Any], before: dict[str, str]) -> None:
    """Make this forked process what a new one would be that runs the request's component.

    Args:
        request: What `forks.py` wrote.
        before: The server's variables before it imported anything.
    """
    gc.unfreeze()  # else libraries complain at the end of what they leave
    # Who watches over the steps ends this server last; without it nobody would hear of this process.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["directory"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Some libraries set variables when they are imported.
    theirs = {name: value for name, value in os.environ.items() if before.get(name) != value}
    os.environ.clear()
    os.environ.update(request["environment"] | theirs)
    _threads_back()
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "ephemeral_component.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(request["source"])
    os.environ["_KFP_RUNTIME"] = "true"
    sys.path[0] = request["directory"]
    sys.argv = [request["module"], "--component_module_path", path, *request["arguments"]]


def _threads_back() -> None:
    """Let linear algebra use as many threads as it would have."""
    if "OPENBLAS_NUM_THREADS" in os.environ or "numpy" not in sys.modules:
        return
    with contextlib.suppress(ImportError):
        threads = os.environ.get("OMP_NUM_THREADS", "")
        importlib.import_module("threadpoolctl").threadpool_limits(
            int(threads) if threads.isdigit() else len(os.sched_getaffinity(0)), "blas"
        )


def main() -> str | None:
    """Import, and serve; return in a forked process the module that it has to run, in the server `None`."""
    requests, answers = os.dup(0), os.dup(1)
    os.set_inheritable(requests, False)
    os.set_inheritable(answers, False)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    # A step ends by its group's signals, and this server after its last step.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    before = dict(os.environ)
    for name in LIBRARIES:
        with contextlib.suppress(Exception):  # the step that needs it says so
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    request = serve(requests, answers)
    if request is None:
        return None
    become(request, before)
    return str(request["module"])

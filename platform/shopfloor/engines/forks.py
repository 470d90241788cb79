"""Steps forked from a process that has imported their libraries already: the client of `fork_server.py`.

Only a component that KFP's SDK made of a function is forked, whose shell script is known to the letter; anything else
is a process of its own, and so is every step until the server has imported all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from shopfloor.engines import fork_server

_SCRIPT = re.compile(
    r'program_path=\$\(mktemp -d\)\s+printf "%s" "\$0" > "\$program_path/ephemeral_component\.py"\s+'
    r"_KFP_RUNTIME=true (?P<python>\S+) -m (?P<module>[\w.]+)\s+--component_module_path\s+"
    r'"\$program_path/ephemeral_component\.py"\s+"\$@"\s*'
)
_PROGRAM = """
import atexit, os, runpy, signal, sys, traceback
server = {"__name__": "fork_server"}
exec(compile(open(sys.argv[1], encoding="utf-8").read(), sys.argv[1], "exec"), server)
module = server["main"]()
if module is not None:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        # Ray's hook for exceptions hides how it ended, which the shell of a process of its own would tell.
        traceback.print_exc()
        atexit._run_exitfuncs()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
"""


class Fork:
    """A forked process, as `subprocess.Popen` is one that was spawned."""

    def __init__(self, pid: int) -> None:
        """Take the process, which leads a group of its own."""
        self.pid = pid
        self.code: Future[int] = Future()

    def poll(self) -> int | None:
        """Return its exit code, `None` while it runs."""
        return self.code.result() if self.code.done() else None

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self.code.result()


class ForkServer:
    """The server of one run, which begins to import with the first step."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._numbers = itertools.count()
        self._requests: dict[int, Future[Fork]] = {}
        self._forks: dict[int, Fork] = {}

    def fork(self, command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path) -> Fork | None:
        """Fork a process for a component's command, `None` where that must be a process of its own.

        Args:
            command: As KFP's compiler makes it of a function, filled in.
            environment: All of its variables; the first step's are those with which the libraries are imported.
            directory: Where it works.
            log: Takes what it prints, at its end.
        """
        component = _component(command)
        if component is None:
            return None
        with self._lock:
            if self._process is None:
                self._start(environment, directory)
            if not self._ready or self._process is None or self._process.stdin is None:
                return None
            number = next(self._numbers)
            future = self._requests[number] = Future()
            request = {
                "request": number,
                "environment": dict(environment),
                "directory": str(directory),
                "log": str(log),
                **component,
            }
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                del self._requests[number]
                return None
        try:
            return future.result()
        except ChildProcessError:
            return None

    def close(self) -> None:
        """Let the server go: it ends behind the last of its steps."""
        with self._lock:
            process, self._ready = self._process, False
            if process is None or process.stdin is None:
                return
            with contextlib.suppress(OSError):
                process.stdin.close()
            if not self._forks:
                process.kill()  # it may be importing still

    def _start(self, environment: Mapping[str, str], directory: Path) -> None:
        quiet = {name: value for name, value in fork_server.QUIET.items() if name not in environment}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(fork_server.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, **quiet},
            cwd=directory,
            start_new_session=True,
            umask=0o077,
        )
        threading.Thread(target=self._listen, args=(self._process,), name="forks", daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        for line in process.stdout or ():
            self._hear(json.loads(line))
        with self._lock:
            self._ready = False
            requests, forks = list(self._requests.values()), list(self._forks.values())
            self._requests.clear()
            self._forks.clear()
        for request in requests:
            request.set_exception(ChildProcessError("The fork server ended."))
        for fork in forks:  # the kernel ended them with their server, and this what they had started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(fork.pid, signal.SIGKILL)
            fork.code.set_result(-signal.SIGKILL)
        process.wait()

    def _hear(self, answer: dict[str, Any]) -> None:
        if "ready" in answer:
            with self._lock:
                self._ready = answer["ready"]
        elif "request" in answer:
            fork = Fork(answer["pid"])
            with self._lock:
                self._forks[fork.pid] = fork
                request = self._requests.pop(answer["request"])
            request.set_result(fork)
        else:
            with self._lock:
                fork = self._forks.pop(answer["pid"])
            fork.code.set_result(answer["code"])


def _component(command: Sequence[str]) -> dict[str, Any] | None:
    """Return what the command of a component runs: its module, its source, its arguments."""
    if len(command) < 4 or list(command[:2]) != ["sh", "-ec"]:
        return None
    script = _SCRIPT.fullmatch(command[2])
    if script is None or script["python"] != sys.executable:
        return None
    return {"module": script["module"], "source": command[3], "arguments": list(command[4:])}

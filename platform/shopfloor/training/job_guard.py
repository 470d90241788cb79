"""Runs a RayJob's command for as long as the pod of the step that asked for it: `python -m ... COMMAND ARGUMENT...`.

A step that is killed, for want of memory or as it did not end in time, deletes no job, and its pod stays to be looked
at: Kubernetes, which deletes the job with the pod, would let the job have its GPUs until then.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from shopfloor.errors import first_line
from shopfloor.training import admission
from shopfloor.training.rayjob import STEP_NAMESPACE, STEP_POD, STEP_POD_UID

LOOK_EVERY_S = 20.0
END_S = 15.0
"""How long the command may take to end when it is asked to."""


def main(command: list[str]) -> int:
    """Run a command, and end it when the step's pod has ended.

    Args:
        command: The command and its arguments.

    Returns:
        The command's exit code; 1 where the pod ended first.
    """
    _, core = admission.apis()
    if _has_ended(core):
        return _say_so()
    process = subprocess.Popen(command)
    while True:
        try:
            code = process.wait(timeout=LOOK_EVERY_S)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            if not _has_ended(core):
                continue
        process.terminate()
        try:
            process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return _say_so()


def _say_so() -> int:
    sys.stderr.write(f"The step's pod {os.environ[STEP_POD]} has ended, and its job ends with it.\n")
    return 1


def _has_ended(core: Any) -> bool:
    """Tell whether the pod is gone or has ended; what the Kubernetes API does not say has not happened."""
    name = os.environ[STEP_POD]
    try:
        pods = core.list_namespaced_pod(
            os.environ[STEP_NAMESPACE], field_selector=f"metadata.name={name}", _request_timeout=10
        ).items
    except Exception as error:  # of Kubernetes' client and of the libraries under it
        sys.stderr.write(f"Whether the step's pod goes on is not known: {first_line(error, 200)}\n")
        return False
    ours = [pod for pod in pods if pod.metadata.uid == os.environ[STEP_POD_UID]]
    return not ours or ours[0].status.phase in {"Succeeded", "Failed"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

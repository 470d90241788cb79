"""One step of a run on a Kubeflow Pipelines backend, in the platform image: the same care as on Argo.

The engine puts this in front of a component's own command. The backend's launcher fills in the executor input, which
stands behind `--executor_input` among the component's arguments.

Usage: python -m shopfloor.engines.kfp.step TASK COMMAND..., where TASK is the static task as base64 of JSON.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

from shopfloor.engines.argo.launcher import attend
from shopfloor.engines.failures import telling
from shopfloor.engines.step import LOG, run


def main(arguments: list[str]) -> int:
    """Run the step and return its exit code."""
    task: dict[str, Any] = json.loads(base64.b64decode(arguments[0]))
    command = telling(arguments[1:])
    executor_input = _complete(json.loads(command[command.index("--executor_input") + 1]))
    folder = Path(executor_input["outputs"]["outputFile"]).parent
    folder.mkdir(parents=True, exist_ok=True)

    return run(task, executor_input, lambda: attend(command, dict(os.environ), folder / LOG))


def _complete(executor_input: dict[str, Any]) -> dict[str, Any]:
    """Return an executor input that has every part, empty where the backend left it out."""
    for side, parts in (("inputs", ("parameterValues", "artifacts")), ("outputs", ("parameters", "artifacts"))):
        section = executor_input.setdefault(side, {})
        for part in parts:
            section.setdefault(part, {})
    return executor_input


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

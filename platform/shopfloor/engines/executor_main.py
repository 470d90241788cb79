"""Runs a component by KFP's own executor, leaves as data why it failed, and no metric that is no number.

Usage: python -m shopfloor.engines.executor_main, with the arguments of kfp.dsl.executor_main.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from shopfloor.engines.argo.launcher import finite
from shopfloor.engines.failures import KFP_EXECUTOR
from shopfloor.errors import leave


def main() -> None:
    """Run KFP's executor as this process's program."""
    try:
        runpy.run_module(KFP_EXECUTOR, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):  # a number stands for itself
            leave(error)
        raise
    except BaseException as error:
        leave(error)
        raise
    leave_out_what_is_no_number(sys.argv)


def leave_out_what_is_no_number(arguments: list[str]) -> None:
    """Take the metrics that are NaN or infinite out of what a component left: no engine could read them as JSON.

    Args:
        arguments: Those of KFP's executor; they name the file.
    """
    executor_input = json.loads(arguments[arguments.index("--executor_input") + 1])
    file = Path(executor_input["outputs"]["outputFile"])
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if "NaN" not in text and "Infinity" not in text:
        return
    content: dict[str, Any] = json.loads(text)
    for name, artifacts in content.get("artifacts", {}).items():
        for artifact in artifacts.get("artifacts", []):
            artifact["metadata"] = finite(name, artifact.get("metadata", {}))
    file.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Runs a component by KFP's own executor, and leaves as data why it failed.

Usage: python -m shopfloor.engines.executor_main, with the arguments of kfp.dsl.executor_main.
"""

from __future__ import annotations

import runpy

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


if __name__ == "__main__":
    main()

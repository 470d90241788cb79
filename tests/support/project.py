"""The project as the tests find it, and its command line and git run as a person would run them."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SHARED = Path(os.environ.get("SHOPFLOOR_SHARED") or ROOT.parent / "shared")
"""Where the workplace keeps compiled pipelines, schemas and samples of others: a second judge where they are there."""


def bare_environment(*prefixes: str) -> dict[str, str]:
    """Return this process's environment without Shopfloor's variables, and without those of these prefixes."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SHOPFLOOR_", *prefixes))}


def shopfloor(*arguments: object, environment: Mapping[str, str], root: Path = ROOT, timeout_s: float = 150):
    """Run the command in a project, in a process of its own, and return how it ended and what it printed."""
    command = [sys.executable, "-m", "shopfloor", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def copy_project(root: Path) -> None:
    """Copy all that git tracks, or would, into a directory that is made."""
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)


def git(root: Path, *arguments: str) -> str:
    """Run git in a repository as somebody with a name and no configuration; return what it printed."""
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def dvc(root: Path, *arguments: str) -> None:
    """Run a dvc command in a repository, in this process: one of its own takes seconds to begin."""
    from dvc.cli import main

    with contextlib.chdir(root):
        assert main([*arguments]) == 0

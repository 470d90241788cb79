"""Which code a run is submitted with: the project's commit, and whether its files differ from it.

It is read once, when a run is submitted, and stands on the run from then on: what is edited while the run goes on is no
part of it.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

CODE = ("pipelines", "components", "platform", "requirements")
"""Folders whose untracked files count as changes: their code runs, though no commit holds it."""


@dataclass(frozen=True)
class CodeVersion:
    """A commit of the project, and whether the working tree differs from it."""

    commit: str
    """Full hash; empty outside git."""
    dirty: bool
    """Whether a tracked file differs, or a folder of `CODE` holds a file that git neither tracks nor ignores."""


def code_version(project_root: Path) -> CodeVersion:
    """Return the project's code as it is now; without a commit and dirty where git cannot say."""

    def git(*arguments: str) -> str:
        # A checkout that belongs to somebody else (a mounted volume) is one whose code runs here all the same.
        command = ["git", "-c", f"safe.directory={project_root}", "-C", str(project_root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        untracked = git("ls-files", "--others", "--exclude-standard", "--", *CODE)
        return CodeVersion(git("rev-parse", "HEAD"), bool(changed or untracked))
    except (subprocess.SubprocessError, OSError):
        return CodeVersion("", True)

"""What git says of the project: the commit of a revision, or in one line why it says nothing.

git keeps silent about a clone that belongs to somebody else, and a shallow clone lacks most revisions: both are told
apart from a revision that does not exist.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from shopfloor.errors import NotFoundError, UsageError


def git(root: Path, *arguments: str) -> str | None:
    """Return what git prints in a project, without the line's end; `None` where git fails or is not installed.

    Args:
        root: The project.
        arguments: Of a git command that only reads.

    Raises:
        UsageError: git does not trust the clone, which belongs to another user.
    """
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "dubious ownership" in answer.stderr:
        raise UsageError(
            f"git does not trust {root}: it belongs to another user.",
            f"Where you trust it: git config --global --add safe.directory {root}",
        )
    return answer.stdout.strip() if answer.returncode == 0 else None


def commit_of(root: Path, rev: str) -> str:
    """Return the commit that a tag, a branch or an abbreviated commit names.

    Raises:
        NotFoundError: There is no such revision; the message tells a shallow clone from a wrong name.
        UsageError: git does not trust the clone.
    """
    commit = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
    if commit is not None:
        return commit
    if git(root, "rev-parse", "--git-dir") is None:
        raise NotFoundError(f"{root} is no git repository, so there is no revision {rev!r}.", "Run: git init")
    if git(root, "rev-parse", "--is-shallow-repository") == "true":
        raise NotFoundError(
            f"This shallow clone has no git revision {rev!r}.", "Fetch the others: git fetch --unshallow --tags"
        )
    raise NotFoundError(f"There is no git revision {rev!r}.", "`git tag` and `git log` show what there is.")

"""Which objects of DVC's remote a state of the project names: DVC is asked at every commit that git still knows."""

from __future__ import annotations

from shopfloor.data.repository import options
from shopfloor.data.revisions import git
from shopfloor.errors import DataError, NotFoundError, ServiceError, first_line
from shopfloor.settings import Settings


def needed(settings: Settings) -> set[str]:
    """Return the hashes of the objects that the workspace or a commit names, lists of directories (`.dir`) included.

    The commits are those of all refs (branches, tags, what was fetched, the stash, DVC's experiments), of all working
    trees and of git's reflogs: what was dropped a moment ago can be brought back.

    Args:
        settings: Say where the project is.

    Raises:
        NotFoundError: The project is no git repository with DVC, or a clone without the whole history.
        ServiceError: A remote of git does not answer, or has commits that this clone lacks.
        DataError: DVC cannot say what a commit names.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    commits = _commits(settings)
    try:
        with Repo(str(settings.project_root), config=options(settings)) as repo:
            used = repo.used_objs(revs=commits, all_commits=True, all_experiments=True)
    except NotDvcRepoError as error:
        raise NotFoundError(f"{settings.project_root} is no DVC repository.", "Run: dvc init") from error
    except DvcException as error:
        cause = error.__cause__ or error
        raise DataError(
            f"DVC cannot say what it needs: {first_line(error)} {first_line(cause)}",
            "Fetch the lists of all directories: dvc fetch --all-commits",
        ) from error
    return {str(info.value) for infos in used.values() for info in infos}


def _commits(settings: Settings) -> list[str]:
    root = settings.project_root
    commits = git(root, "rev-list", "--all", "--reflog")
    shallow = git(root, "rev-parse", "--is-shallow-repository")
    if commits is None or shallow is None:
        raise NotFoundError(f"git cannot say which commits {root} has.", "Run this in a clone, with git installed.")
    if shallow == "true":
        raise NotFoundError(f"{root} is a shallow clone, which lacks commits.", "Run: git fetch --unshallow --tags")
    for remote in (git(root, "remote") or "").split():
        heads = git(root, "ls-remote", "--heads", "--tags", remote)
        if heads is None:
            raise ServiceError(f"git's remote {remote!r} does not say which branches it has.", "See: git ls-remote")
        if any(git(root, "cat-file", "-e", line.split()[0]) is None for line in heads.splitlines()):
            raise ServiceError(f"git's remote {remote!r} has commits that this clone lacks.", "Run: git fetch --tags")
    return commits.split()

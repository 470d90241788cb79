"""The data version of this moment, asked of DVC once: its import and its index take longer than all else of a plan.

What DVC answers follows from its own files, which git lists (DVC refuses one that git ignores), and from the files of
the workspace; at a commit it follows from the commit. Their stamps are compared, and the bytes must still be there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from shopfloor.data.revisions import commit_of, git
from shopfloor.records import DataVersion
from shopfloor.settings import Settings
from shopfloor.storage import file_stamp, remembered
from shopfloor.use_case import UseCase, load_use_case

_OF_DVC = ("*.dvc", "*dvc.yaml", "*dvc.lock", "*.dvcignore")


def resolve(settings: Settings, use_case_name: str, rev: str) -> DataVersion:
    """Return the data version of a use case at a git revision.

    Args:
        settings: Say where the project is.
        use_case_name: Its `data.path` is what DVC tracks.
        rev: Tag, branch or commit; empty means the workspace, whose files must be what DVC recorded.

    Raises:
        NotFoundError: There is no such revision, or it tracks no such data.
        DataError: The workspace's files differ from what DVC recorded, or the objects are nowhere.
    """
    stamp = _stamp(settings, load_use_case(settings, use_case_name), rev)
    if stamp is not None:
        answer = json.loads(remembered(settings, stamp, lambda: _ask(settings, use_case_name, rev)))
        if all(place is not None and Path(place).is_file() for place in answer["places"]):
            return DataVersion.model_validate(answer["version"])
    return DataVersion.model_validate(json.loads(_ask(settings, use_case_name, rev))["version"])


def _ask(settings: Settings, use_case_name: str, rev: str) -> str:
    from shopfloor.data.versions import locate

    version, places = locate(settings, use_case_name, rev)
    return json.dumps({"version": version.model_dump(mode="json"), "places": places})


def _stamp(settings: Settings, use_case: UseCase, rev: str) -> str | None:
    """Return what the answer depends on, `None` where that cannot be told from here."""
    root = Path(os.path.realpath(settings.project_root))
    top = next((folder for folder in (root, *root.parents) if (folder / ".dvc").is_dir()), None)
    if top is None or (top / ".gitmodules").exists():
        return None
    # They say where the bytes may be, also those of a commit.
    configs = [file_stamp(file) for file in sorted((top / ".dvc").glob("config*")) if file.is_file()]
    question = ["data version", str(root), use_case.data.path, use_case.data.tables, configs, rev]
    if rev:
        return json.dumps([*question, commit_of(root, rev)])
    names = git(top, "ls-files", "-coz", "--exclude-standard", "--", *_OF_DVC)
    if names is None:
        return None
    files = [top / name for name in sorted(set(names.split("\0"))) if name]
    files = [file for file in files if file.is_file()]
    # A template takes its values from any file.
    if any(file.name == "dvc.yaml" and "${" in file.read_text(encoding="utf-8", errors="replace") for file in files):
        return None
    data = sorted(file for file in (root / use_case.data.path).rglob("*") if file.is_file())
    return json.dumps([*question, [file_stamp(file) for file in (*files, *data)]])

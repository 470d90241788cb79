"""Data versions: from a git revision to DVC's hashes, and from the hashes to a run's tables.

DVC itself is asked what it tracks and where the bytes are, in the workspace or at a commit. A run reads the objects
that DVC keeps and never the workspace, so it takes no lock of DVC's and changes nothing of the user's; what it reads is
hashed again. `dvc` remains the tool for everything else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from shopfloor.data.repository import Nowhere, tracked
from shopfloor.errors import DataError, ShopfloorError
from shopfloor.records import DataVersion, Record
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, Metrics, publish, scratch
from shopfloor.use_case import UseCase, load_use_case

logger = logging.getLogger(__name__)

VERSION_FILE = "data_version.json"


class PreparedData(Record):
    """What `prepare` did."""

    version: DataVersion
    made: bool
    """Whether tables were made or pulled into the workspace."""
    pushed: bool
    """Whether the remote got objects."""


def prepare(settings: Settings, use_case_name: str, progress: Callable[[str], None] = logger.info) -> PreparedData:
    """Bring the tables into the workspace and into the remote, where they are not there yet.

    Args:
        settings: Say where the workspace is.
        use_case_name: Its `data` section names the tables.
        progress: Hears one line for each thing that takes time.

    Raises:
        DataError: The remote cannot be read, or lacks the tables and no stage makes them.
        ShopfloorError: A stage, a pull or a push failed; DVC's own words are on stderr.
    """
    use_case = load_use_case(settings, use_case_name)
    folder = settings.project_root / use_case.data.path
    absent = not all((folder / f"{table}.parquet").is_file() for table in use_case.data.tables)
    if absent:
        with tracked(settings, use_case) as data:
            data.keep_site_cache()
            try:
                data.require_all()
                progress(f"Fetching the tables of {use_case_name} with dvc pull")
                data.do("pull")
            except Nowhere as error:
                if not data.can_be_made:
                    raise DataError(f"{error.message} No stage in dvc.yaml makes it.", error.remedy) from error
                progress(f"Nobody has the tables of {use_case_name} yet: making them with dvc repro")
                _reproduce(settings, data.targets)
    with tracked(settings, use_case) as data:
        data.keep_site_cache()
        version = data.version(use_case)
        pushed = data.lacks_in_remote()
        if pushed:
            progress(f"Copying the tables of {use_case_name} into the remote with dvc push")
            data.do("push")
    return PreparedData(version=version, made=absent, pushed=pushed)


def locate(settings: Settings, use_case_name: str, rev: str) -> tuple[DataVersion, list[str | None]]:
    """Ask DVC for the data version of a use case at a git revision; `resolution.resolve` asks it only when it must.

    Args:
        settings: Say where the project is.
        use_case_name: Its `data.path` is what DVC tracks.
        rev: Tag, branch or commit; empty means the workspace, whose files must be what DVC recorded.

    Returns:
        The version, and where the bytes of each of its tables are, `None` where that is not on this machine.

    Raises:
        NotFoundError: There is no such revision, or it tracks no such data.
        DataError: The workspace's files differ from what DVC recorded, or the objects are nowhere.
    """
    use_case = load_use_case(settings, use_case_name)
    with tracked(settings, use_case, rev) as data:
        version = data.version(use_case)
        return version, [data.local_place(f"{table.name}.parquet") for table in version.tables]


def pull(
    settings: Settings, use_case_name: str, data_rev: str, data_version: str, tables: Artifact, metrics: Metrics
) -> None:
    """Hand on all files of a data version; the user's workspace stays as it is.

    Args:
        settings: Say where the project and the artifacts are.
        use_case_name: Its `data` section says what to pull.
        data_rev: Git revision; empty means what DVC recorded in the workspace.
        data_version: DVC's hash that the revision must have; empty means any.
        tables: Gets the files as they lie under `data.path`, and `data_version.json`; its content hash is DVC's.
        metrics: Gets the number of tables and their size.

    Raises:
        NotFoundError: There is no such revision.
        DataError: The revision has other data than `data_version`, or its objects are nowhere or were changed.
    """
    use_case = load_use_case(settings, use_case_name)
    with tracked(settings, use_case, data_rev) as data:
        version = data.version(use_case)
        if data_version and version.md5 != data_version:
            raise DataError(
                f"The run is for the data version {data_version}, and its project has {version.md5}.",
                "Submit again; on Argo or Kubeflow, with an image that was built since the data changed.",
            )
        with publish(settings, tables, "pull_data", content_hash=version.md5) as directory:
            for name in data.files:
                data.copy(name, directory / name)
            (directory / VERSION_FILE).write_text(version.model_dump_json(indent=1), encoding="utf-8")
    metrics.log_metric("tables", len(version.tables))
    metrics.log_metric("size_bytes", sum(table.size_bytes for table in version.tables))


@contextlib.contextmanager
def tables_of(settings: Settings, use_case: UseCase, rev: str) -> Iterator[Path]:
    """Give a directory with the files of a data version, which goes with the block.

    Args:
        settings: Say where the project is.
        use_case: Its `data` section says what to copy.
        rev: Git revision; empty means what DVC recorded in the workspace.

    Raises:
        NotFoundError: There is no such revision.
        DataError: The revision's objects are nowhere or were changed.
    """
    with scratch(settings.private_state_dir()) as tables:
        with tracked(settings, use_case, rev) as data:
            for name in data.files:
                data.copy(name, tables / name)
        yield tables


def _reproduce(settings: Settings, targets: list[str]) -> None:
    """Run the stages in a process of their own, so that what they print is on stderr.

    Raises:
        ShopfloorError: One failed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *targets],
        cwd=settings.project_root,
        env={**os.environ, "PATH": path},
        stdout=sys.stderr,
        stdin=subprocess.DEVNULL,
        umask=0o077,
        check=False,
    )
    if answer.returncode != 0:
        raise ShopfloorError(f"`dvc repro {' '.join(targets)}` failed.", "Its own words stand above.")

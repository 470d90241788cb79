"""Which code a run is submitted with, asked of a real git repository."""

import pytest
from shopfloor.runs.code_version import CodeVersion, code_version

from tests.support.project import git


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/training.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("*.log\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def commit(directory):
    git(directory, "add", "-A")
    git(directory, "commit", "-qm", "all")


def test_a_clean_tree_is_its_commit(project):
    assert code_version(project) == CodeVersion(git(project, "rev-parse", "HEAD"), dirty=False)


@pytest.mark.parametrize(
    ("file", "dirty"),
    [
        ("pipelines/training.py", True),
        ("pipelines/helper.py", True),
        ("pipelines/run.log", False),
        ("workflow.yaml", False),
    ],
)
def test_a_changed_file_and_an_untracked_one_of_the_code_make_it_dirty(project, file, dirty):
    (project / file).write_text("b = 2\n")
    assert code_version(project).dirty is dirty


def test_without_git_there_is_no_commit(tmp_path):
    assert code_version(tmp_path) == CodeVersion("", dirty=True)

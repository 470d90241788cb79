"""What `make` deletes and what it leaves, on a copy of the tree that holds a file for each."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MADE = [
    ".venv/bin/python",
    ".venv-peers/bin/python",
    ".venv-images/bin/python",
    ".venv-terraform/bin/python",
    "build/site/index.html",
    ".mypy_cache/a",
    ".pytest_cache/a",
]
MADE += ["platform/shopfloor.egg-info/a", ".shopfloor/hashes/a", ".shopfloor/fetched/a"]
KEPT = [
    ".shopfloor/mlflow/mlflow.db",
    ".shopfloor/dvc-remote/a",
    ".shopfloor/artifacts/a",
    "data/a.parquet",
    "README.md",
]


@pytest.fixture
def tree(tmp_path):
    """A copy with the Makefile and a file of each kind; nothing in it is installed, so that no stack is stopped."""
    root = tmp_path / "copy"
    for name in (*MADE, *KEPT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(PROJECT / name, root / name)
    shutil.copytree(PROJECT / "requirements", root / "requirements")
    return root


def make(root, *words):
    """Run make as from a shell of its own; what this one is told with variables does not count."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(root.parent / "nobody")}
    return subprocess.run(
        ["make", *words], cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def left(root, names):
    return [name for name in names if (root / name).exists()]


def test_clean_removes_what_can_be_made_again_and_nothing_else(tree):
    result = make(tree, "clean")

    assert result.returncode == 0, result.stderr
    assert left(tree, MADE) == []
    assert left(tree, KEPT) == KEPT


def test_purge_says_what_would_be_lost_and_deletes_nothing_before_it_is_confirmed(tree):
    refusal = make(tree, "purge")

    assert refusal.returncode == 2
    assert "dvc-remote" in refusal.stdout
    assert "make purge CONFIRM=yes" in refusal.stderr
    assert left(tree, KEPT) == KEPT

    result = make(tree, "purge", "CONFIRM=yes")

    assert result.returncode == 0, result.stderr
    assert not (tree / ".shopfloor").exists()
    assert left(tree, KEPT[3:]) == KEPT[3:]
    assert make(tree, "purge", "CONFIRM=yes").returncode == 0


@pytest.mark.parametrize("place", ["", "above/..", ".."])
def test_purge_refuses_a_state_that_holds_the_clone(tree, place):
    """The clone itself, by two names, and the directory that it is in."""
    (tree / "above").mkdir()

    result = make(tree, "purge", "CONFIRM=yes", f"SHOPFLOOR_STATE_DIR={tree / place}")

    assert result.returncode == 2, result.stdout
    assert "is more than the state" in result.stderr
    assert left(tree, KEPT) == KEPT


def test_purge_refuses_a_persons_home(tree):
    home = tree.parent / "home"
    home.mkdir()

    result = make(tree, "purge", "CONFIRM=yes", f"SHOPFLOOR_STATE_DIR={home}", f"HOME={home}")

    assert result.returncode == 2, result.stdout
    assert home.exists()

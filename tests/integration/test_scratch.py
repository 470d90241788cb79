"""Scratch directories: they go with whoever held them, however that ended."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from shopfloor import storage
from shopfloor.settings import Settings

HOLD = """
import sys
from pathlib import Path
from types import SimpleNamespace
from shopfloor import storage
from shopfloor.settings import Settings

root = Path(sys.argv[2])
settings = Settings(project_root=root, state_dir=root / "state", artifact_root=str(root / "artifacts"))

def model():
    path, remove = storage.keep_scratch()
    (path / "model.ubj").write_text("a model")
    print(path, flush=True)
    sys.stdin.read()

def artifact():
    with storage.publish(settings, SimpleNamespace(name="a", uri="", metadata={}), "step") as directory:
        (directory / "half").write_text("half of it")
        print(directory, flush=True)
        sys.stdin.read()

globals()[sys.argv[1]]()
"""


def publish_something(root):
    settings = Settings(project_root=root, state_dir=root / "state", artifact_root=str(root / "artifacts"))
    with storage.publish(settings, SimpleNamespace(name="a", uri="", metadata={}), "step") as directory:
        (directory / "file").write_text("text")


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Give a function that starts a process which holds a directory; it returns the process and the directory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    processes = []

    def hold(what):
        command = [sys.executable, "-c", HOLD, what, str(tmp_path)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1], Path(processes[-1].stdout.readline().strip())

    yield hold
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("what", "again"), [("model", lambda root: storage.keep_scratch()), ("artifact", publish_something)]
)
def test_what_a_killed_process_left_goes_when_the_next_one_comes_and_not_before(holder, tmp_path, what, again):
    process, left = holder(what)
    again(tmp_path)
    assert len(os.listdir(left)) == 1
    process.kill()
    process.wait()

    again(tmp_path)

    assert not left.exists()


def test_a_directory_stays_while_its_own_process_makes_others_and_goes_with_what_removes_it(holder):
    mine, remove = storage.keep_scratch()
    with storage.scratch() as other:
        assert mine.is_dir()
        assert other.is_dir()
    assert not other.exists()
    remove()
    assert not mine.exists()

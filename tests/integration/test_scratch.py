"""Directories of loaded models: they go with whoever held them."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from shopfloor.serving.model import scratch

HOLD = """
import sys
from shopfloor.serving.model import scratch
path, remove = scratch.directory()
(path / "model.ubj").write_text("a model")
print(path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


def test_what_a_killed_process_left_goes_when_the_next_one_loads_a_model_and_not_before(holder):
    process, left = holder
    mine, remove = scratch.directory()
    assert (left / "model.ubj").exists()
    process.kill()
    process.wait()

    other, remove_other = scratch.directory()

    assert not left.exists()
    assert mine.exists()
    assert other.exists()
    remove()
    remove_other()
    assert not mine.exists()
    assert not other.exists()

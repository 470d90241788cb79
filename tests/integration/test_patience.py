"""A pod of a run waits for an object store that is away for a moment, longer than a command does."""

import os
import subprocess
import sys

from shopfloor.environment import PATIENT

from tests.support.object_store import rclone
from tests.support.waiting import free_port

WRITE = "import sys; from shopfloor.storage import _s3; _s3(sys.argv[1], 60.0).pipe_file('bucket/key', b'text')"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def test_a_pod_writes_to_a_store_that_comes_back_later_than_a_command_waits(tmp_path):
    port = free_port()
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    command = [sys.executable, "-c", WRITE, f"http://127.0.0.1:{port}"]
    pod = subprocess.Popen(command, env=os.environ | KEYS | PATIENT)
    hasty = subprocess.run(command, env=os.environ | KEYS, capture_output=True, text=True, timeout=60, check=False)
    assert "does not answer" in hasty.stderr

    assert pod.poll() is None
    with rclone(tmp_path / "store", port=port):
        assert pod.wait(60) == 0
    assert (tmp_path / "store/bucket/key").read_bytes() == b"text"

"""rclone's S3 server over a directory: each folder in it is a bucket. It takes no notice of conditions on a write."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.endpoints import stop
from tests.support.project import BIN
from tests.support.waiting import free_port, wait_for_port


@contextlib.contextmanager
def rclone(place: Path) -> Iterator[str]:
    """Serve a directory to who has the key `key` and the secret `secret`, and give the address."""
    place.mkdir(exist_ok=True)
    port = free_port()
    command = [str(BIN / "rclone"), "serve", "s3", "--auth-key", "key,secret", "--addr", f"127.0.0.1:{port}"]
    server = subprocess.Popen([*command, str(place)], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(server)

"""S3 servers over a directory of this machine."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.endpoints import stop
from tests.support.project import BIN
from tests.support.waiting import free_port, wait_for_port


@contextlib.contextmanager
def rclone(place: Path, keys: str = "key,secret", port: int = 0) -> Iterator[str]:
    """Serve a directory to who has the key and the secret, `key` and `secret`, and give the address.

    Each folder in it is a bucket. The server takes no notice of conditions on a write.
    """
    place.mkdir(exist_ok=True)
    port = port or free_port()
    command = [str(BIN / "rclone"), "serve", "s3", "--auth-key", keys, "--addr", f"127.0.0.1:{port}"]
    server = subprocess.Popen([*command, str(place)], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(server)


@contextlib.contextmanager
def seaweedfs(place: Path) -> Iterator[str]:
    """Start `weed`, the stack's own store, for the same key and secret, and give the address; it has no bucket."""
    place.mkdir(exist_ok=True)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    account = {"name": "ours", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": actions}
    (place / "s3.json").write_text(json.dumps({"identities": [account]}))
    ports = {name: free_port() for name in ("master.port", "volume.port", "filer.port", "s3.port")}
    ports |= {f"{name}.grpc": free_port() for name in ports}
    command = ["weed", "server", f"-dir={place}", "-ip=127.0.0.1", "-s3", f"-s3.config={place / 's3.json'}"]
    command += ["-master.telemetry=false", "-volume.max=10", *(f"-{name}={port}" for name, port in ports.items())]
    server = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(ports["s3.port"])
        yield f"http://127.0.0.1:{ports['s3.port']}"
    finally:
        stop(server)

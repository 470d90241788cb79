"""`dvc push` and `dvc pull` as a clone of the project has them set, beside rclone: same S3 server, as many at a time.

The server is the stack's own SeaweedFS where a Docker engine has its image, and rclone's otherwise. Each round takes a
new prefix and new clones, and the tools take turns; the best of the rounds counts. All write to the disk's cache alike.
A third one pulls with links to DVC's cache instead of copies of it, which is a setting of one's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml

from tests.benchmarks.table import Row
from tests.support.project import BIN, ROOT, git
from tests.support.waiting import free_port, wait_until

ROUNDS = 3
JOBS = 8
"""Transfers at a time: what DVC takes on 2 cores."""
LIMIT = 1.5
LINKS = "reflink,hardlink,copy"
KEYS = ("bench", "bench-secret-of-enough-characters")
BUCKET = "bench"


def measure() -> Iterator[Row]:
    """Yield three rows for each data set."""
    with tempfile.TemporaryDirectory(prefix="bench-dvc-") as directory:
        root = Path(directory)
        with _server(root) as (server, endpoint):
            for name, make in SETS.items():
                place = root / "set"
                make(place)
                seconds = _turns(root, place, endpoint)
                for tool, verb in (("dvc", "push"), ("dvc", "pull"), ("dvc with links", "pull")):
                    (ours, own_cpu), (peer, peer_cpu) = (min(seconds[one, verb]) for one in (tool, "rclone"))
                    yield Row(
                        name=f"{tool} {verb}, {name}, {server}",
                        ours=f"{ours:.1f} s, {own_cpu:.1f} s of CPU",
                        peer=f"rclone {peer:.1f} s, {peer_cpu:.1f} s of CPU",
                        ratio=ours / peer,
                        target=f"<= {LIMIT} x",
                        ok=ours <= LIMIT * peer,
                        pending=True,
                    )
                shutil.rmtree(place)


def _flights(place: Path) -> None:
    from pipelines.flight_delays.source import make_tables

    make_tables(place)


def _large_and_small(place: Path) -> None:
    place.mkdir()
    with (place / "large").open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(2**20))
    _many(place / "small", 20_000)


def _small(place: Path) -> None:
    _many(place, 4_096)


def _many(place: Path, size: int) -> None:
    place.mkdir()
    for number in range(5_000):
        (place / f"{number:04}").write_bytes(os.urandom(size))


SETS = {
    "the flights": _flights,
    "1 GiB in one file and 5,000 of 20 kB": _large_and_small,
    "5,000 files of 4 KiB": _small,
}


@contextlib.contextmanager
def _server(root: Path) -> Iterator[tuple[str, str]]:
    """Start an S3 server; give its name and address."""
    port = free_port()
    image = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["object-store"]["image"]
    image = image.partition(":-")[2].rstrip("}")
    name = f"bench-dvc-{os.getpid()}"
    if _seaweedfs_is_here(image):
        identity = {"accessKey": KEYS[0], "secretKey": KEYS[1]}
        config = {"identities": [{"name": "bench", "credentials": [identity], "actions": ["Admin"]}]}
        (root / "s3.json").write_text(json.dumps(config))
        (root / "s3.json").chmod(0o444)
        root.chmod(0o755)
        options = ["--name", name, "--rm", "--detach", "--publish", f"127.0.0.1:{port}:8333"]
        mounts = ["--volume", f"{root / 's3.json'}:/s3.json:ro", "--entrypoint", "/usr/bin/weed"]
        own = ["server", "-dir=/data", "-ip.bind=0.0.0.0", "-master.telemetry=false", "-filer", "-s3", "-s3.port=8333"]
        limits = ["-master.volumeSizeLimitMB=1024", "-volume.max=0", "-s3.config=/s3.json"]
        subprocess.run(
            ["docker", "run", *options, *mounts, image, *own, *limits], check=True, stdout=subprocess.DEVNULL
        )
        try:
            yield "SeaweedFS", _ready(port)
        finally:
            subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True, stdout=subprocess.DEVNULL)
        return
    store = root / "store"
    store.mkdir()
    command = [str(BIN / "rclone"), "serve", "s3", "--auth-key", ",".join(KEYS), "--addr", f"127.0.0.1:{port}"]
    server = subprocess.Popen([*command, str(store)], stderr=subprocess.DEVNULL)
    try:
        yield "rclone's server", _ready(port)
    finally:
        server.kill()
        server.wait()


def _seaweedfs_is_here(image: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0
    return False


def _ready(port: int) -> str:
    """Wait until a bucket can be made; return the address."""
    from minio import Minio

    client = Minio(f"127.0.0.1:{port}", *KEYS, secure=False, region="us-east-1")

    def made() -> bool:
        with contextlib.suppress(Exception):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            if not client.bucket_exists(BUCKET):
                client.make_bucket(BUCKET)
            return True
        return False

    wait_until(made, 60)
    return f"http://127.0.0.1:{port}"


def _turns(root: Path, place: Path, endpoint: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return the seconds of each round, and those of the processor, by tool and verb."""
    repository = root / "repository"
    _repository(repository, place, endpoint)
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for turn in range(ROUNDS):
        prefix = f"{place.name}-{time.time_ns()}"
        clone, linked, copy = root / "clone", root / "linked", root / "copy"
        _dvc(repository, "remote", "modify", "--quiet", "local", "url", f"s3://{BUCKET}/{prefix}/dvc")
        _forget(repository)
        for one in (clone, linked):
            shutil.copytree(repository, one, ignore=shutil.ignore_patterns("data", "cache", "tmp"))
        _dvc(linked, "config", "--local", "cache.type", LINKS)
        target = f":s3:{BUCKET}/{prefix}/rclone"
        actions: dict[str, dict[str, Callable[[], None]]] = {
            "push": {
                "dvc": partial(_dvc, repository, "push", "--quiet"),
                "rclone": partial(_rclone, endpoint, place, target),
            },
            "pull": {
                "dvc": partial(_dvc, clone, "pull", "--quiet"),
                "dvc with links": partial(_dvc, linked, "pull", "--quiet"),
                "rclone": partial(_rclone, endpoint, target, copy),
            },
        }
        for verb, tools in actions.items():
            for tool in list(tools) if turn % 2 else list(reversed(tools)):
                began, cpu_began = time.perf_counter(), _cpu()
                tools[tool]()
                took = (time.perf_counter() - began, _cpu() - cpu_began)
                seconds.setdefault((tool, verb), []).append(took)
        count = len([path for path in place.rglob("*") if path.is_file()])
        for one in (clone / "data", linked / "data", copy):
            assert len([path for path in one.rglob("*") if path.is_file()]) == count
        for one in (clone, linked, copy):
            shutil.rmtree(one)
    shutil.rmtree(repository)
    return seconds


def _cpu() -> float:
    """Return the seconds of the processor that ended processes of this one took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _repository(repository: Path, place: Path, endpoint: str) -> None:
    """Make a clone of a project with DVC's settings as ours has them, and the data in its cache."""
    repository.mkdir()
    git(repository, "init", "-q")
    (repository / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, repository / ".dvc" / name)
    _dvc(repository, "remote", "modify", "--quiet", "local", "url", f"s3://{BUCKET}")
    _dvc(repository, "remote", "modify", "--quiet", "local", "endpointurl", endpoint)
    _dvc(repository, "config", "--local", "core.site_cache_dir", str(repository / ".dvc/tmp/site"))
    shutil.copytree(place, repository / "data")
    _dvc(repository, "add", "--quiet", "data")


def _forget(repository: Path) -> None:
    """Take away what DVC remembers of a remote."""
    shutil.rmtree(repository / ".dvc/tmp/site", ignore_errors=True)


def _dvc(directory: Path, *arguments: str) -> None:
    keys = {"AWS_ACCESS_KEY_ID": KEYS[0], "AWS_SECRET_ACCESS_KEY": KEYS[1], "AWS_DEFAULT_REGION": "us-east-1"}
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=directory, env=os.environ | keys, check=True, capture_output=True
    )


def _rclone(endpoint: str, source: object, target: object) -> None:
    own = {
        "RCLONE_S3_PROVIDER": "SeaweedFS",
        "RCLONE_S3_ENDPOINT": endpoint,
        "RCLONE_S3_ACCESS_KEY_ID": KEYS[0],
        "RCLONE_S3_SECRET_ACCESS_KEY": KEYS[1],
        "RCLONE_S3_NO_CHECK_BUCKET": "true",
        "RCLONE_CONFIG": os.devnull,
    }
    command = [str(BIN / "rclone"), "copy", f"--transfers={JOBS}", f"--checkers={JOBS}", str(source), str(target)]
    subprocess.run(command, env=os.environ | own, check=True, capture_output=True)

"""An S3 store made ready and examined, on a real server: what it does, what it cannot, and who is not let in."""

import contextlib
import http.server
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from shopfloor import storage
from shopfloor.backup import quarantine
from shopfloor.backup.places import Place
from shopfloor.backup.units import units
from shopfloor.errors import AccessError, ServiceError, UsageError
from shopfloor.pipeline.results import ResultStore
from shopfloor.settings import Settings
from shopfloor.stack import object_store

from tests.support.waiting import free_port, wait_for_port, wait_until

KEYS = {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "ours-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint():
    """rclone's S3 server: no versions, no rules, no conditional writes."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--auth-key", "ours,ours-secret"]
        server = subprocess.Popen([*command, "--addr", f"127.0.0.1:{port}", str(root)], stderr=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.kill)
        wait_until(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close() is None)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def settings(endpoint, tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return Settings(
        project_root=tmp_path,
        s3_endpoint_url=endpoint,
        artifact_root="s3://lake/artifacts",
        data_remote="s3://lake-data/dvc",
        request_timeout_s=5,
    )


def test_buckets_are_made_once_and_what_the_server_cannot_do_is_said(settings):
    first = object_store.bootstrap(settings, ["lake-mlflow"])
    second = object_store.bootstrap(settings, ["lake-mlflow"])

    messages = {row.name: row.message for row in first if " " not in row.name}
    assert messages == dict.fromkeys(("lake", "lake-data", "lake-mlflow"), "made")
    assert {row.message for row in second if " " not in row.name} == {"was there"}
    assert {row.verdict for row in first if row.name.endswith((" versions", " rules"))} == {"unsupported"}


def test_a_store_is_examined_call_by_call_and_left_as_it_was(settings):
    object_store.bootstrap(settings, [])

    rows = {row.name: row for row in object_store.check(settings, "lake", keys=20)}

    # Not the concurrent writers: this server's layer over files promises nothing of them.
    works = {"clock", "metadata", "range", "multipart", "wrong key refused", "listing"}
    assert [rows[name] for name in works if rows[name].verdict != "ok"] == []
    client = object_store._client(settings)
    assert list(client.list_objects("lake", recursive=True)) == []


def test_a_wrong_key_a_missing_bucket_and_a_store_that_is_down_are_one_line_each(settings, monkeypatch):
    with pytest.raises(ServiceError, match="no bucket 'none'"):
        object_store.check(settings, "none", 1)
    away = settings.model_copy(update={"s3_endpoint_url": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(ServiceError, match="does not answer"):
        object_store.bootstrap(away, [])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(AccessError, match="does not let 'ours'"):
        object_store.bootstrap(settings, [])
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UsageError, match="no credentials"):
        object_store.bootstrap(settings, [])


REFUSALS = {
    "wrong region": (400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-central-1'"),
    "another address": (301, "PermanentRedirect", "The bucket must be addressed using the specified endpoint."),
    "somebody else's bucket": (403, "AccessDenied", "Access Denied"),
    "full": (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),
    "slow": None,
}
"""What S3 servers answer, as AWS and MinIO document it; none of them can be had here."""
LINES = {
    "wrong region": (ServiceError, r"bucket 'lake' is in another region: .*eu-central-1. Set AWS_DEFAULT_REGION"),
    "another address": (ServiceError, r"bucket 'lake' is in another region: .*eu-central-1. Set AWS_DEFAULT_REGION"),
    "somebody else's bucket": (AccessError, r"does not let 'ours' do that in bucket 'lake': (403|AccessDenied). Look"),
    "full": (ServiceError, r"object store http.* is full: .*Free some space there"),
    "slow": (ServiceError, r"object store http.* does not answer: (nothing came within|Read timed out)"),
    "down": (ServiceError, r"object store http.* does not answer: (\[Errno 111\]|Could not connect|nothing came)"),
}


@pytest.fixture(params=LINES)
def trouble(request, settings):
    """Give settings of a store that cannot be used, and the error that says so."""
    ended = threading.Event()
    refusal = REFUSALS.get(request.param)

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if refusal is None:
                ended.wait()
                return
            status, code, message = refusal
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("x-amz-bucket-region", "eu-central-1")
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(text)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else text)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_):
            pass

    port = free_port()
    own = {"s3_endpoint_url": f"http://127.0.0.1:{port}", "request_timeout_s": 30}
    if request.param in {"slow", "down"}:  # s3fs tries a store that is down for 20 s
        own["request_timeout_s"] = 0.5
    with contextlib.ExitStack() as stack:
        if request.param != "down":
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", port), Refusing))
            threading.Thread(target=server.serve_forever).start()
            stack.callback(server.shutdown)
        stack.callback(ended.set)
        yield settings.model_copy(update=own), *LINES[request.param]


def test_a_store_that_cannot_be_used_is_one_line_for_whoever_asks_it(trouble):
    settings, kind, line = trouble
    attempts = {
        "storage check": lambda: object_store.check(settings, "lake", 1),
        "storage bootstrap": lambda: object_store.bootstrap(settings, []),
        "submit, which looks for results": lambda: ResultStore(settings, lambda _: True).find("a" * 64),
        "a step that reads": lambda: storage.local_copy(settings, "s3://lake/artifacts/steps/a"),
        "whoever lists": lambda: Place(settings, "s3://lake/artifacts").files(),
    }
    for who, attempt in attempts.items():
        with pytest.raises(kind) as raised:
            attempt()
        assert re.search(line, str(raised.value)), who
        assert "\n" not in str(raised.value), who


def test_a_store_can_be_sent_to_a_worker(settings):
    object_store.bootstrap(settings, [])
    system, path = storage.filesystem(settings, "s3://lake/note")

    sent = pickle.loads(pickle.dumps(system))  # noqa: S301  our own
    with sent.open_output_stream(path) as stream:
        stream.write(b"seen")

    assert system.open_input_stream(path).read() == b"seen"
    assert type(sent.handler.fs) is type(system.handler.fs)


def test_a_store_that_takes_nothing_fails_each_row_that_writes(settings, tmp_path):
    port = free_port()
    (tmp_path / "s3" / "lake").mkdir(parents=True)
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--read-only", "--auth-key"]
    place = ["ours,ours-secret", "--addr", f"127.0.0.1:{port}", str(tmp_path / "s3")]
    server = subprocess.Popen([*command, *place], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        own = settings.model_copy(update={"s3_endpoint_url": f"http://127.0.0.1:{port}"})
        rows = {row.name: row.verdict for row in object_store.check(own, "lake", 1)}
    finally:
        server.kill()
        server.wait()
    writes = ("metadata", "range", "multipart", "conditional put", "concurrent writers", "presigned", "listing")
    assert {rows[name] for name in writes} == {"fail"}


def test_a_profile_that_keeps_nothing_in_a_store_names_no_bucket(tmp_path):
    with pytest.raises(UsageError, match="--bucket"):
        object_store.bootstrap(Settings(project_root=tmp_path), [])


def test_what_is_moved_within_a_bucket_comes_back(settings, tmp_path):
    object_store.bootstrap(settings, [])
    places = {"artifacts": Place(settings, settings.artifact_root), "data": Place(settings, settings.data_remote)}
    names = [f"steps/train/{'a' * 16}-{'b' * 8}", f"results/ab/{'c' * 64}.json", f"files/md5/ab/{'d' * 30}"]
    for place, name in zip(("artifacts", "artifacts", "data"), (f"{names[0]}/deep/model", *names[1:]), strict=True):
        file = tmp_path / "file"
        file.write_text(name)
        places[place].put(file, name)
    before = {name: place.files() for name, place in places.items()}
    free = units(before)
    assert set(free) == set(names)
    assert all(abs(unit.changed_s - time.time()) < 3600 for unit in free.values())

    moved = quarantine.move(places, list(free.values()), tmp_path)
    assert [place.exists(name) for place in places.values() for name in names] == [False] * 6
    assert [one.id for one in quarantine.quarantines(places)] == [moved.id]
    assert quarantine.undo(places, moved.id) == []
    assert {place: set(files.files()) for place, files in places.items()} == {k: set(v) for k, v in before.items()}
    quarantine.empty(places, quarantine.move(places, list(free.values()), tmp_path))
    assert [place.files() for place in places.values()] == [{}, {}]

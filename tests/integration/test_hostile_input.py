"""What strangers send to an endpoint: by its own document, and by hand. Never a 5xx, always a living server."""

import concurrent.futures
import contextlib
import datetime as dt
import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from shopfloor.serving import tokens
from shopfloor.serving.rollout import deploy, endpoint

from tests.integration.test_serving import USE_CASE, post, register_models, rows_of

CASE = "toy_hostile"
OTHER = "toy_hostile_other"

BIN = Path(sys.executable).parent
ROOMY = USE_CASE.replace("max_body_bytes: 100000", "max_body_bytes: 2000000, timeout_s: 3")
ASK_S = 30


@pytest.fixture(scope="module")
def settings(project):
    return project(**{CASE: ROOMY.format(name=CASE), OTHER: ROOMY.format(name=OTHER)})


@pytest.fixture(scope="module")
def row(settings):
    import mlflow

    frame, _ = register_models(settings, CASE, versions=1)
    mlflow.MlflowClient(settings.tracking_uri).copy_model_version(f"models:/{CASE}/1", OTHER)
    deploy(settings, CASE, champion="1")
    return rows_of(frame)[0]


@pytest.fixture
def url(settings, row):
    """The endpoint, which answers before and after."""
    address = endpoint(settings, CASE)
    assert post(f"{address}/predict", row).status_code == 200
    yield address
    assert post(f"{address}/predict", row).status_code == 200


BATCHES = "/(invocations|infer)$"
"""Routes whose bodies JSON Schema cannot describe wholly: as many values as the shape says, MLflow's formats."""


@pytest.mark.parametrize(
    "options",
    [
        ("--exclude-path-regex", BATCHES),
        ("--include-path-regex", BATCHES, "--exclude-checks", "positive_data_acceptance"),
    ],
    ids=["rows", "batches"],
)
def test_whatever_its_document_allows_or_forbids_gets_a_documented_answer(url, options):
    found = subprocess.run(
        [
            *(str(BIN / "schemathesis"), "--no-color", "run", f"{url}/openapi.json", "--checks", "all", *options),
            *("--max-examples", "25", "--seed", "2013", "--generation-deterministic", "--workers", "1"),
            *("--url", url.removesuffix(f"/{CASE}"), "--request-timeout", "10"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-6000:]


def deep(depth):
    return b"[" * depth + b"]" * depth


ROWS = b'{"dataframe_records": [' + b"{}," * 400_000 + b"{}]}"
BODIES = {
    "empty": b"",
    "deep JSON": deep(100_000),
    "deep in a field": b'{"rate_0": ' + deep(50_000) + b"}",
    "utf-16": '{"rate_0": 1}'.encode("utf-16"),
    "invalid utf-8": b'{"rate_\xc3\x28": 1}',
    "a byte order mark": b'\xef\xbb\xbf{"rate_0": 1}',
    "NUL bytes": b"\x00" * 1000,
    "lone surrogate": b'{"\\ud800": 1}',
    "huge exponent": b'{"rate_0": 1e400}',
    "5,000 digits": b'{"count_0": ' + b"9" * 5000 + b"}",
    "NaN": b'{"rate_0": NaN}',
    "Infinity": b'{"rate_0": -Infinity}',
    "many keys": json.dumps({f"k{i}": i for i in range(50_000)}).encode(),
    "one long key": json.dumps({"k" * 1_000_000: 1}).encode(),
    "one long text": json.dumps({"rate_0": "x" * 1_000_000}).encode(),
    "a million commas": b"[" + b"," * 1_000_000 + b"]",
    "rows without end": ROWS,
}


@pytest.mark.parametrize("route", ["predict", "invocations", f"v2/models/{CASE}/infer", "feedback"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_hostile_body_is_refused(url, route, body):
    answer = post(f"{url}/{route}", body)
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert len(answer.content) < 20_000
    assert answer.headers["content-type"] == "application/json"


def test_of_a_key_that_is_given_twice_the_last_counts_or_it_is_refused(url, row):
    text = json.dumps(row)
    answer = post(f"{url}/predict", text[:-1] + ', "rate_0": 1.0}')
    assert answer.status_code in {200, 400, 422}


def test_minus_zero_and_a_number_that_is_almost_one_are_answered(url, row):
    assert post(f"{url}/predict", json.dumps(row | {"rate_0": 0}).replace('"rate_0": 0', '"rate_0": -0.0')).ok
    assert post(f"{url}/predict", row | {"rate_0": 5e-324}).ok


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "multipart/form-data", "application/json; charset=\xff", ""]
)
def test_another_content_type_is_refused(url, row, kind):
    answer = requests.post(
        f"{url}/predict", data=json.dumps(row), headers={"Content-Type": kind.encode("latin-1")}, timeout=ASK_S
    )
    assert answer.status_code in {200, 415}
    assert answer.ok == kind.startswith("application/json")


def test_a_compressed_body_is_refused(url, row):
    import gzip

    answer = post(f"{url}/predict", gzip.compress(json.dumps(row).encode()), **{"Content-Encoding": "gzip"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "path", ["/../status", "/%2e%2e/%2e%2e/etc/passwd", "/predict/../../x", "//", "/%", "/\x7f", "/v2/" + "a/" * 500]
)
def test_a_strange_path_is_a_404(url, path):
    address = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname, address.port, timeout=ASK_S)) as connection:
        connection.putrequest("GET", f"{address.path}{path}".replace("\x7f", "%7F"), skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        assert 400 <= answer.status < 500
        assert b"root:" not in answer.read()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_another_method_is_refused(url, method):
    answer = requests.request(method, f"{url}/predict", timeout=ASK_S)
    assert 400 <= answer.status_code < 502
    assert answer.status_code != 500


def talk(url, *parts, shut=False):
    """Send bytes as they are; return what comes back before the server or the time ends it."""
    address = urlsplit(url)
    with contextlib.closing(socket.create_connection((address.hostname, address.port), timeout=10)) as connection:
        for part in parts:
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while chunk := connection.recv(65536):
                found += chunk
                if b"\r\n\r\n" in found and not shut:
                    break
        return found


def head(url, *lines):
    path = urlsplit(url).path
    return "\r\n".join(
        [f"POST {path}/predict HTTP/1.1", "Host: x", "Content-Type: application/json", *lines, "", ""]
    ).encode()


def test_a_body_of_100_mb_is_not_read(url):
    said = talk(url, head(url, "Content-Length: 104857600"), b"x" * 3_000_000)
    assert b" 413 " in said.split(b"\r\n", 1)[0] or not said


def test_a_body_without_an_end_is_not_read(url):
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    said = talk(url, head(url, "Transfer-Encoding: chunked"), *[chunk] * 64)
    assert b" 413 " in said.split(b"\r\n", 1)[0] or not said


def test_a_half_closed_connection_and_half_a_body_hurt_nobody(url):
    assert b" 200 " not in talk(url, head(url, "Content-Length: 1000"), b'{"rate_0": 1', shut=True)
    assert b" 200 " not in talk(url, b"POST /", shut=True)
    talk(url, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, shut=True)


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: -1",),
        ("Content-Length: 99999999999999999999999999",),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("X-Shopfloor-Version: " + "9" * 5000, "Content-Length: 2"),
        ("X-Request-Id: a\x01b", "Content-Length: 2"),
        *[(f"X-Many-{i}: {'v' * 900}",) for i in range(1)],
        tuple(f"X-Many-{i}: {'v' * 900}" for i in range(200)),
    ],
)
def test_broken_headers_are_refused(url, lines):
    said = talk(url, head(url, *lines), b"{}")
    status = said.split(b" ", 2)[1:2]
    assert not said or 400 <= int(status[0]) < 500, said[:300]


def test_what_a_client_calls_its_request_never_breaks_the_answer(url, row):
    for name in ("a\tb", "x" * 5000, '"; drop'):
        answer = post(f"{url}/predict", row, **{"X-Request-Id": name.encode("latin-1")})
        assert answer.status_code == 200
        assert answer.json()["version"] == "1"


def test_slow_clients_keep_nobody_waiting(url, row):
    address = urlsplit(url)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            slow = stack.enter_context(
                contextlib.closing(socket.create_connection((address.hostname, address.port), timeout=10))
            )
            slow.sendall(head(url, "Content-Length: 50") + b"{")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: post(f"{url}/predict", row).elapsed, range(40)))
    assert max(answers) < dt.timedelta(seconds=2)


def test_a_token_that_does_not_count_is_told_nothing(settings, row, tmp_path):
    file = tmp_path / "tokens"
    good = tokens.create(file, "good", [OTHER], None)
    elsewhere = tokens.create(file, "elsewhere", [CASE], None)
    old = tokens.create(file, "old", [OTHER], dt.date(2020, 1, 1))
    deploy(settings.model_copy(update={"serve_tokens_file": str(file)}), OTHER, champion="1")
    url = endpoint(settings, OTHER)

    assert post(f"{url}/predict", row, Authorization=f"Bearer {good}").status_code == 200
    wrong = [None, "", "Bearer", "Bearer ", f"Basic {good}", f"Bearer {good}x", f"Bearer {elsewhere}", f"Bearer {old}"]
    wrong += ["Bearer " + "x" * 5000, "Bearer \xff\xfe"]
    for route in ("predict", "invocations", f"v2/models/{OTHER}/infer", "feedback", "nothing"):
        answers = [
            post(f"{url}/{route}", row, **({"Authorization": word.encode("latin-1")} if word is not None else {}))
            for word in wrong
        ]
        assert {(answer.status_code, answer.text) for answer in answers} == {
            (401, '{"message": "A valid bearer token is needed."}')
        }

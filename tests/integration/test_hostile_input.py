"""What strangers send to an endpoint: by its own document, and by hand. Never a 5xx, always a living server."""

import concurrent.futures
import contextlib
import datetime as dt
import functools
import http.client
import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import psutil
import pytest
import requests
from shopfloor.serving.deploy.rollout import deploy, endpoint
from shopfloor.serving.replica import tokens

from tests.support.endpoints import USE_CASE, post, register_models, rows_of, running_replicas
from tests.support.waiting import wait_until

CASE = "toy_hostile"
OTHER = "toy_hostile_other"

BIN = Path(sys.executable).parent
MAX_IN_FLIGHT = 50
ROOMY = USE_CASE.replace(
    "max_rows: 50, max_body_bytes: 100000",
    f"max_rows: 10000, max_body_bytes: 8000000, timeout_s: 3, max_in_flight: {MAX_IN_FLIGHT}",
)
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


@functools.cache
def document(url):
    return requests.get(f"{url}/openapi.json", timeout=ASK_S).json()


def assert_documented(url, route, answer):
    """Hold a refusal to the endpoint's own document: its status, and the form of its body."""
    said = document(url)
    responses = said["paths"][f"{urlsplit(url).path}/{route}"]["post"]["responses"]
    assert str(answer.status_code) in responses
    schema = responses[str(answer.status_code)]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), schema | {"components": said["components"]})


def example_tensors(url):
    operation = document(url)["paths"][f"/{CASE}/v2/models/{CASE}/infer"]["post"]
    return operation["requestBody"]["content"]["application/json"]["example"]


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
    result = subprocess.run(
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
    assert result.returncode == 0, result.stdout[-6000:]


def deep(depth):
    return b"[" * depth + b"]" * depth


ROWS = b'{"dataframe_records": [' + b"{}," * 1_000_000 + b"{}]}"
TENSOR = {"name": "count_0", "datatype": "INT64", "shape": [1_000_000], "data": [1] * 1_000_000}
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
    "a million values": b'{"instances": [' + b"1," * 1_000_000 + b"1]}",
    "a long tensor": json.dumps({"inputs": [TENSOR]}).encode(),
    "4,300 digits": b'{"count_0": ' + b"9" * 4300 + b"}",
    "a deep key": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}


@pytest.mark.parametrize("route", ["predict", "invocations", f"v2/models/{CASE}/infer", "feedback"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_hostile_body_is_refused(url, route, body):
    answer = post(f"{url}/{route}", body)
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert len(answer.content) < 20_000
    assert answer.headers["content-type"] == "application/json"
    assert_documented(url, route, answer)


def distinct_records(count):
    return b'{"dataframe_records": [%s]}' % b",".join(b'{"a%d":1}' % number for number in range(count))


def one_value_everywhere(count):
    split = {"index": list(range(count)), "columns": [f"a{i}" for i in range(count)], "data": 0}
    return json.dumps({"dataframe_split": split}).encode()


def compressed_zeros(rows):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"rate_0": np.zeros(rows)}), file, compression="zstd")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        pytest.param(distinct_records(2500), "application/json", 413, id="each record names another column"),
        pytest.param(one_value_everywhere(5000), "application/json", 413, id="one value for a whole index"),
        pytest.param(b"a," * 1_000_000 + b"a\n1\n", "text/csv", 413, id="a million columns"),
        pytest.param(compressed_zeros(20_000_000), "application/vnd.apache.parquet", 415, id="compressed"),
    ],
)
def test_a_small_body_that_asks_for_a_large_table_is_refused_before_there_is_one(url, body, content_type, status):
    answer = post(f"{url}/invocations", body, content_type)
    assert answer.status_code == status, answer.text[:500]
    assert_documented(url, "invocations", answer)


@pytest.mark.parametrize("outputs", [5, True, "prediction", ["prediction"], [{"name": ["a"]}], {"a": 1}])
def test_outputs_that_are_no_list_of_names_are_refused(url, outputs):
    answer = post(f"{url}/v2/models/{CASE}/infer", example_tensors(url) | {"outputs": outputs})
    assert answer.status_code == 400, answer.text
    assert_documented(url, f"v2/models/{CASE}/infer", answer)


@pytest.mark.parametrize("name", ["\ud800", "\x00", "prediction" * 10_000, "../../etc/passwd", "%s%n{0}"])
def test_names_that_a_client_chooses_come_back_short_and_escaped_or_not_at_all(url, name):
    infer = f"{url}/v2/models/{CASE}/infer"
    request = example_tensors(url)
    for body in (
        request | {"outputs": [{"name": name}]},
        {"inputs": [request["inputs"][0] | {"name": name}]},
        {"inputs": [request["inputs"][0] | {"datatype": name}]},
    ):
        answer = post(infer, body)
        assert 400 <= answer.status_code < 500
        assert len(answer.content) < 2000
        assert_documented(url, f"v2/models/{CASE}/infer", answer)


def test_a_number_that_no_tensor_can_hold_is_refused(url):
    first, *others = example_tensors(url)["inputs"]
    for value in (10**4000, 1e308, None, [1, 2], {"a": 1}):
        answer = post(f"{url}/v2/models/{CASE}/infer", {"inputs": [first | {"data": [value]}, *others]})
        assert 400 <= answer.status_code < 500, (value, answer.text)
        assert_documented(url, f"v2/models/{CASE}/infer", answer)


@pytest.mark.parametrize(
    "feedback",
    [
        b'{"request_id": "\\ud800", "outcome": 1}',
        b'{"request_id": "a", "outcome": "\\udfff"}',
        b'{"request_id": "a", "outcome": 1e400}',
        b'{"request_id": "a", "outcome": NaN}',
        b'{"request_id": "a", "outcome": ' + b"9" * 5000 + b"}",
        b'{"request_id": "' + b"a" * 129 + b'", "outcome": 1}',
        b'{"request_id": 1, "outcome": 1}',
    ],
)
def test_feedback_that_the_log_could_not_hold_is_refused(url, feedback):
    answer = post(f"{url}/feedback", feedback)
    assert answer.status_code in {400, 404, 422}
    assert_documented(url, "feedback", answer)


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


def talk(url, *parts, shut=False, whole=False):
    """Send bytes as they are; return what comes back: one answer, or all until the server or the time ends it."""
    address = urlsplit(url)
    with contextlib.closing(socket.create_connection((address.hostname, address.port), timeout=10)) as connection:
        for part in parts:
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        reply = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while chunk := connection.recv(65536):
                reply += chunk
                if b"\r\n\r\n" in reply and not shut and not whole:
                    break
        return reply


def head(url, *lines):
    path = urlsplit(url).path
    return "\r\n".join(
        [f"POST {path}/predict HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines, "", ""]
    ).encode()


def replica(settings):
    (process,) = running_replicas(settings, CASE)
    return psutil.Process(process)


@pytest.mark.parametrize("line", ["Transfer-Encoding: chunked", "Content-Length: 104857600"])
def test_100_mb_are_refused_and_nowhere_kept(settings, url, line):
    piece = b"x" * 65536
    before = replica(settings).memory_info().rss
    answer = talk(url, head(url, line), *[b"10000\r\n" + piece + b"\r\n" if "chunked" in line else piece] * 1600)
    assert b" 413 " in answer.split(b"\r\n", 1)[0] or not answer
    assert replica(settings).memory_info().rss - before < 50e6


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
    answer = talk(url, head(url, *lines), b"{}")
    status = answer.split(b" ", 2)[1:2]
    assert not answer or 400 <= int(status[0]) < 500, answer[:300]


def test_what_a_client_calls_its_request_never_breaks_the_answer(url, row):
    for name in ("a\tb", "x" * 5000, '"; drop'):
        answer = post(f"{url}/predict", row, **{"X-Request-Id": name.encode("latin-1")})
        assert answer.status_code == 200
        assert answer.json()["version"] == "1"


@pytest.mark.parametrize(
    "name",
    [
        *("X-Request-Id", "X-Session-Id", "Serve_Multiplexed_Model_Id", "Serve-Multiplexed-Model-Id"),
        *("X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled", "Traceparent", "User-Agent"),
    ],
)
def test_a_header_that_is_no_text_is_as_if_it_were_not_there(url, row, name):
    answer = post(f"{url}/predict", row, **{name: b"\xff\xfe"})
    assert answer.status_code == 200
    assert answer.headers["X-Request-Id"].isascii()


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e400", "-1", "0", "0.000001", "1_0"])
def test_how_long_a_client_will_wait_never_breaks_the_answer(url, row, seconds):
    answer = post(f"{url}/predict", row, **{"X-Request-Timeout-Seconds": seconds})
    assert answer.status_code in {200, 408}


def test_slow_clients_keep_nobody_waiting(url, row):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            begin(stack, url)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: post(f"{url}/predict", row).elapsed, range(40)))
    assert max(answers) < dt.timedelta(seconds=2)


def begin(stack, url, *lines, length=50, sent=1):
    """Open a connection that sends the head of a request, and less of its body than it said."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port), timeout=10)
    stack.enter_context(contextlib.closing(connection))
    connection.sendall(head(url, f"Content-Length: {length}", *lines) + b"{" + b" " * (sent - 1))
    return connection


def in_flight(url):
    """Return how many requests the replica has begun and not answered, by its metrics."""
    lines = requests.get(f"{url}/metrics", timeout=10).text.splitlines()
    return float(next(line for line in lines if line.startswith("shopfloor_requests_in_flight{")).split()[-1])


def test_more_slow_clients_than_there_are_places_keep_nobody_out(url, row):
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_IN_FLIGHT + 10):
            begin(stack, url, length=50_000, sent=20_000)  # more than HAProxy holds back
        wait_until(lambda: in_flight(url) >= MAX_IN_FLIGHT)
        assert {post(f"{url}/predict", row).status_code for _ in range(10)} == {200}


@pytest.mark.parametrize(
    ("length", "sent", "within_s"), [(50_000, 20_000, 5), (50, 1, 12)], ids=["the replica", "HAProxy, which has it all"]
)
def test_who_sends_a_byte_a_second_is_told_that_it_took_too_long(url, length, sent, within_s):
    with contextlib.ExitStack() as stack:
        slow = begin(stack, url, length=length, sent=sent)
        slow.settimeout(0.9)
        answer, began = b"", time.monotonic()
        while not answer and time.monotonic() - began < within_s + 3:
            with contextlib.suppress(TimeoutError):
                slow.sendall(b" ")
                answer = slow.recv(4096)
    assert answer.split(b" ", 2)[1] == b"408"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["message"].startswith("The body did not arrive within ")
    assert time.monotonic() - began < within_s


def test_the_document_says_that_a_body_may_be_late(url):
    for route in ("predict", "invocations", f"v2/models/{CASE}/infer", "feedback"):
        assert "408" in document(url)["paths"][f"/{CASE}/{route}"]["post"]["responses"]


def test_requests_that_follow_each_other_without_waiting_are_answered_in_their_order(url, row):
    body = json.dumps(row).encode()
    good = head(url, f"Content-Length: {len(body)}") + body
    wrong = good.replace(b"application/json", b"application/nosj")
    last = good.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close")
    answer = talk(url, good + wrong + last, shut=False, whole=True)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"415", b"200"]


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("/status%0d%0aX-Evil:%20yes", ()),
        ("/status", ("X-Request-Id: a%0d%0aX-Evil: yes",)),
        ("/status", ("X-Request-Id: a\rX-Evil: yes",)),
        ("/v2/models/a%0d%0aX-Evil:%20yes", ()),
        (f"/v2/models/{CASE}", ("X-Shopfloor-Version: 1%0d%0aX-Evil: yes",)),
    ],
)
def test_nothing_that_a_client_sends_becomes_a_header_of_the_answer(url, path, lines):
    request = [f"GET {urlsplit(url).path}{path} HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""]
    head_of_answer = talk(url, "\r\n".join(request).encode(), whole=True).partition(b"\r\n\r\n")[0]
    assert not [line for line in head_of_answer.lower().splitlines() if line.startswith(b"x-evil")]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", '"><script>', "[", "\xff"]
)
def test_a_page_that_gives_its_own_name_this_address_reads_nothing(url, row, host):
    for answer in (
        requests.get(f"{url}/docs", headers={"Host": host.encode("latin-1")}, timeout=ASK_S),
        post(f"{url}/predict", row, Host=host.encode("latin-1")),
    ):
        assert answer.status_code in {400, 421}, answer.text
        assert "prediction" not in answer.text
    for own in ("localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"):
        assert post(f"{url}/predict", row, Host=own).status_code == 200


@pytest.mark.parametrize(
    "name", ["Authorization", "Content-Type", "X-Shopfloor-Version", "X-Request-Key", "X-Request-Id"]
)
def test_of_a_header_that_is_there_twice_nobody_guesses_which_one_counts(url, row, name):
    body = json.dumps(row).encode()
    values = {"Content-Type": "application/json", "X-Shopfloor-Version": "1"}
    lines = [f"{name}: {values.get(name, 'a')}", f"{name}: {values.get(name, 'b')}", f"Content-Length: {len(body)}"]
    if name != "Content-Type":
        lines.append("Content-Type: application/json")
    path = urlsplit(url).path
    sent = "\r\n".join([f"POST {path}/predict HTTP/1.1", "Host: localhost", *lines, "", ""]).encode() + body
    answer = talk(url, sent)
    assert answer.split(b" ", 2)[1] == b"400"
    assert name.lower().encode() in answer


def test_a_large_body_to_any_route_holds_up_nobody_elses_answer_and_takes_no_memory_of_the_replica(settings, url, row):
    """Whatever parses eight megabytes holds the interpreter for seconds: it is not the replica's."""
    infer = f"v2/models/{CASE}/infer"
    bodies = {
        "invocations": b'{"dataframe_records": [' + b"{}," * 2_600_000 + b"{}]}",
        infer: b'{"inputs": [' + b"[]," * 2_600_000 + b"[]]}",
        "predict": ROWS * 2,
        "feedback": ROWS * 2,
    }
    post(f"{url}/invocations", bodies["invocations"][:100_000])  # the process that reads large bodies has begun
    post(f"{url}/{infer}", bodies[infer][:100_000])
    process = replica(settings)
    most = before = process.memory_info().rss
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        large = {route: pool.submit(post, f"{url}/{route}", body) for route, body in bodies.items()}
        answers = []
        while not all(one.done() for one in large.values()):
            answers.append(post(f"{url}/predict", row).elapsed.total_seconds())
            most = max(most, process.memory_info().rss)
    # Refused for what they are, or given up after `timeout_s` where the machine has no time to read them.
    assert {one.result().status_code for one in large.values()} <= {400, 413, 504}
    assert most - before < 150e6
    assert max(answers) < 0.5  # bench_serving holds it to 50 ms, on a machine of its own


def test_a_web_socket_is_not_opened(url):
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    request = [f"GET {urlsplit(url).path}/predict HTTP/1.1", "Host: localhost", *upgrade]
    answer = talk(url, "\r\n".join([*request, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]).encode())
    assert not answer or answer.split(b" ", 2)[1].startswith(b"4")


def test_a_large_body_holds_up_nobody_elses_answer(url, row):
    """Rows are read on the event loop: a body that takes seconds there would stop the replica for as long."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = [
            pool.submit(post, f"{url}/predict", body)
            for body in (ROWS, BODIES["many keys"], b'{"rate_0": [' + b"1," * 3_900_000 + b"1]}")
        ]
        answers = []
        while not all(one.done() for one in large):
            answers.append(post(f"{url}/predict", row).elapsed)
    assert {one.result().status_code for one in large} == {413}
    assert max(answers) < dt.timedelta(seconds=0.5)


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

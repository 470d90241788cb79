"""A replica on a real socket, without Ray around it: models that hang, large bodies, and what its log keeps."""

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import threading
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import requests
import uvicorn
from shopfloor.runs.mlflow import import_mlflow
from shopfloor.serving.beside.reader import LARGE_BYTES
from shopfloor.serving.contract import Config
from shopfloor.serving.log_files import read_log
from shopfloor.serving.model.loading import prepare
from shopfloor.serving.replica import app, tokens, traffic
from shopfloor.serving.replica.answering import MODEL_THREADS
from shopfloor.settings import Settings
from sklearn.base import BaseEstimator

from tests.support.waiting import free_port, wait_until

CASE = "toy_alone"
FRAME = pd.DataFrame({"size": [1.0, 2.5, -3.0], "colour": ["red", "blue", "red"]})
MODEL = '''
import pathlib, time


class Model:
    """Answers the size; a row called "hang" is answered when a file is there."""

    def __init__(self, gate):
        self.gate = pathlib.Path(gate)

    def predict(self, frame):
        while "hang" in set(frame["colour"]) and not self.gate.exists():
            time.sleep(0.05)
        return frame["size"].to_numpy()


def _load_pyfunc(path):
    return Model(pathlib.Path(path).read_text())
'''


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def model(tmp_path_factory, gate):
    import_mlflow()
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    directory = tmp_path_factory.mktemp("model")
    (directory / "toy_alone_model.py").write_text(MODEL)
    (directory / "gate").write_text(str(gate))
    mlflow.pyfunc.save_model(
        str(directory / "model"),
        loader_module="toy_alone_model",
        data_path=str(directory / "gate"),
        code_paths=[str(directory / "toy_alone_model.py")],
        signature=infer_signature(FRAME, FRAME["size"].to_numpy()),
        input_example=FRAME.head(1),
        pip_requirements=["pandas"],
    )
    return prepare(CASE, "1", directory / "model")


class Sized(BaseEstimator):
    """Answers the size; rows called "hang" wait for a gate, those called "green" are refused."""

    calls: ClassVar[list[list[float]]] = []
    gate = threading.Event()

    def fit(self, frame, target=None):
        self.fitted_ = True
        return self

    def predict(self, frame):
        self.calls.append(frame["size"].tolist())
        colours = set(frame["colour"])
        if "hang" in colours:
            assert self.gate.wait(60)
        if "green" in colours:
            raise ValueError("green is no colour")
        return frame["size"].to_numpy()


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    """Return an estimator of scikit-learn as a version."""
    import_mlflow()
    import mlflow.sklearn
    from mlflow.models import infer_signature

    directory = tmp_path_factory.mktemp("estimator") / "model"
    mlflow.sklearn.save_model(
        Sized().fit(FRAME),
        str(directory),
        signature=infer_signature(FRAME, FRAME["size"].to_numpy()),
        input_example=FRAME.head(1),
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn"],
    )
    return prepare(CASE, "2", directory)


class Replica:
    """The deployment as Serve would run it, and a way onto its event loop."""

    def __init__(self, loop, predictor, url):
        self.loop, self.predictor, self.url = loop, predictor, url
        self.reading = predictor._routes.reading

    def run(self, coroutine, timeout_s=20):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def configure(self, **fields):
        self.run(self.predictor.reconfigure(Config(use_case=CASE, tracking_uri="", **fields).model_dump()))

    @contextlib.contextmanager
    def answering(self, model):
        """Let another model answer within the block, whose gate opens at its end."""
        holding = self.predictor._holding
        before = holding.champion

        async def swap(champion):
            holding.champion, holding.loaded = champion, {champion.version: champion}
            self.predictor._swapped()

        self.run(swap(model))
        Sized.gate.clear()
        Sized.calls.clear()
        try:
            yield
        finally:
            Sized.gate.set()
            wait_until(lambda: self.reading.admitted == 0)
            self.run(swap(before))

    def post(self, route, content, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return requests.post(
            f"{self.url}/{route}", data=body, headers={"Content-Type": "application/json"} | headers, timeout=60
        )


@pytest.fixture(scope="module")
def replica(model):
    patch = pytest.MonkeyPatch()
    patch.setattr(app, "_replica", lambda: "r1")
    patch.setattr(app.exchange, "install", lambda: None)
    started, port = concurrent.futures.Future(), free_port()

    async def serve():
        predictor = app.Predictor()

        async def follow(config):
            predictor._holding.champion, predictor._holding.loaded = model, {"1": model}
            predictor._swapped()

        predictor._holding.follow = follow
        config = uvicorn.Config(
            predictor.__serve_build_asgi_app__(), port=port, http="httptools", lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        started.set_result((asyncio.get_running_loop(), predictor, server))
        await serving
        predictor._answering.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    loop, predictor, server = started.result(60)
    yield Replica(loop, predictor, f"http://127.0.0.1:{port}")
    server.should_exit = True
    thread.join(20)
    patch.undo()


def row(size=1.0, colour="red"):
    return {"size": size, "colour": colour}


def test_a_model_that_hangs_holds_up_its_own_requests_alone_and_their_bodies_count_until_it_ends(replica, gate):
    replica.configure(timeout_s=3)
    gate.unlink(missing_ok=True)
    hanging = json.dumps(row(colour="hang")).encode() + b" " * 1000
    count = 2 * MODEL_THREADS
    try:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            late = [pool.submit(replica.post, "predict", hanging) for _ in range(count)]
            wait_until(lambda: replica.reading.admitted == count, every_s=0.01)  # it is so for less than those 3 s
            assert replica.run(asyncio.to_thread(lambda: "the assignment"), timeout_s=5) == "the assignment"
            assert requests.get(f"{replica.url}/healthz", timeout=5).ok
            assert {one.result().status_code for one in late} == {504}
        wait_until(lambda: replica.reading.admitted == MODEL_THREADS)  # those that only waited are forgotten
        assert replica.reading.held == MODEL_THREADS * len(hanging)
    finally:
        gate.touch()
    wait_until(lambda: replica.reading.admitted == 0)
    assert replica.reading.held == 0
    assert replica.post("predict", row(2.0)).json()["prediction"] == 2.0


def test_rows_that_come_while_an_estimator_answers_go_together_and_one_that_it_refuses_fails_alone(
    replica, estimator, monkeypatch
):
    assert estimator.gathers
    monkeypatch.setattr(traffic, "PATIENCE_S", 60)
    replica.configure()
    with replica.answering(estimator), concurrent.futures.ThreadPoolExecutor(7) as pool:
        first = pool.submit(replica.post, "predict", row(0.0, "hang"))
        wait_until(lambda: Sized.calls, every_s=0.01)
        rows = [row(1.0), row(2.0, "green"), row(3.0), row(4.0), row(5.0)]
        others = [pool.submit(replica.post, "predict", one) for one in rows]
        wait_until(lambda: replica.reading.admitted == 6, every_s=0.01)
        Sized.gate.set()
        assert first.result().json() == {"prediction": 0.0, "model": CASE, "version": "2"}
        answers = [one.result() for one in others]
    assert [answer.status_code for answer in answers] == [200, 422, 200, 200, 200]
    assert "green is no colour" in answers[1].json()["message"]
    assert [answer.json()["prediction"] for answer in answers if answer.ok] == [1.0, 3.0, 4.0, 5.0]
    assert [sorted(call) for call in Sized.calls[:2]] == [[0.0], [1.0, 2.0, 3.0, 4.0, 5.0]]
    assert sorted(Sized.calls[2:]) == [[1.0], [2.0], [3.0], [4.0], [5.0]]


def test_an_estimator_that_hangs_holds_up_its_own_request_and_counts_it_until_it_ends(replica, estimator):
    replica.configure(timeout_s=2)
    with replica.answering(estimator), concurrent.futures.ThreadPoolExecutor(5) as pool:
        late = pool.submit(replica.post, "predict", row(0.0, "hang"))
        wait_until(lambda: Sized.calls, every_s=0.01)
        others = list(pool.map(lambda size: replica.post("predict", row(size)).json()["prediction"], [1.0, 2.0, 3.0]))
        assert others == [1.0, 2.0, 3.0]
        assert late.result().status_code == 504
        assert replica.reading.admitted == 1


def tensors(rows):
    return {
        "inputs": [
            {"name": "size", "shape": [len(rows)], "datatype": "FP64", "data": [one["size"] for one in rows]},
            {"name": "colour", "shape": [len(rows)], "datatype": "BYTES", "data": [one["colour"] for one in rows]},
        ]
    }


@pytest.mark.parametrize(
    ("route", "content_type", "body"),
    [
        ("invocations", "application/json", lambda rows: {"dataframe_records": rows}),
        ("invocations", "application/json", lambda rows: {"inputs": [one | {"more": [1]} for one in rows]}),
        ("invocations", "text/csv", lambda rows: pd.DataFrame(rows).to_csv(index=False).encode()),
        (f"v2/models/{CASE}/infer", "application/json", tensors),
    ],
)
def test_a_large_body_is_answered_as_its_rows_are_in_small_ones(replica, route, content_type, body):
    replica.configure(timeout_s=60)
    rows = [row(number / 4, f"colour {number}") for number in range(4000)]

    def ask(some):
        answer = replica.post(route, body(some), **{"Content-Type": content_type})
        assert answer.status_code == 200, answer.text[:500]
        document = answer.json()
        return document["predictions"] if "predictions" in document else document["outputs"][0]["data"]

    content = body(rows)
    assert len(content if isinstance(content, bytes) else json.dumps(content)) > LARGE_BYTES
    assert ask(rows) == [one["size"] for one in rows]
    assert ask(rows[:3]) == ask(rows)[:3]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b'{"dataframe_records": [' + b"{}," * 100_000 + b"{}]}", 413, "100001 rows"),
        (b'{"dataframe_records": [{"size": [' + b"[]," * 100_000 + b"[]]}]}", 400, ""),
        (b"[" * 100_000, 400, "JSON"),
        (b'{"dataframe_records": [{}], "params": {"a": "' + b"x" * 100_000 + b'"}}', 413, "params"),
    ],
)
def test_a_large_body_that_is_wrong_is_refused_with_the_reason(replica, body, status, text):
    replica.configure(timeout_s=60)
    answer = replica.post("invocations", body)
    assert (answer.status_code, text in answer.text) == (status, True), answer.text


def test_a_reader_that_was_killed_is_replaced(replica):
    replica.configure(timeout_s=60)
    body = {"dataframe_records": [row(1.0, f"colour {number}") for number in range(4000)]}
    assert replica.post("invocations", body).ok
    process = replica.predictor._answering._reader._process
    process.kill()
    process.wait(10)
    assert replica.post("invocations", body).ok


def test_no_answer_is_lost_while_the_log_moves_and_refused_bodies_are_not_kept(replica, tmp_path):
    places = [str(tmp_path / name) for name in ("one", "two", "three")]
    ids, end = [], threading.Event()

    def ask():
        while not end.is_set():
            ids.append(replica.post("predict", row()).headers["X-Request-Id"])

    replica.configure(timeout_s=60, log_root=places[0])
    refused = replica.post("predict", {"size": "secret"})
    assert refused.status_code == 422
    asking = threading.Thread(target=ask)
    asking.start()
    for place in places[1:]:
        before = len(ids)
        wait_until(lambda before=before: len(ids) > before + 5)
        replica.configure(timeout_s=60, log_root=place)
    end.set()
    asking.join()
    log = replica.predictor._log
    replica.configure(timeout_s=60)
    wait_until(lambda: log.waiting == 0 and not any(thread.is_alive() for thread in log._threads))

    def logged(place):
        return read_log(Settings(project_root=tmp_path), place, CASE, "predictions").to_pylist()

    wait_until(lambda: sum(len(logged(place)) for place in places) >= len(ids) + 1)
    entries = {one["request_id"]: one for place in places for one in logged(place)}
    assert set(ids) <= set(entries)
    assert entries[refused.headers["X-Request-Id"]]["inputs"] is None


def test_feedback_that_was_acknowledged_is_there_at_once_and_one_that_cannot_be_kept_is_not_acknowledged(
    replica, tmp_path
):
    document = {"request_id": "order-17", "outcome": True}
    replica.configure(log_root=str(tmp_path / "log"))
    assert replica.post("feedback", document).status_code == 202
    read = functools.partial(read_log, Settings(project_root=tmp_path), str(tmp_path / "log"), CASE, "feedback")
    assert [one["request_id"] for one in read().to_pylist()] == ["order-17"]
    assert replica.post("feedback", document).status_code == 202  # as a proxy repeats it
    assert len(read()) == 1

    (tmp_path / "full").write_text("a file where a directory should be")
    replica.configure(log_root=str(tmp_path / "full"))
    refused = replica.post("feedback", document)
    assert refused.status_code == 503
    assert "send it again" in refused.json()["message"]
    assert replica.post("feedback", document | {"outcome": "x" * 20_000}).status_code == 413
    replica.configure()


def test_without_a_token_the_status_names_no_address(replica, tmp_path):
    file = tmp_path / "tokens"
    token = tokens.create(file, "one", [], None)
    error = "OSError: http://mlflow.internal:5000/api of /srv/models/x at 10.0.0.7:6379 is gone"
    replica.configure(tokens_file=str(file))
    replica.predictor._holding.errors = {"7": error}
    with contextlib.ExitStack() as stack:
        stack.callback(replica.configure)
        stack.callback(replica.predictor._holding.errors.clear)
        lines = [
            requests.get(f"{replica.url}/status", headers=headers, timeout=10).json()["errors"]["7"]
            for headers in ({}, {"Authorization": f"Bearer {token}"})
        ]
    assert lines == ["OSError: (…) of (…) at (…) is gone", error]
    assert Path(file).name not in lines[0]


def test_the_page_says_what_the_use_case_is_and_how_to_send_feedback_and_tensors(replica):
    replica.configure(log_root=None, description="Sizes of toys & games", target="how_large")
    page = requests.get(f"{replica.url}/docs", timeout=10).text
    for words in ("Sizes of toys &amp; games", "how_large", "/feedback", f"/v2/models/{CASE}/infer", "X-Request-Id"):
        assert words in page
    document = requests.get(f"{replica.url}/openapi.json", timeout=10).json()
    answer = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert "how_large" in answer["properties"]["prediction"]["description"]

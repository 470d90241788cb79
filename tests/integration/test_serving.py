"""The endpoint on a real Ray cluster with a real MLflow registry: every way to ask it wrongly, and every swap."""

import contextlib
import http.client
import json
import re
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from shopfloor.errors import ServiceError, ShopfloorError
from shopfloor.records import FeatureSet
from shopfloor.serving.contract import log_root
from shopfloor.serving.deploy.rollout import deploy, endpoint, live_versions, undeploy
from shopfloor.serving.deploy.steps import introduce
from shopfloor.serving.deploy.verify import verify
from shopfloor.serving.log_files import read_log
from shopfloor.serving.replica import tokens
from shopfloor.stack import ray_head

from tests.support.artifacts import Recorder
from tests.support.endpoints import (
    CASE,
    MODEL,
    USE_CASE,
    offline,
    post,
    register_models,
    rows_of,
    running_replicas,
    serving_cluster,
)
from tests.support.waiting import free_port, wait_until

OTHER = "toy_other"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving")
    for name in (CASE, OTHER):
        case = directory / "pipelines" / name
        case.mkdir(parents=True)
        (case / "use_case.yaml").write_text(USE_CASE.format(name=name))
        (case / "model.py").write_text(MODEL)
    with serving_cluster(directory) as settings:
        yield settings


@pytest.fixture(scope="module")
def models(settings):
    import mlflow

    frame, boosters = register_models(settings, CASE, versions=2)
    with mlflow.start_run() as run:  # the third version is in the registry, and is no model
        mlflow.log_text("nothing here", "model/README")
    client = mlflow.MlflowClient(settings.tracking_uri)
    client.create_model_version(CASE, f"{run.info.artifact_uri}/model", run.info.run_id)
    client.copy_model_version(f"models:/{CASE}/1", OTHER)
    return frame, boosters


@pytest.fixture(scope="module")
def first(settings, models):
    """Two endpoints, deployed at the same time by two deployers."""
    with ThreadPoolExecutor() as pool:
        other = pool.submit(deploy, settings, OTHER, champion="1")
        deploy(settings, CASE, champion="1", challenger="2")
        other.result()
    return endpoint(settings, CASE)


@pytest.fixture
def url(settings, first):
    """The endpoint with version 1 as champion and 2 as challenger, whatever the last test did."""
    deploy(settings, CASE, champion="1", challenger="2")
    return first


class Answers(Counter):
    """How often which status and version came, and the ids of all that came."""

    def __init__(self):
        super().__init__()
        self.ids = []


@contextlib.contextmanager
def asking(url: str, row: dict, clients: int = 4):
    """Let clients ask for the time of the block, with a pause between so that what they ask can start beside them.

    The status and the version of each answer are counted.
    """
    body, answers, end = json.dumps(row), Answers(), threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=20)
        while not end.wait(0.05):
            try:
                connection.request("POST", f"/{CASE}/predict", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answers[answer.status, json.loads(answer.read()).get("version")] += 1
                answers.ids.append(answer.headers["X-Request-Id"])
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                answers[type(error).__name__, None] += 1

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_without_a_ray_cluster_the_error_says_what_to_start(settings, models):
    nowhere = settings.model_copy(update={"ray_dashboard_url": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(ServiceError, match="shopfloor up"):
        deploy(nowhere, CASE, champion="1")
    assert live_versions(settings.model_copy(update={"serve_url": f"http://127.0.0.1:{free_port()}"}), CASE) == {}


def test_the_champion_before_is_kept_so_that_going_back_loads_nothing(settings, url, models):
    def held():
        status = requests.get(f"{url}/status", timeout=10).json()
        return status["champion"], status["kept"]

    deploy(settings, CASE, champion="2", challenger=None)
    assert held() == ("2", "1")
    deploy(settings, CASE, champion="1")
    assert held() == ("1", "2")
    some = models[0].head(3)
    answers = [post(f"{url}/predict", row).json()["prediction"] for row in rows_of(some)]
    assert answers == pytest.approx(offline(models[1][0], some), abs=1e-6)


def test_both_versions_answer_as_their_model_does_offline(url, models):
    frame, boosters = models
    some = frame.head(20)
    for version, booster in zip(("1", "2"), boosters, strict=True):
        answers = [post(f"{url}/predict", row, **{"X-Shopfloor-Version": version}).json() for row in rows_of(some)]
        assert {answer["version"] for answer in answers} == {version}
        assert {answer["model"] for answer in answers} == {CASE}
        assert [answer["prediction"] for answer in answers] == pytest.approx(offline(booster, some), abs=1e-6)


def test_the_champion_answers_unless_another_version_is_asked_for(url, models):
    row = rows_of(models[0])[0]
    assert post(f"{url}/predict", row).json()["version"] == "1"
    assert post(f"{url}/predict", row, **{"X-Shopfloor-Version": "champion"}).json()["version"] == "1"
    assert post(f"{url}/predict", row, **{"X-Shopfloor-Version": "challenger"}).json()["version"] == "2"
    unknown = post(f"{url}/predict", row, **{"X-Shopfloor-Version": "9"})
    assert unknown.status_code == 404
    assert "loaded versions: 1, 2" in unknown.json()["message"]


def test_the_example_of_the_openapi_document_works_as_it_stands(url):
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    for path, operation in document["paths"].items():
        if "post" in operation:
            example = operation["post"]["requestBody"]["content"]["application/json"]["example"]
            assert post(f"{url.removesuffix('/' + CASE)}{path}", example).status_code in {200, 202}
    fields = document["paths"][f"/{CASE}/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert fields["properties"]["count_0"]["type"] == "integer"
    assert "age_0" not in fields["required"]


def test_the_command_on_the_docs_page_works_and_the_page_loads_nothing_from_elsewhere(url):
    import html
    import re
    import shlex

    page = requests.get(f"{url}/docs", timeout=10).text
    command = shlex.split(html.unescape(re.search(r"<pre>(curl.*?)</pre>", page, re.DOTALL)[1]))
    assert subprocess.run([*command, "-sf"], capture_output=True, check=True).stdout.startswith(b'{"prediction":')
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


def wrong(**fields):
    return lambda row: row | fields


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        (wrong(count_0="seven"), 422, "count_0"),
        (wrong(count_0=1.5), 422, "count_0"),
        (wrong(count_0=True), 422, "count_0"),
        (wrong(count_0=None), 422, "count_0"),
        (wrong(rate_0=True), 422, "rate_0"),
        (wrong(rate_0="fast"), 422, "rate_0"),
        (wrong(rate_0=float("nan")), 422, "rate_0"),
        (wrong(rate_0=float("inf")), 422, "rate_0"),
        (wrong(rate_0=1e300), 422, "rate_0"),
        (wrong(age_0=float("nan")), 422, "age_0"),
        (wrong(colour="blue"), 422, "colour"),
        (lambda row: {k: v for k, v in row.items() if k != "rate_0"}, 422, "rate_0"),
        (lambda row: {}, 422, "count_0"),
        (lambda row: [row], 400, None),
        (lambda row: b"", 400, None),
        (lambda row: b"not json", 400, None),
        (lambda row: b"\xff\xfe", 400, None),
        (lambda row: b"[" * 90_000, 400, None),
        (lambda row: json.dumps(row | {"rate_0": 1}) + " " * 100_000, 413, None),
    ],
)
def test_predict_refuses_a_wrong_body_and_names_the_field(url, models, change, status, field):
    answer = post(f"{url}/predict", change(rows_of(models[0])[0]))
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    problem = answer.json()
    assert problem["message"]
    if field:
        assert field in [item["field"] for item in problem["fields"]]


def test_the_rest_of_a_wrong_request_is_refused_too(url, models):
    row = rows_of(models[0])[0]
    assert post(f"{url}/predict", row, "text/plain").status_code == 415
    assert post(f"{url}/predict", json.dumps(row).encode(), None).status_code == 415
    assert post(f"{url}/predict", row, "application/json; charset=utf-8").status_code == 200
    assert requests.get(f"{url}/predict", timeout=10).status_code == 405
    assert post(f"{url}/status", row).status_code == 405
    assert requests.get(f"{url}/nowhere", timeout=10).status_code == 404
    assert requests.get(f"{url}/healthz", timeout=10).json() == {"live": True}
    assert requests.get(f"{url}/readyz", timeout=10).json() == {"champion": "1"}
    chunks = (b" " * 1000 for _ in range(200))  # a body that does not say how long it is
    chunked = requests.post(f"{url}/predict", data=chunks, headers={"Content-Type": "application/json"}, timeout=10)
    assert chunked.status_code == 413


def test_invocations_answers_what_mlflows_scoring_server_answers(settings, url, models):
    import mlflow
    from mlflow.pyfunc.scoring_server import invocations

    some = models[0].head(5)
    records = rows_of(some)
    split = {"columns": list(some), "data": [list(row.values()) for row in records]}
    bodies = [
        ({"dataframe_split": split}, "application/json"),
        ({"dataframe_records": records}, "application/json"),
        ({"inputs": records}, "application/json"),
        ({"instances": records}, "application/json; charset=utf-8"),
        ({"inputs": {name: [row[name] for row in records] for name in some}}, "application/json"),
        ({"dataframe_split": split, "params": {}}, "application/json"),
        ({"dataframe_records": [row | {"not_an_input": 1} for row in records]}, "application/json"),
        (some.to_csv(index=False), "text/csv"),
    ]
    mlflow.set_tracking_uri(settings.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/{CASE}/1")
    for body, content_type in bodies:
        text = body if isinstance(body, str) else json.dumps(body)
        theirs = invocations(text, content_type, model, model.metadata.get_input_schema())
        ours = post(f"{url}/invocations", text, content_type)
        assert (ours.status_code, ours.json()) == (theirs.status, json.loads(theirs.response))
    without_optional = [{k: v for k, v in row.items() if k != "age_0"} for row in records]
    answer = post(f"{url}/invocations", {"dataframe_records": without_optional})
    with_null = post(f"{url}/invocations", {"dataframe_records": [row | {"age_0": None} for row in records]})
    assert answer.json() == with_null.json()


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        (lambda row: {"dataframe_records": [{k: v for k, v in row.items() if k != "rate_0"}]}, 400, "rate_0"),
        (lambda row: {"dataframe_records": [row | {"count_0": "seven"}]}, 400, "count_0"),
        (lambda row: {"dataframe_records": [row | {"count_0": None}]}, 400, "count_0"),
        (lambda row: {"dataframe_records": [row | {"rate_0": float("nan")}]}, 422, "rate_0"),
        (lambda row: {"dataframe_records": [row | {"rate_0": float("inf")}]}, 422, "rate_0"),
        (lambda row: {"dataframe_records": [row | {"rate_0": [1]}]}, 400, ""),
        (lambda row: {"dataframe_records": []}, 400, ""),
        (lambda row: {"dataframe_records": 5}, 400, ""),
        (lambda row: {"dataframe_split": {"rows": []}}, 400, ""),
        (lambda row: {"dataframe_records": [row], "inputs": [row]}, 400, ""),
        (lambda row: {"dataframe_records": [row] * 51}, 413, "51 rows"),
        (lambda row: {"inputs": "text"}, 400, ""),
        (lambda row: [row], 400, ""),
        (lambda row: b"[" * 90_000, 400, ""),
        (lambda row: b"not json", 400, ""),
        (lambda row: b"", 400, "empty"),
    ],
)
def test_invocations_refuses_a_wrong_body(url, models, change, status, named):
    answer = post(f"{url}/invocations", change(rows_of(models[0])[0]))
    assert answer.status_code == status
    assert named in answer.text
    assert "Traceback" not in answer.text


def test_invocations_refuses_other_content_types(url):
    assert post(f"{url}/invocations", b"x", "text/plain").status_code == 415
    assert post(f"{url}/invocations", b"x", None).status_code == 415
    assert post(f"{url}/invocations", b"x", "application/json; charset=latin-1").status_code == 415
    assert post(f"{url}/invocations", b"x", "application/vnd.apache.parquet").status_code == 415
    assert post(f"{url}/invocations", b"\x00\xff", "text/csv").status_code == 400


@pytest.mark.parametrize("version", ["3", "99"])
def test_a_version_that_does_not_load_leaves_the_champion_answering(settings, url, models, version):
    with pytest.raises(ShopfloorError, match=f"Version {version} of {CASE} does not load"):
        deploy(settings, CASE, champion=version)
    row = rows_of(models[0])[0]
    assert post(f"{url}/predict", row).json()["version"] == "1"
    assert version in requests.get(f"{url}/status", timeout=10).json()["errors"]
    with pytest.raises(ShopfloorError, match="does not load"):
        deploy(settings, CASE, challenger=version)
    assert live_versions(settings, CASE) == {"champion": "1", "challenger": "2"}
    assert f"version {version} of {CASE} does not load" in "".join(replica_logs(settings))


def replica_logs(settings):
    """What Ray's dashboard shows as the logs of replicas."""
    logs = ray_head.temporary_directory(settings.state_dir) / "session_latest" / "logs" / "serve"
    return [file.read_text() for file in logs.glob(f"replica_{CASE}_*.log")]


def test_a_new_champion_takes_over_without_one_failed_request(settings, url, models):
    row = rows_of(models[0])[0]
    with asking(url, row) as answers:
        deploy(settings, CASE, champion="1", challenger=None)
        deploy(settings, CASE, champion="2", challenger="1")
        wait_until(lambda: answers[200, "2"] > 100)
    assert set(answers) == {(200, "1"), (200, "2")}
    assert post(f"{url}/predict", row).json()["version"] == "2"


def test_what_a_killed_replica_was_answering_is_answered_by_another(settings, url, models):
    file = settings.project_root / "pipelines" / CASE / "use_case.yaml"
    declared = file.read_text()
    file.write_text(declared.replace("cpus: 0.2", "cpus: 0.2, replicas: 2"))

    def alive() -> set[int]:  # Serve lists a dead one for a while
        return {pid for pid in running_replicas(settings) if psutil.pid_exists(pid)}

    def asked() -> set[str]:  # by HAProxy, each on a new connection
        close = {"Connection": "close"}
        return {requests.get(f"{url}/status", timeout=10, headers=close).json()["replica"] for _ in range(8)}

    try:
        deploy(settings, CASE, champion="1")
        with asking(url, rows_of(models[0])[0]) as answers:
            wait_until(lambda: len(alive()) == 2 and len(asked()) == 2)
            victim = psutil.Process(min(alive()))
            victim.kill()
            victim.wait(10)
            before = answers.total()
            wait_until(lambda: answers.total() > before + 200)
    finally:
        file.write_text(declared)
        deploy(settings, CASE, champion="1")
    assert set(answers) == {(200, "1")}

    def lost():  # of the killed ones the others write what was answered and not in the log yet
        log = read_log(settings, log_root(settings), CASE, "predictions")
        return set(answers.ids) - set(log["request_id"].to_pylist())

    wait_until(lambda: not lost())


def test_the_open_inference_protocol_answers_as_predict_does(url, models):
    frame, _ = models
    rows = rows_of(frame.head(3))
    api = f"{url}/v2/models/{CASE}"
    described = requests.get(api, timeout=10).json()
    assert described["versions"] == ["1", "2"]
    inputs = [
        {"name": one["name"], "datatype": one["datatype"], "shape": [3], "data": [row[one["name"]] for row in rows]}
        for one in described["inputs"]
    ]

    for version in ("1", "2"):
        answer = post(f"{api}/versions/{version}/infer", {"id": "7", "inputs": inputs}).json()
        single = [post(f"{url}/predict", row, **{"X-Shopfloor-Version": version}).json()["prediction"] for row in rows]
        assert answer["outputs"][0]["data"] == pytest.approx(single, abs=1e-6)
        assert (answer["model_version"], answer["id"]) == (version, "7")

    assert requests.get(f"{url}/v2/health/live", timeout=10).json() == {"live": True}
    assert requests.get(f"{api}/ready", timeout=10).json() == {"name": CASE, "ready": True}
    assert requests.get(f"{api}/versions/9/ready", timeout=10).status_code == 404
    assert requests.get(f"{url}/v2/models/other", timeout=10).json()["error"].startswith("There is no model 'other'")
    assert requests.get(f"{api}/infer", timeout=10).status_code == 405
    assert post(f"{api}/infer", {"inputs": inputs[:1]}).status_code == 422


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_with_a_token_file_rows_are_answered_to_those_who_show_a_token(settings, url, models, tmp_path):
    row = rows_of(models[0])[0]
    file = tmp_path / "tokens"
    token, other = (tokens.create(file, name, [case], None) for name, case in (("one", CASE), ("two", OTHER)))
    guarded = settings.model_copy(update={"serve_tokens_file": str(file)})
    deploy(guarded, CASE, champion="1", challenger="2")
    try:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {other}"}):
            for path in ("predict", "invocations", f"v2/models/{CASE}/infer"):
                refused = post(f"{url}/{path}", row, **headers)
                assert refused.status_code == 401
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                assert refused.json() == {"message": "A valid bearer token is needed."}
        assert post(f"{url}/predict", row, Authorization=f"Bearer {token}").status_code == 200
        assert requests.get(f"{url}/readyz", timeout=10).status_code == 200
        assert str(file) not in requests.get(f"{url}/status", timeout=10).text
        for page in ("docs", "openapi.json"):  # the example is a row of the training set
            pages = [requests.get(f"{url}/{page}", headers=headers, timeout=10).text for headers in ({}, bearer(token))]
            assert [str(row["rate_0"]) in text for text in pages] == [False, True]
        deploy(settings, CASE, champion="1", challenger="2")  # from a shell that knows nothing of tokens
        assert post(f"{url}/predict", row).status_code == 401
    finally:
        deploy(settings.model_copy(update={"serve_tokens_file": "none"}), CASE, champion="1", challenger="2")
    assert post(f"{url}/predict", row).status_code == 200


def test_the_replica_counts_what_it_answered_by_version_and_status(url, models):
    row = rows_of(models[0])[0]

    def count(version: str, route: str, status: str) -> float:
        total = 0.0
        for line in requests.get(f"{url}/metrics", timeout=10).text.splitlines():
            if line.startswith("shopfloor_requests_total{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                if (labels["version"], labels["route"], labels["status"]) == (version, route, status):
                    total += float(line.rpartition(" ")[2])
        return total

    before = count("2", "/predict", "200"), count("1", "/predict", "422")
    post(f"{url}/predict", row, **{"X-Shopfloor-Version": "2"})
    post(f"{url}/predict", {})
    assert (count("2", "/predict", "200"), count("1", "/predict", "422")) == (before[0] + 1, before[1] + 1)
    text = requests.get(f"{url}/metrics", timeout=10).text
    assert 'shopfloor_request_seconds_bucket{le="0.005"' in text
    assert "shopfloor_requests_in_flight{" in text


def test_without_a_champion_the_endpoint_says_so(settings, url, models):
    deploy(settings, CASE, champion=None, challenger="2")
    row = rows_of(models[0])[0]
    answer = post(f"{url}/predict", row)
    assert answer.status_code == 503
    assert "No version is champion" in answer.json()["message"]
    assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
    assert requests.get(f"{url}/readyz", timeout=10).status_code == 503
    assert requests.get(f"{url}/v2/health/ready", timeout=10).status_code == 503
    assert post(f"{url}/predict", row, **{"X-Shopfloor-Version": "challenger"}).status_code == 200


def test_a_model_of_another_library_answers_rows_as_its_pyfunc_does(settings, models):
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature
    from shopfloor.serving.model.loading import load_model
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    mlflow.set_tracking_uri(settings.tracking_uri)
    frame = pd.DataFrame({"distance": [1.0, 2.5, 4.0], "carrier": ["UA", "B6", "UA"]})
    numbers, encoder = frame[["distance"]], make_column_transformer((OneHotEncoder(), ["carrier"]), remainder="drop")
    candidates = {
        True: (LinearRegression().fit(numbers, [1, 2, 3]), numbers),  # numbers alone need no DataFrame
        False: (make_pipeline(encoder, LinearRegression()).fit(frame, [1, 2, 3]), frame),
    }
    for quick, (model, rows) in candidates.items():
        with mlflow.start_run():
            info = mlflow.sklearn.log_model(
                model,
                name="model",
                signature=infer_signature(rows, model.predict(rows)),
                input_example=rows.head(1),
                pip_requirements=["scikit-learn"],
                registered_model_name="toy_sklearn",
            )
        served = load_model(settings.tracking_uri, "toy_sklearn", str(info.registered_model_version))
        assert (served.native is not None) is quick
        answers = [json.loads(served.predict(json.dumps(row).encode()))["prediction"] for row in rows_of(rows)]
        assert answers == pytest.approx(model.predict(rows), abs=1e-6)


@pytest.fixture
def artifacts(settings, models, tmp_path, monkeypatch):
    """What `build_features` and `tune` hand on: the features, and the first model."""
    import pipelines

    monkeypatch.setattr(pipelines, "__path__", [*pipelines.__path__, str(settings.project_root / "pipelines")])
    frame, boosters = models
    features, model = tmp_path / "features", tmp_path / "model"
    features.mkdir()
    model.mkdir()
    frame.to_parquet(features / "test.parquet")
    feature_set = FeatureSet(
        feature_service="toy",
        features={name: "int" if name.startswith("count") else "float" for name in frame},
        optional=[name for name in frame if name.startswith("age")],
        target="late",
        entities=[],
        rows={"test": len(frame)},
    )
    (features / "feature_set.json").write_text(feature_set.model_dump_json())
    boosters[0].save_model(model / "model.ubj")
    return str(features), str(model)


def test_golden_requests_pass_for_the_version_that_the_model_became(settings, url, artifacts):
    metrics = Recorder()
    verify(settings, CASE, "1", *artifacts, metrics)
    assert metrics.metrics["golden_rows"] == 20
    assert metrics.metrics["largest_difference"] <= 1e-6


def test_golden_requests_fail_for_another_model_and_name_the_row(settings, url, artifacts):
    with pytest.raises(ShopfloorError, match=r"Version 2 answers differently online: .*for the row \{'count_0'"):
        verify(settings, CASE, "2", *artifacts, Recorder())


def test_the_deploy_step_puts_a_version_beside_the_champion(settings, url):
    deploy(settings, CASE, challenger=None)
    artifact = Recorder()
    introduce(settings, CASE, "2", artifact)
    assert live_versions(settings, CASE) == {"champion": "1", "challenger": "2"}
    record = json.loads((Path(artifact.uri) / "deployment.json").read_text())
    assert record["version"] == artifact.metadata["version"] == "2"
    assert record["deployment_id"] == artifact.metadata["deployment_id"]
    assert record["champion"] == "1"


def test_the_exporter_of_the_ray_node_has_what_the_replica_counted(settings, url):
    discovery, headers = f"{settings.ray_dashboard_url}/api/prometheus/sd", settings.ray_headers()
    groups = requests.get(discovery, headers=headers, timeout=10).json()
    exporters = [f"http://{target}/metrics" for group in groups for target in group["targets"]]

    def names(prefix: str, *addresses: str) -> set[str]:
        lines = [line for address in addresses for line in requests.get(address, timeout=10).text.splitlines()]
        ours = [line for line in lines if line.startswith(f"{prefix}shopfloor_") and f'use_case="{CASE}"' in line]
        return {line.partition("{")[0].removeprefix(prefix) for line in ours if "_created{" not in line}

    assert "shopfloor_request_seconds_bucket" in names("", f"{url}/metrics")
    wait_until(lambda: names("ray_", *exporters) == names("", f"{url}/metrics"), 60, every_s=1)


def test_two_deployers_at_a_time_keep_both_applications_until_one_is_removed(settings, url):
    assert live_versions(settings, OTHER) == {"champion": "1", "challenger": None}
    assert live_versions(settings, CASE) == {"champion": "1", "challenger": "2"}
    undeploy(settings, OTHER)
    assert live_versions(settings, OTHER) == {}
    assert live_versions(settings, CASE) == {"champion": "1", "challenger": "2"}

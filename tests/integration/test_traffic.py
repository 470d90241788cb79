"""Canary, shadow, log and feedback of a real endpoint, and its limits on what it takes at once."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from shopfloor.serving.contract import log_root
from shopfloor.serving.deploy.rollout import NO_TRAFFIC, Traffic, deploy, endpoint, undeploy
from shopfloor.serving.log_files import read_log

from tests.support.endpoints import USE_CASE, declared_traffic, post, register_models, rows_of
from tests.support.waiting import wait_until

CASE = "toy_traffic"
OTHER = "toy_traffic_other"

LIMITED = USE_CASE.replace(
    "max_body_bytes: 100000}}", "max_body_bytes: 100000, max_in_flight: 4, timeout_s: 2, batching: {{wait_ms: 200}}}}"
)


@pytest.fixture(scope="module")
def settings(project):
    return project(**{CASE: USE_CASE.format(name=CASE), OTHER: LIMITED.format(name=OTHER)})


@pytest.fixture(scope="module")
def rows(settings):
    import mlflow

    frame, _ = register_models(settings, CASE, versions=2)
    mlflow.MlflowClient(settings.tracking_uri).copy_model_version(f"models:/{CASE}/1", OTHER)
    deploy(settings, CASE, champion="1", challenger="2")
    return rows_of(frame)


def logged(settings, rows_expected, kind="predictions", use_case=CASE, **columns):
    """Return the log when it holds that many rows with these values."""

    def matching():
        table = read_log(settings, log_root(settings), use_case, kind).to_pylist()
        matches = [row for row in table if all(row[name] == value for name, value in columns.items())]
        return matches if len(matches) >= rows_expected else None

    return wait_until(matching)


def ask_many(url, rows, **headers):
    with requests.Session() as session:
        return [session.post(f"{url}/predict", json=row, headers=headers, timeout=30) for row in rows]


def test_a_canary_gets_its_share_and_the_same_key_the_same_version(settings, rows):
    deploy(settings, CASE, traffic=Traffic(canary_percent=30))
    url = endpoint(settings, CASE)

    answers = ask_many(url, rows[:300])
    versions = [answer.headers["X-Shopfloor-Version"] for answer in answers]
    assert 45 <= versions.count("2") <= 135
    assert versions == [answer.json()["version"] for answer in answers]

    by_key = {
        key: {a.json()["version"] for a in ask_many(url, rows[:5], **{"X-Request-Key": key})} for key in "abcdefgh"
    }
    assert {len(matches) for matches in by_key.values()} == {1}
    assert set.union(*by_key.values()) == {"1", "2"}
    assert declared_traffic(settings, CASE) == Traffic(canary_percent=30)
    roles = {row["role"] for row in logged(settings, 340)}
    assert {"live", "canary"} <= roles


def test_who_asks_for_a_version_gets_it_whatever_the_split(settings, rows):
    deploy(settings, CASE, traffic=Traffic(canary_percent=100))
    url = endpoint(settings, CASE)
    answers = ask_many(url, rows[:5], **{"X-Shopfloor-Version": "1"})
    assert {answer.json()["version"] for answer in answers} == {"1"}
    assert {answer.json()["version"] for answer in ask_many(url, rows[:5])} == {"2"}


def test_a_new_deployment_ends_the_split(settings, rows):
    deploy(settings, CASE, traffic=Traffic(canary_percent=100))
    deploy(settings, CASE, challenger="2")
    assert declared_traffic(settings, CASE) == NO_TRAFFIC
    assert {a.json()["version"] for a in ask_many(endpoint(settings, CASE), rows[:5])} == {"1"}


def test_a_shadow_answers_copies_into_the_log_and_feedback_lands_beside_it(settings, rows):
    deploy(settings, CASE, traffic=Traffic(shadow=True))
    url = endpoint(settings, CASE)

    answers = ask_many(url, rows[:60])
    assert {answer.json()["version"] for answer in answers} == {"1"}
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert len(set(ids)) == 60
    said = post(f"{url}/feedback", {"request_id": ids[0], "outcome": True})
    assert said.status_code == 202

    shadows = {row["request_id"]: row for row in logged(settings, 60, role="shadow")}
    lives = {row["request_id"]: row for row in logged(settings, 1, role="live") if row["request_id"] in shadows}
    assert set(shadows) == set(ids) == set(lives)
    expected = ask_many(url, rows[:60], **{"X-Shopfloor-Version": "2"})
    for request_id, answer, row in zip(ids, expected, rows[:60], strict=True):
        shadow = shadows[request_id]
        assert json.loads(shadow["output"])["prediction"] == pytest.approx(answer.json()["prediction"], abs=1e-6)
        assert json.loads(shadow["inputs"]) == row
        assert (shadow["version"], lives[request_id]["version"]) == ("2", "1")
        assert lives[request_id]["latency_ms"] > 0
    [outcome] = logged(settings, 1, kind="feedback", request_id=ids[0])
    assert outcome["outcome"] == "true"
    metrics = requests.get(f"{url}/metrics", timeout=10).text
    assert "shopfloor_shadow_answers_total" in metrics
    assert "shopfloor_shadow_dropped_total" in metrics


def test_the_client_may_give_the_id_of_its_request(settings, rows):
    answer = post(f"{endpoint(settings, CASE)}/predict", rows[0], **{"X-Request-Id": "order-17"})
    assert answer.headers["X-Request-Id"] == "order-17"
    assert logged(settings, 1, request_id="order-17")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"request_id": "a"}, 422, "outcome"),
        ({"request_id": "", "outcome": 1}, 422, "request_id"),
        ({"request_id": "a", "outcome": [1]}, 422, "outcome"),
        ({"request_id": "a", "outcome": 1, "more": 2}, 422, "more"),
        ([1], 400, "outcome"),
        (b"nothing", 400, "outcome"),
    ],
)
def test_wrong_feedback_is_refused_with_the_field(settings, rows, body, status, field):
    answer = post(f"{endpoint(settings, CASE)}/feedback", body)
    assert answer.status_code == status
    assert field in answer.json()["message"]


def test_a_clean_shutdown_loses_no_prediction(settings, rows):
    deploy(settings, OTHER, champion="1")
    answers = ask_many(endpoint(settings, OTHER), rows[:20])
    undeploy(settings, OTHER)  # well before the next writing of the log

    ids = {row["request_id"] for row in logged(settings, 20, use_case=OTHER)}
    assert {answer.headers["X-Request-Id"] for answer in answers} <= ids


def test_rows_that_come_together_are_answered_together_and_alike(settings, rows):
    deploy(settings, CASE, traffic=Traffic())
    deploy(settings, OTHER, champion="1")
    url = endpoint(settings, OTHER)
    alone = [answer.json()["prediction"] for answer in ask_many(endpoint(settings, CASE), rows[:4])]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda row: post(f"{url}/predict", row).json()["prediction"], rows[:4]))
    assert together == pytest.approx(alone, abs=1e-6)
    batches = [
        line for line in requests.get(f"{url}/metrics", timeout=10).text.splitlines() if "batch_rows_sum" in line
    ]
    assert float(batches[0].rpartition(" ")[2]) >= 4


def test_a_replica_that_is_full_says_come_back(settings, rows):
    deploy(settings, OTHER, champion="1")
    url = endpoint(settings, OTHER)
    with ThreadPoolExecutor(24) as pool:  # each waits 200 ms for its batch, and four may wait
        answers = list(pool.map(lambda row: post(f"{url}/predict", row), rows[:24]))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert {answer.status_code for answer in answers} == {200, 503}
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert post(f"{url}/predict", rows[0]).status_code == 200

"""Two versions that were trained elsewhere, behind tokens: the second steps through a rollout to champion."""

import json
import threading

import numpy as np
import pandas as pd
import pytest
import requests
import xgboost
from shopfloor.serving.deploy.rollout import endpoint, undeploy

from tests.support.endpoints import post, rows_of, shopfloor

CASE = "lender"


@pytest.fixture
def settings(project, tmp_path):
    settings = project().model_copy(update={"serve_tokens_file": str(tmp_path / "tokens.json")})
    yield settings
    undeploy(settings, CASE)


def done(settings, *arguments):
    result = shopfloor(settings, *arguments)
    assert result.returncode == 0, f"{arguments}: {result.stdout}{result.stderr}"
    return result.stdout


def test_an_imported_version_steps_through_a_rollout_behind_tokens(settings, tmp_path):
    random = np.random.default_rng(3)
    frame = pd.DataFrame({"age": random.integers(18, 80, 200), "income": random.normal(size=200)})
    rows = rows_of(frame.head(20))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for number in range(2):
        data = xgboost.DMatrix(frame, label=frame["age"] / 80 + frame["income"] > 0.5)
        model = xgboost.train({"objective": "binary:logistic", "max_depth": 2 + number}, data, 5 + number)
        model.save_model(tmp_path / f"{number}.ubj")
        source, example = tmp_path / f"{number}.ubj", tmp_path / "rows.json"
        done(settings, "models", "import", source, "--name", CASE, "--example", example)
    token = done(settings, "tokens", "create", "shop", "--use-case", CASE).strip()
    case = settings.project_root / "pipelines" / CASE / "use_case.yaml"
    text = case.read_text()
    assert "min_requests: 200" in text
    case.write_text(text.replace("min_requests: 200", "min_requests: 10").replace("max: 100}", "max: 5000}"))
    done(settings, "deploy", f"{CASE}@1")

    url, holder = f"{endpoint(settings, CASE)}/predict", {"Authorization": f"Bearer {token}"}
    assert post(url, rows[0]).status_code == 401
    assert post(url, rows[0], **holder).json()["version"] == "1"
    over, seen, failures = threading.Event(), set(), []

    def ask():
        with requests.Session() as session:
            for number in range(100_000):
                if over.wait(0.02):
                    return
                answer = session.post(url, json=rows[number % len(rows)], headers=holder, timeout=30)
                seen.add(answer.json().get("version"))
                failures.extend([] if answer.ok else [answer.text])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        order = ("rollout", "run", f"{CASE}/2", "--stages", "50,100", "--stage-timeout", "90s", "--yes", "--json")
        result = json.loads(done(settings, *order))
    finally:
        over.set()
        thread.join()
    assert (result["outcome"], result["percent"]) == ("promoted", 100)
    assert {gate["gate"] for gate in result["gates"]} >= {"error_rate", "p99_ms"}
    assert (seen, failures) == ({"1", "2"}, [])
    assert post(url, rows[0]).status_code == 401
    assert post(url, rows[0], **holder).json()["version"] == "2"

    done(settings, "models", "rollback", CASE, "--yes")
    assert post(url, rows[0], **holder).json()["version"] == "1"
    assert post(url, rows[0]).status_code == 401

"""From what a search leaves to a version in a real registry: estimators of scikit-learn, passports, pages of MLflow."""

import contextlib
import importlib
import itertools
import json
import os.path
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from shopfloor import attempts
from shopfloor.errors import NotFoundError, ServiceError, UsageError
from shopfloor.flows.rollout import refuse_what_clients_cannot_ask
from shopfloor.records import Trial
from shopfloor.registry import flavors
from shopfloor.registry.compatibility import concern
from shopfloor.registry.passport import find_passport, read_passport
from shopfloor.registry.register import register
from shopfloor.runs.index import _whole_run
from shopfloor.runs.versions import MODEL_HASH, tagged
from shopfloor.serving.deploy.rollout import deploy
from shopfloor.serving.deploy.verify import verify
from shopfloor.serving.model.loading import load_model
from shopfloor.serving.protocols.mlflow_scoring import invoke
from shopfloor.use_case import ModelSection

from tests.integration.test_golden_requests import change, made
from tests.support.artifacts import Recorder
from tests.support.endpoints import USE_CASE, rows_of

CASE = "toy_sklearn"
MODEL = """
def load(directory):
    import joblib
    return joblib.load(directory / "model.joblib")


def predict(model, frame):
    return model.predict_proba(frame)[:, 1]
"""


@pytest.fixture(scope="module")
def settings(project):
    import pipelines

    settings = project(**{CASE: USE_CASE.format(name=CASE).replace("flavor: xgboost", "flavor: sklearn")})
    (settings.project_root / "pipelines" / CASE / "model.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "__path__", [*pipelines.__path__, str(settings.project_root / "pipelines")])
        yield settings


@pytest.fixture(scope="module")
def client(settings):
    return mlflow.MlflowClient(settings.tracking_uri)


@pytest.fixture(scope="module")
def frame():
    random = np.random.default_rng(5)
    rows = pd.DataFrame(random.normal(size=(200, 3)), columns=["rate_0", "rate_1", "age_0"])
    rows["count_0"] = random.integers(0, 9, 200)
    rows.loc[::7, "age_0"] = None
    return rows


def estimators():
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "boosting": HistGradientBoostingClassifier(max_iter=5),
        "forest": make_pipeline(SimpleImputer(), RandomForestClassifier(5)),
        "regression": make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
        "neighbours": make_pipeline(SimpleImputer(), KNeighborsClassifier()),
        "calibrated": CalibratedClassifierCV(HistGradientBoostingClassifier(max_iter=5), cv=2),
    }


def fitted(directory, frame, kind):
    """What the steps before `register` hand on of an estimator, and the estimator."""
    import joblib

    made_of = made(directory, frame, trial=kind)
    estimator = estimators()[kind].fit(frame, frame["rate_0"] > 0)
    joblib.dump(estimator, f"{made_of['model'].uri}/model.joblib")
    return made_of, estimator


@pytest.mark.parametrize("kind", list(estimators()))
def test_an_estimator_of_scikit_learn_registers_and_answers_its_probability(settings, client, frame, tmp_path, kind):
    made_of, estimator = fitted(tmp_path, frame, kind)
    served = load_model(settings.tracking_uri, CASE, register(settings, CASE, made_of, Recorder()))
    rows, expected = rows_of(frame.head(5)), estimator.predict_proba(frame.head(5))[:, 1]
    assert served.native is not None
    assert [json.loads(served.predict(json.dumps(row).encode()))["prediction"] for row in rows] == pytest.approx(
        expected
    )
    assert served.pyfunc.predict(frame.head(5)) == pytest.approx(expected)
    for body in (
        {"dataframe_records": rows},
        {"dataframe_split": {"columns": list(frame), "data": [list(r.values()) for r in rows]}},
    ):
        answer = invoke(served, json.dumps(body).encode(), "application/json", max_rows=100)
        assert json.loads(answer)["predictions"] == pytest.approx(expected)


def test_an_estimator_of_scikit_learn_goes_from_the_search_to_the_endpoint(settings, client, frame, tmp_path):
    made_of, _ = fitted(tmp_path, frame, "boosting")
    version = register(settings, CASE, made_of, Recorder())
    deploy(settings, CASE, champion=version)
    metrics = Recorder()
    verify(settings, CASE, version, made_of["features"].uri, made_of["model"].uri, metrics)
    assert metrics.metrics["golden_rows"] == 20


@pytest.mark.parametrize("look", [1, 2, 3, 4])
def test_an_attempt_that_was_superseded_registers_nothing(settings, client, frame, tmp_path, monkeypatch, look):
    made_of, _ = fitted(tmp_path, frame, "neighbours")
    made_of["tables"].metadata["content_hash"] = f"tables {look}"  # or it is a version that there is
    settings = settings.model_copy(update={"artifact_root": str(tmp_path / "store")})
    older = settings.model_copy(update={"attempt": str(attempts.claim(settings, "run/register", "older"))})
    before = client.search_model_versions(f"name = '{CASE}'")
    looks = itertools.count(1)

    def begin_another(one):
        if one is older and next(looks) == look:
            attempt = attempts.claim(settings, "run/register", "newer")
            if look < 4:
                newer = settings.model_copy(update={"attempt": str(attempt)})
                after.append(register(newer, CASE, made_of, Recorder()))
        attempts.require_newest(one)

    after = []
    monkeypatch.setattr("shopfloor.registry.register.require_newest", begin_another)
    with pytest.raises(attempts.SupersededError, match="by attempt 2, which newer began"):
        register(older, CASE, made_of, Recorder())

    versions = client.search_model_versions(f"name = '{CASE}'")
    added = {one.version for one in versions} - {one.version for one in before}
    assert added == set(after) or look == 4
    if after:
        assert client.get_model_version_by_alias(CASE, "challenger").version == after[0]
    elif before:
        assert client.get_model_version_by_alias(CASE, "challenger").version not in added


def test_what_predict_computes_beside_the_estimator_is_refused(settings, client, frame, tmp_path, monkeypatch):
    made_of, _ = fitted(tmp_path, frame, "boosting")
    made_of["model"].metadata["content_hash"] = "another"
    code = importlib.import_module(f"pipelines.{CASE}.model")
    monkeypatch.setattr(code, "predict", lambda model, rows: rows["rate_0"].to_numpy())
    with pytest.raises(UsageError, match="predict in model.py answers otherwise than predict and predict_proba"):
        register(settings, CASE, made_of, Recorder())


def test_a_type_of_somebody_else_in_a_model_must_be_named_as_trusted():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    frame = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0]})
    model = make_pipeline(FunctionTransformer(json.dumps), LogisticRegression())
    model.steps[1][1].fit(frame, [0, 0, 1, 1])
    model.steps[0][1].func = os.path.basename
    plain = ModelSection(flavor="sklearn")
    with pytest.raises(UsageError, match="types that nobody said are trusted: .*basename"):
        flavors._trusted_types(model, plain)
    assert flavors._trusted_types(model, ModelSection(trusted=["posixpath.basename"])) == ["posixpath.basename"]


def test_the_same_model_again_is_the_same_version_with_the_passport_that_it_has(settings, client, frame, tmp_path):
    made_of, _ = fitted(tmp_path, frame, "regression")
    version = register(settings, CASE, made_of, Recorder())
    before = read_passport(client, CASE, version)

    run = client.create_run(client.create_experiment("another run"))
    later = settings.model_copy(update={"run_id": run.info.run_id})
    made_of["evaluation"].metadata["content_hash"] = "judged otherwise"
    again = Recorder()
    assert register(later, CASE, made_of, again) == version

    assert read_passport(client, CASE, version) == before
    assert tagged(client, CASE, MODEL_HASH, made_of["model"].metadata["content_hash"])[0] == version
    assert json.loads((Path(again.uri) / "passport.json").read_text())["created"] == before.created.isoformat().replace(
        "+00:00", "Z"
    )


def test_the_page_of_a_version_shows_its_parameters_metrics_gates_and_run(settings, client, frame, tmp_path):
    made_of, _ = fitted(tmp_path, frame, "forest")
    made_of["model"].metadata["content_hash"] = "with parameters"
    best = Trial(trial_id="t", params={"depth": 3}, metrics={}, rounds=1, seconds=1, status="finished")
    (Path(made_of["model"].uri) / "best_trial.json").write_text(best.model_dump_json())
    gate = {"gate": "roc_auc", "bound": ">= 0.6", "value": 0.7, "passed": True}
    change(Path(made_of["evaluation"].uri) / "evaluation.json", lambda content: content.update(gates=[gate]))
    run = client.create_run(
        client.create_experiment("a run"), tags={"mlflow.source.git.commit": "c0ffee", "shopfloor.git_dirty": "false"}
    )
    version = register(settings.model_copy(update={"run_id": run.info.run_id}), CASE, made_of, Recorder())

    model_version = client.get_model_version(CASE, version)
    stored = client.get_logged_model(model_version.source.rpartition("/")[2])
    assert stored.params["depth"] == "3"
    assert {metric.key: metric.value for metric in stored.metrics} == {"roc_auc": 0.7}
    assert "| roc_auc | >= 0.6 | 0.7 | met |" in model_version.description
    assert f"/runs/{run.info.run_id}" in model_version.description
    passport = read_passport(client, CASE, version)
    assert (passport.git_commit, passport.git_dirty) == ("c0ffee", False)


def test_before_a_promotion_by_hand_it_shows_whom_the_version_would_refuse(
    settings, client, frame, tmp_path, monkeypatch
):
    versions = []
    for name, rows in (("all", frame), ("few", frame.drop(columns="rate_1"))):
        (tmp_path / name).mkdir()
        made_of, _ = fitted(tmp_path / name, rows, "boosting")
        made_of["model"].metadata["content_hash"] = name
        versions.append(register(settings, CASE, made_of, Recorder()))
    champion, other = versions
    assert concern(settings, CASE, other, None) == ""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert concern(settings, CASE, champion, champion) == ""
    refusal = f"Clients that ask version {champion}, the champion, may be refused: 'rate_1' is no input any more."
    assert concern(settings, CASE, other, champion) == refusal
    assert list((tmp_path / "temporary").iterdir()) == []

    with pytest.raises(UsageError, match=refusal):
        refuse_what_clients_cannot_ask(settings, CASE, other, champion)


@pytest.mark.parametrize(
    "question",
    [
        lambda client: find_passport(client, "0" * 32),
        lambda client: read_passport(client, "nobody", "1"),
        lambda client: _whole_run(client, "0" * 32),
    ],
)
def test_mlflow_that_does_not_answer_is_not_taken_for_one_that_knows_nothing(settings, client, monkeypatch, question):
    with contextlib.suppress(NotFoundError):
        assert not question(client)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = mlflow.MlflowClient("http://127.0.0.1:1")
    with pytest.raises(ServiceError, match=r"http://127.0.0.1:1 cannot say: .*Connection"):
        question(nobody)

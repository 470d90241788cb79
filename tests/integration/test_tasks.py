"""Use cases that are no binary classification, from the try before a search to the verdict on real requests."""

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from shopfloor.flows.rollout import status
from shopfloor.judging.golden import plain
from shopfloor.records import FeatureSet, Monitored
from shopfloor.registry.register import register
from shopfloor.report import charts
from shopfloor.runs.conclude import ending
from shopfloor.serving import monitoring
from shopfloor.serving.deploy.champion import promote_version
from shopfloor.serving.deploy.rollout import endpoint
from shopfloor.serving.deploy.verify import verify
from shopfloor.storage import local_copy

from tests.integration.test_batch_scoring import result, score
from tests.support.artifacts import Recorder
from tests.support.endpoints import USE_CASE, post, rows_of
from tests.support.judged import judged
from tests.support.waiting import wait_until

REGRESSION, MULTICLASS, OWN = "toy_progression", "toy_wine", "toy_words"
GATES = """
gates:
  metrics: {mae: {max: 60}, r2: {min: 0.3}, costly_misses: {max: 0.5}}
  slices: {mae: {max: 80, min_rows: 20}}
  champion: {rmse: {max_loss: 1}}
  live: {min_requests: 5, metrics: {mae: {max: 60}, costly_misses: {max: 0.9}}}
  drift: {max: 0.5, min_rows: 60}
"""
METRICS = """
METRICS = {"costly_misses": "min"}


def costly_misses(truth, prediction):
    return (abs(truth - prediction) > 60).mean()
"""
MODEL = """
def train(params, data, context):
    from sklearn.linear_model import Ridge
    from sklearn.metrics import mean_absolute_error
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, truth, unseen, unseen_truth = data
    model = make_pipeline(StandardScaler(), Ridge(alpha=params["max_depth"])).fit(rows, truth)
    context.report({"logloss": mean_absolute_error(unseen_truth, model.predict(unseen))}, checkpoint=model)
"""


WINE_GATES = """
gates:
  metrics: {accuracy: {min: 0.9}, log_loss: {max: 0.4}, dear_mistakes: {max: 0.1}}
  slices: {f1_macro: {min: 0.8, min_rows: 20}}
  champion: {roc_auc_ovr: {max_loss: 0.01}}
  live: {min_requests: 5, metrics: {accuracy: {min: 0.5}, dear_mistakes: {max: 0.5}}}
"""
WINE_METRICS = """
METRICS = {"dear_mistakes": "min"}


def dear_mistakes(truth, prediction):
    return ((truth == "barolo") & (prediction == "grignolino")).mean()
"""
WINE_MODEL = (
    MODEL.replace("Ridge(alpha=", "LogisticRegression(C=")
    .replace("import Ridge", "import LogisticRegression")
    .replace("model.predict(unseen)", "model.predict_proba(unseen)")
    .replace("mean_absolute_error", "log_loss")
)


OWN_GATES = """
gates: {metrics: {same_words: {min: 0.9}}}
"""
OWN_METRICS = """
METRICS = {"same_words": "max"}


def same_words(truth, prediction):
    return sum(" ".join(one["words"]) == text for one, text in zip(prediction, truth)) / len(truth)
"""
OWN_MODEL = """
import json

import mlflow

FACTOR = 2


class Words(mlflow.pyfunc.PythonModel):
    def __init__(self, words):
        self.words = words

    def predict(self, context, model_input, params=None):
        return {
            "words": [self.words[:count] for count in model_input["count"].tolist()],
            "twice": (model_input["count"] * FACTOR).tolist(),
        }


def train(params, data, context):
    rows, truth, _, _ = data
    context.report({"logloss": 0.5}, checkpoint=max(truth, key=len).split())


def save(model, directory):
    (directory / "words.json").write_text(json.dumps(model))


def load(directory):
    return Words(json.loads((directory / "words.json").read_text()))


def predict(model, frame):
    return model.predict(None, frame)
"""


def use_case(name, task, target, gates):
    text = USE_CASE.format(name=name).replace("flavor: xgboost", "flavor: sklearn").replace("late", target)
    return text.replace("golden_rows: 20", "golden_rows: 20, slices: [group]") + f"task: {task}\n" + gates


@pytest.fixture(scope="module")
def settings(project):
    import pipelines

    cases = {
        REGRESSION: (use_case(REGRESSION, "regression", "progression", GATES), MODEL, METRICS),
        MULTICLASS: (use_case(MULTICLASS, "multiclass", "cultivar", WINE_GATES), WINE_MODEL, WINE_METRICS),
        OWN: (
            use_case(OWN, "custom", "text", OWN_GATES).replace("flavor: sklearn", "flavor: pyfunc"),
            OWN_MODEL,
            OWN_METRICS,
        ),
    }
    settings = project(**{name: text for name, (text, *_) in cases.items()})
    for name, (_, model, metrics) in cases.items():
        folder = settings.project_root / "pipelines" / name
        (folder / "model.py").write_text(model)
        (folder / "metrics.py").write_text(metrics)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "__path__", [*pipelines.__path__, str(settings.project_root / "pipelines")])
        yield settings


def table(frame, target, classes=()):
    """Return the splits of a table, and what `build_features` says of them; `group` is no input."""
    frame["group"] = np.where(np.arange(len(frame)) % 2, "odd", "even")
    kinds = {
        name: "int" if frame[name].dtype.kind in "iu" else "float" for name in frame.columns.drop([target, "group"])
    }
    parts = {"train": frame.iloc[::2], "validate": frame.iloc[1::4], "test": frame.iloc[3::4]}
    record = FeatureSet(
        feature_service="toy",
        features=kinds,
        optional=[],
        target=target,
        classes=list(classes),
        entities=["group"],
        rows={name: len(part) for name, part in parts.items()},
    )
    return parts, record


def told(url, row, outcome):
    """Ask for a row, say what became of it, and return the prediction."""
    answer = post(f"{url}/predict", row)
    said = post(f"{url}/feedback", {"request_id": answer.headers["X-Request-Id"], "outcome": outcome})
    assert said.status_code == 202
    return answer.json()["prediction"]


def test_a_regression_goes_from_its_search_to_an_endpoint_that_is_judged_by_feedback(settings):
    from sklearn.datasets import load_diabetes

    began = dt.datetime.now(dt.UTC)
    frame = load_diabetes(as_frame=True).frame.rename(columns={"target": "progression"})
    parts, record = table(frame, "progression")

    made_of, evaluation = judged(settings, REGRESSION, parts, record)
    assert evaluation.passed, evaluation.gates
    assert evaluation.headlines == ["mae", "rmse", "r2", "costly_misses"]
    assert {"mae", "rmse", "median_ae", "mape", "r2", "costly_misses"} == evaluation.metrics.keys()
    assert {(one.column, one.value) for one in evaluation.slices} == {("group", "odd")}
    assert all("<svg" in charts.curve(picture) for picture in evaluation.curves)

    version = register(settings, REGRESSION, made_of, Recorder())
    promote_version(settings, REGRESSION, version)
    shown = Recorder()
    verify(settings, REGRESSION, version, made_of["features"].uri, made_of["model"].uri, shown)
    assert shown.metrics["golden_rows"] == 20

    url = endpoint(settings, REGRESSION)
    test = parts["test"].head(6)
    truths = test["progression"].tolist()
    predictions = [
        told(url, row, truth) for row, truth in zip(rows_of(test[list(record.features)]), truths, strict=True)
    ]
    expected = {
        "mae": np.abs(np.array(truths) - predictions).mean(),
        "costly_misses": (np.abs(np.array(truths) - predictions) > 60).mean(),
    }

    def verdict():
        [champion] = status(settings, REGRESSION, began).versions
        return champion if champion.numbers.counts.get("mae") == 6 else None

    champion = wait_until(verdict)
    for name, value in expected.items():
        assert champion.numbers.metrics[name] == pytest.approx(value)
    assert {gate.gate for gate in champion.gates} == {"mae", "costly_misses"}
    assert not any(gate.undecided for gate in champion.gates)

    [answer] = requests.get(f"{url}/v2/models/{REGRESSION}", timeout=30).json()["outputs"]
    assert (answer["datatype"], answer["shape"]) == ("FP64", [-1])


def watched(settings, case, requests_of_it):
    """Run `monitor` on the last hour when the log holds so many requests; return what it found."""

    def looked():
        numbers, monitored = Recorder(), Recorder()
        met = monitoring.monitor(settings, case, "", 1, monitored, numbers)
        file = Path(local_copy(settings, monitored.uri)) / "monitored.json"
        record = Monitored.model_validate_json(file.read_text())
        assert (record.passed, record.as_metrics()) == (met, numbers.metrics)
        return record if record.numbers.requests >= requests_of_it else None

    return wait_until(looked)


def test_requests_that_leave_the_test_set_miss_the_gate_of_drift_in_whatever_protocol_they_come(settings, monkeypatch):
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(as_frame=True).frame.drop(columns="target")
    url, rows = endpoint(settings, REGRESSION), rows_of(frame.iloc[3::4].head(90))
    for row in rows[:30]:
        assert post(f"{url}/predict", row).status_code == 200
    split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows[30:60]]}
    assert post(f"{url}/invocations", {"dataframe_split": split}).status_code == 200
    before = watched(settings, REGRESSION, 37)  # with the six that came with what became of them

    assert before.passed, before.gates
    assert {one.column for one in before.drift} == {*frame.columns, "prediction"}
    assert all(one.rows == 66 for one in before.drift)
    assert before.gates[-1].gate == f"drift[{before.drift[0].column}]"
    assert not before.gates[-1].undecided

    tensors = [
        {"name": name, "datatype": "FP64", "shape": [50], "data": [row[name] + (name == "bmi") for row in rows[:50]]}
        for name in rows[0]
    ]
    assert post(f"{url}/v2/models/{REGRESSION}/infer", {"inputs": tensors}).status_code == 200
    after = watched(settings, REGRESSION, 38)

    assert not after.passed
    assert after.drift[0].column in {"bmi", "prediction"}
    assert {one.column for one in after.drift if one.distance > 0.5} == {"bmi", "prediction"}
    assert all(one.rows == 116 for one in after.drift)
    state, message = ending([], {"monitored": after}, None, None)
    assert state == "gate_missed"
    assert message.startswith(f"Gate missed: drift[{after.drift[0].column}] must be <= 0.5, is 0.")
    assert "<svg" in charts.drift(after.drift[0])

    monkeypatch.setattr(monitoring, "SAMPLE_ROWS", 20)
    some = watched(settings, REGRESSION, 38)
    assert some.numbers.requests == after.numbers.requests
    assert all(20 <= one.rows < 116 for one in some.drift)


def test_the_champion_of_a_regression_is_lost_to_in_the_unit_of_what_is_predicted(settings):
    """A second model that knows one column is worse than the champion by more than its gate allows."""
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(as_frame=True).frame[["s1", "target"]].rename(columns={"target": "progression"})
    parts, record = table(frame, "progression")
    whole = load_diabetes(as_frame=True).frame
    for name, part in parts.items():
        parts[name] = part.join(whole.drop(columns=["s1", "target"]))

    _, evaluation = judged(settings, REGRESSION, parts, record, champion="1")
    assert evaluation.champion_metrics["mae"] < evaluation.metrics["mae"]
    assert [gate.passed for gate in evaluation.gates if gate.gate == "rmse vs champion"] == [False]
    assert [line.name for line in evaluation.curves[0].lines] == ["this model", "champion, version 1"]


def test_a_multiclass_model_answers_a_class_with_probabilities_as_its_documents_say(settings):
    import jsonschema
    from sklearn.datasets import load_wine

    began = dt.datetime.now(dt.UTC)
    names = np.array(["grignolino", "barolo", "barbera"])
    frame = load_wine(as_frame=True).frame.rename(columns={"target": "cultivar", "od280/od315_of_diluted_wines": "od"})
    frame["cultivar"] = names[frame["cultivar"]]
    frame = frame.sample(frac=1, random_state=3).reset_index(drop=True)
    classes = sorted(names.tolist())
    parts, record = table(frame, "cultivar", classes)

    made_of, evaluation = judged(settings, MULTICLASS, parts, record)
    assert evaluation.passed, evaluation.gates
    assert evaluation.headlines == ["accuracy", "f1_macro", "log_loss", "roc_auc_ovr", "dear_mistakes"]
    assert evaluation.confusion.classes == classes
    assert sum(map(sum, evaluation.confusion.counts)) == len(parts["test"])
    assert "<svg" in charts.confusion(evaluation.confusion)
    assert len(evaluation.curves) == 3

    version = register(settings, MULTICLASS, made_of, Recorder())
    promote_version(settings, MULTICLASS, version)
    shown = Recorder()
    verify(settings, MULTICLASS, version, made_of["features"].uri, made_of["model"].uri, shown)
    assert shown.metrics["golden_rows"] == 20

    url = endpoint(settings, MULTICLASS)
    test = parts["test"].head(6)
    rows, truths = rows_of(test[list(record.features)]), test["cultivar"].tolist()
    predictions = [told(url, row, truth) for row, truth in zip(rows, truths, strict=True)]
    described = requests.get(f"{url}/openapi.json", timeout=30).json()["paths"][f"/{MULTICLASS}/predict"]["post"]
    schema = described["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["prediction"]
    assert schema["properties"]["class"] == {"enum": classes}
    for prediction in predictions:
        jsonschema.validate(prediction, schema)
        assert prediction["class"] == max(classes, key=prediction["probabilities"].get)

    def verdict():
        [champion] = status(settings, MULTICLASS, began).versions
        return champion if champion.numbers.counts.get("accuracy") == 6 else None

    champion = wait_until(verdict)
    hits = [truth == prediction["class"] for truth, prediction in zip(truths, predictions, strict=True)]
    assert champion.numbers.metrics["accuracy"] == pytest.approx(sum(hits) / 6)
    assert {"log_loss", "dear_mistakes"} <= champion.numbers.metrics.keys()

    outputs = requests.get(f"{url}/v2/models/{MULTICLASS}", timeout=30).json()["outputs"]
    assert [(one["name"], one["datatype"], one["shape"]) for one in outputs] == [
        ("class", "BYTES", [-1]),
        ("probabilities", "FP64", [-1, 3]),
    ]
    assert outputs[1]["parameters"] == {"classes": classes}
    request = {"inputs": [{"name": n, "datatype": "FP64", "shape": [1], "data": [v]} for n, v in rows[0].items()]}
    answered = post(f"{url}/v2/models/{MULTICLASS}/infer", request).json()["outputs"]
    assert answered[0]["data"] == [predictions[0]["class"]]
    assert answered[1]["data"] == pytest.approx(list(predictions[0]["probabilities"].values()))


def test_a_model_of_ones_own_answers_by_the_code_that_its_version_was_made_with(settings, tmp_path):
    import jsonschema

    words = ["one", "two", "three", "four", "five"]
    frame = pd.DataFrame({"count": [1, 2, 3, 4, 5] * 20})
    frame["text"] = [" ".join(words[:count]) for count in frame["count"]]
    parts, record = table(frame, "text")
    made_of, evaluation = judged(settings, OWN, parts, record)
    assert evaluation.passed, evaluation.gates
    version = register(settings, OWN, made_of, Recorder())
    file = settings.project_root / "pipelines" / OWN / "model.py"
    file.write_text(OWN_MODEL.replace("FACTOR = 2", "FACTOR = 3"))
    promote_version(settings, OWN, version)
    file.write_text(OWN_MODEL)
    shown = Recorder()
    verify(settings, OWN, version, made_of["features"].uri, made_of["model"].uri, shown)
    assert shown.metrics["golden_rows"] == 20

    url = endpoint(settings, OWN)
    answer = post(f"{url}/predict", {"count": 3}).json()["prediction"]
    assert answer == {"words": ["one", "two", "three"], "twice": 6}
    described = requests.get(f"{url}/openapi.json", timeout=30).json()["paths"][f"/{OWN}/predict"]["post"]
    schema = described["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["prediction"]
    assert schema["properties"]["words"] == {"type": "array", "items": {"type": "string"}}
    jsonschema.validate(answer, schema)
    many = post(f"{url}/invocations", {"dataframe_records": [{"count": 1}, {"count": 2}]}).json()["predictions"]
    assert many == {"words": [["one"], ["one", "two"]], "twice": [2, 4]}
    outputs = requests.get(f"{url}/v2/models/{OWN}", timeout=30).json()["outputs"]
    assert [(one["name"], one["datatype"]) for one in outputs] == [("words", "BYTES"), ("twice", "INT64")]

    rows = tmp_path / "rows.parquet"
    frame[["count"]].head(3).to_parquet(rows)
    scored = score(settings, OWN, version, rows, tmp_path / "scored")
    assert plain(result(scored.predictions)["prediction"][1]) == {"words": ["one", "two"], "twice": 4}

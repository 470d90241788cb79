"""A model that was trained elsewhere, from its file to an endpoint: registered, tried beside another, removed."""

import json
import pickle
import sys

import joblib
import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import requests
from mlflow.models import infer_signature
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.flows import importing
from shopfloor.flows.rollout import introduce
from shopfloor.registry import imported
from shopfloor.registry.passport import read_passport
from shopfloor.serving.completion import complete
from shopfloor.serving.deploy.champion import promote_version, roll_back
from shopfloor.serving.deploy.rollout import Traffic, endpoint, live_versions, undeploy
from shopfloor.serving.model.loading import load_model
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tests.integration.test_batch_scoring import score
from tests.support.artifacts import Recorder
from tests.support.endpoints import post, rows_of, shopfloor
from tests.support.waiting import wait_until

NUMBERS = ["age", "income"]


@pytest.fixture(scope="module")
def settings(project):
    settings = project()
    yield settings
    for case in ("churn", "boost"):
        undeploy(settings, case)


@pytest.fixture(scope="module")
def client(settings):
    return mlflow.MlflowClient(settings.tracking_uri)


@pytest.fixture(scope="module")
def table():
    random = np.random.default_rng(11)
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 80, 200),
            "income": random.normal(size=200),
            "plan": random.choice(["basic", "pro", "über"], 200),
        }
    )
    frame["churned"] = (frame["age"] / 50 + frame["income"] + (frame["plan"] == "pro") > 1.5).astype(int)
    return frame


@pytest.fixture(scope="module")
def rows(table):
    return table[[*NUMBERS, "plan"]]


@pytest.fixture(scope="module")
def pipeline(table, rows):
    encoder = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["plan"]), remainder=StandardScaler())
    return make_pipeline(encoder, LogisticRegression()).fit(rows, table["churned"])


@pytest.fixture
def example(rows, tmp_path):
    return written(tmp_path / "rows.json", rows.head(20))


def written(file, frame):
    file.write_text(json.dumps(rows_of(frame)))
    return file


def bring(settings, source, name, example=None, task=None, allow_code=False):
    return importing.import_model(settings, str(source), name, example, task, allow_code, lambda text: None)


def booster(table, seed=0, **parameters):
    import xgboost

    parameters = {"objective": "binary:logistic", "max_depth": 3 + seed, **parameters}
    return xgboost.train(parameters, xgboost.DMatrix(table[NUMBERS], label=table["churned"]), 5)


def names(client):
    return {model.name for model in client.search_registered_models()}


def test_two_commands_lead_from_a_file_to_an_endpoint_and_one_takes_it_away(
    settings, client, pipeline, rows, example, tmp_path
):
    joblib.dump(pipeline, tmp_path / "pipe.joblib")
    brought = shopfloor(
        settings,
        *("models", "import", tmp_path / "pipe.joblib", "--name", "churn"),
        *("--example", example, "--allow-code", "--json"),
    )
    assert brought.returncode == 0, brought.stderr
    version = json.loads(brought.stdout)
    assert version["columns"] == {"age": "double", "income": "double", "plan": "string"}
    assert (version["version"], version["task"], version["golden_rows"]) == ("1", "binary", 20)
    deployed = shopfloor(settings, "deploy", "churn@1")
    assert deployed.returncode == 0, deployed.stderr
    assert "Version 1 of churn answers all requests" in deployed.stdout

    url = endpoint(settings, "churn")
    asked = rows.tail(3)
    answers = [post(f"{url}/predict", row).json()["prediction"] for row in rows_of(asked)]
    assert answers == pytest.approx(pipeline.predict_proba(asked)[:, 1])
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    body = document["paths"]["/churn/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["plan"]["type"] == "string"
    assert post(f"{url}/predict", {"age": 30, "income": "much", "plan": "pro"}).status_code == 422
    shown = shopfloor(settings, "models", "show", "churn/1")
    assert f"from {tmp_path / 'pipe.joblib'}, a pickle" in shown.stdout

    removed = shopfloor(settings, "undeploy", "churn", "--yes")
    assert "The endpoint of churn was removed." in removed.stdout, removed.stderr
    assert live_versions(settings, "churn") == {}
    assert read_passport(client, "churn", "1").imported.sha256 == version["sha256"]


def test_another_version_is_shadow_and_canary_is_promoted_and_taken_back(settings, table, tmp_path):
    example = written(tmp_path / "rows.json", table[NUMBERS].head(5))
    boosters = [booster(table, seed) for seed in range(2)]
    for number, one in enumerate(boosters):
        one.save_model(tmp_path / f"{number}.ubj")
        version = bring(settings, tmp_path / f"{number}.ubj", "boost", example)
        assert version.version == str(number + 1)
        introduce(settings, "boost", version.version, Traffic(canary_percent=50 * number, shadow=bool(number)))
    assert live_versions(settings, "boost") == {"champion": "1", "challenger": "2"}

    url, row = f"{endpoint(settings, 'boost')}/predict", rows_of(table[NUMBERS].tail(1))[0]
    offline = {str(n + 1): load(one, table[NUMBERS].tail(1)) for n, one in enumerate(boosters)}
    seen = {}
    wait_until(lambda: seen.update({(one := post(url, row).json())["version"]: one["prediction"]}) or len(seen) == 2)
    assert seen == pytest.approx(offline, abs=1e-6)
    promote_version(settings, "boost", "2")
    assert post(url, row).json()["version"] == "2"
    assert roll_back(settings, "boost").champion == "1"
    assert post(url, row).json()["version"] == "1"


def load(one, frame):
    import xgboost

    return float(one.predict(xgboost.DMatrix(frame))[0])


def test_a_data_set_is_scored_by_an_imported_version(settings, table, tmp_path):
    one = booster(table)
    one.save_model(tmp_path / "model.json")
    version = bring(settings, tmp_path / "model.json", "scored").version
    # A time makes a use case with features look them up.
    data = table[NUMBERS].assign(event_timestamp=pd.Timestamp("2026-01-01", tz="UTC"))
    data.to_parquet(tmp_path / "rows.parquet")
    completed = complete(settings, "scored", str(tmp_path / "rows.parquet"), "", Recorder("completed"))
    assert completed == str(tmp_path / "rows.parquet")
    score(settings, "scored", version, completed, tmp_path / "out")
    predictions = pq.read_table(tmp_path / "out").to_pandas()["prediction"]
    import xgboost

    assert predictions.to_numpy() == pytest.approx(one.predict(xgboost.DMatrix(table[NUMBERS])), abs=1e-6)


def onnx_classifier(labels):
    """Return what skl2onnx makes of a classifier: a label and a map of probabilities."""
    from onnx import TensorProto, helper

    strings = isinstance(labels[0], str)
    attribute = {"classlabels_strings" if strings else "classlabels_int64s": labels}
    kind = TensorProto.STRING if strings else TensorProto.INT64
    size = len(labels)
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["rows"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            coefficients=np.linspace(-1, 1, 2 * size).tolist(),
            intercepts=[0.1] * size,
            multi_class=0,
            post_transform="SOFTMAX",
            **{"classlabels_strings" if strings else "classlabels_ints": labels},
        ),
        helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", **attribute),
    ]
    mapped = helper.make_sequence_type_proto(
        helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    outputs = [
        helper.make_tensor_value_info("label", kind, [None]),
        helper.make_value_info("probabilities", mapped),
    ]
    graph = helper.make_graph(
        nodes, "toy", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 2])], outputs
    )
    domains = [helper.make_opsetid("ai.onnx.ml", 1), helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


@pytest.mark.parametrize(("labels", "task"), [([0, 1], "binary"), (["a", "b", "c"], "multiclass")])
def test_a_graph_of_a_classifier_answers_its_probabilities(settings, table, tmp_path, labels, task):
    import onnxruntime

    model = onnx_classifier(labels).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(model)
    example = written(tmp_path / "rows.json", table[NUMBERS].head(3))
    version = bring(settings, tmp_path / "model.onnx", f"onnx_{task}", example)
    assert (version.task, version.golden_rows) == (task, 3)
    served = load_model(settings.tracking_uri, f"onnx_{task}", version.version)
    [row] = table[NUMBERS].tail(1).to_numpy(dtype=np.float32).tolist()
    session = onnxruntime.InferenceSession(model)
    [chosen], [expected] = session.run(None, {"rows": np.array([row], dtype=np.float32)})
    answer = json.loads(served.predict(json.dumps(dict(zip(NUMBERS, row, strict=True))).encode()))["prediction"]
    if task == "binary":
        assert answer == pytest.approx(expected[1], abs=1e-6)
    else:
        assert answer["class"] == chosen
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-6)


def test_a_classifier_of_texts_in_a_skops_file_answers_class_and_probabilities(settings, table, tmp_path):
    import skops.io

    forest = RandomForestClassifier(5, random_state=1).fit(table[NUMBERS], table["plan"])
    skops.io.dump(forest, tmp_path / "forest.skops")
    example = written(tmp_path / "rows.json", table[NUMBERS].head(3))
    version = bring(settings, tmp_path / "forest.skops", "forest", example)
    assert version.task == "multiclass"
    served = load_model(settings.tracking_uri, "forest", version.version)
    row = rows_of(table[NUMBERS].tail(1))[0]
    answer = json.loads(served.predict(json.dumps(row).encode()))["prediction"]
    assert answer["class"] == forest.predict(table[NUMBERS].tail(1))[0]
    assert set(answer["probabilities"]) == {"basic", "pro", "über"}


def test_an_estimator_that_stopped_early_answers_with_its_best_rounds(settings, table, tmp_path):
    import xgboost

    estimator = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=2, learning_rate=1.0)
    train, rest = table.head(100), table.tail(100)
    estimator.fit(train[NUMBERS], train["churned"], eval_set=[(rest[NUMBERS], rest["churned"])], verbose=False)
    assert estimator.best_iteration + 1 < estimator.get_booster().num_boosted_rounds()
    joblib.dump(estimator, tmp_path / "early.joblib")
    version = bring(settings, tmp_path / "early.joblib", "early", allow_code=True)
    served = load_model(settings.tracking_uri, "early", version.version)
    row = table[NUMBERS].tail(1)
    answer = json.loads(served.predict(json.dumps(rows_of(row)[0]).encode()))["prediction"]
    assert answer == pytest.approx(float(estimator.predict_proba(row)[0, 1]), abs=1e-6)


def test_a_model_of_mlflows_comes_from_a_directory_and_from_a_registry(settings, client, pipeline, rows, tmp_path):
    signature = infer_signature(rows, pipeline.predict(rows))
    mlflow.sklearn.save_model(
        pipeline, tmp_path / "model", signature=signature, input_example=rows.head(1), pip_requirements=[]
    )
    example = written(tmp_path / "rows.json", rows.head(7))
    first = bring(settings, tmp_path / "model", "taken_over", example)
    assert (first.task, first.golden_rows, first.columns["age"]) == ("binary", 7, "long")
    again = bring(settings, f"models:/taken_over/{first.version}", "taken_again")
    assert (again.version, again.golden_rows, again.source) == ("1", 7, "models:/taken_over/1")
    served = load_model(settings.tracking_uri, "taken_again", "1")
    answer = json.loads(served.predict(json.dumps(rows_of(rows.tail(1))[0]).encode()))["prediction"]
    assert answer == pipeline.predict(rows.tail(1))[0]


def test_a_model_of_tensors_brings_its_signature_and_no_golden_rows(settings, client, tmp_path):
    import mlflow.onnx

    pixels = np.zeros((1, 3, 8, 8), dtype=np.float32)
    signature = infer_signature({"pixels": pixels}, {"same": pixels})
    mlflow.onnx.save_model(pictures(), tmp_path / "model", signature=signature, pip_requirements=[])
    version = bring(settings, tmp_path / "model", "pictures")
    assert (version.columns, version.golden_rows) == ({}, 0)
    assert load_model(settings.tracking_uri, "pictures", "1").rows is None
    example = written(tmp_path / "rows.json", pd.DataFrame({"pixels": [1.0]}))
    assert_refused(settings, client, "model takes no rows of an example", tmp_path / "model", example=example)


class _Answering(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["income"] * 2


def test_a_model_of_functions_needs_leave_for_its_code(settings, rows, tmp_path):
    # As a module that replicas cannot import, the class would be stored by name.
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    signature = infer_signature(rows[["income"]], rows["income"])
    mlflow.pyfunc.save_model(tmp_path / "model", python_model=_Answering(), signature=signature, pip_requirements=[])
    with pytest.raises(UsageError, match=r"model is loaded by mlflow.pyfunc.model: loading it runs whatever code"):
        bring(settings, tmp_path / "model", "functions")
    example = written(tmp_path / "rows.json", rows[["income"]].head(2))
    assert bring(settings, tmp_path / "model", "functions", example, allow_code=True).golden_rows == 2


def test_the_same_again_is_the_same_version_and_leaves_the_file_as_a_person_changed_it(settings, table, tmp_path):
    booster(table, seed=4).save_model(tmp_path / "model.ubj")
    first = bring(settings, tmp_path / "model.ubj", "same")
    file = settings.project_root / first.file
    file.write_text(file.read_text().replace("replicas: 1", "replicas: 2"))
    assert bring(settings, tmp_path / "model.ubj", "same") == first
    assert "replicas: 2" in file.read_text()


class Dying:
    """A client of MLflow whose process is killed after so many requests: nothing that it would clean up is cleaned."""

    def __init__(self, client, lives):
        self._client, self.lives = client, lives

    def __getattr__(self, name):
        value = getattr(self._client, name)
        if not callable(value):
            return value

        def call(*arguments, **options):
            if self.lives <= 0:
                raise KeyboardInterrupt
            self.lives -= 1
            return value(*arguments, **options)

        return call


def test_an_import_that_is_killed_at_any_request_goes_on_when_it_is_asked_again(
    settings, client, table, tmp_path, monkeypatch
):
    booster(table, seed=3).save_model(tmp_path / "model.ubj")
    connect, lives = importing.connect, 0
    while True:
        dying = Dying(connect(settings), lives)
        monkeypatch.setattr(importing, "connect", lambda _, dying=dying: dying)
        try:
            bring(settings, tmp_path / "model.ubj", "killed")
            break
        except KeyboardInterrupt:
            lives += 1
    assert lives > 8
    [version] = client.search_model_versions("name = 'killed'")
    assert client.get_model_version_by_alias("killed", "challenger").version == version.version == "1"
    assert read_passport(client, "killed", "1").imported.golden_rows == 0
    assert load_model(settings.tracking_uri, "killed", "1").rows is not None
    assert (settings.project_root / "pipelines/killed/use_case.yaml").is_file()
    experiment = client.get_experiment_by_name("killed").experiment_id
    assert len(client.search_runs([experiment])) == 1


def a_directory_that_is_no_model(folder, table):
    (folder / "things").mkdir()
    return folder / "things", r"The directory .*things is no MLflow model: it has no file MLmodel"


def a_missing_file(folder, table):
    return folder / "nothing.onnx", r"There is no file and no directory .*nothing.onnx"


def an_empty_file(folder, table):
    (folder / "model.ubj").write_bytes(b"")
    return folder / "model.ubj", r"model.ubj is empty"


def a_broken_graph(folder, table):
    (folder / "model.onnx").write_text("no graph")
    return folder / "model.onnx", r"model.onnx cannot be read as an ONNX file: "


def a_broken_booster(folder, table):
    (folder / "model.json").write_text('{"learner": 1}')
    return folder / "model.json", r"model.json cannot be read as an XGBoost file: "


def something_else(folder, table):
    (folder / "model.csv").write_text("a,b\n1,2\n")
    return folder / "model.csv", r"model.csv is no model of a kind that is known here"


def a_pickle_without_leave(folder, table):
    (folder / "model.bin").write_bytes(pickle.dumps({"a": 1}))
    return folder / "model.bin", r"model.bin is a pickle: loading it runs whatever code"


def no_signature_and_no_example(folder, table):
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(table[NUMBERS], table["churned"])
    mlflow.sklearn.save_model(model, folder / "model", serialization_format="skops", pip_requirements=[])
    return folder / "model", r"model has no signature, and there is no example to tell them by"


def pictures():
    """Return a graph that takes pictures of 8 by 8 in three colours."""
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3, 8, 8]) for name in ("pixels", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["same"])], "toy", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def a_graph_of_pictures(folder, table):
    (folder / "model.onnx").write_bytes(pictures().SerializeToString())
    return folder / "model.onnx", r"model.onnx takes 'pixels', tensor\(float\) of shape .*: no columns of a row"


def a_version_that_does_not_exist(folder, table):
    return "models:/nobody/7", r"models:/nobody/7 cannot be read: .*not found"


@pytest.mark.parametrize(
    "make",
    [
        a_directory_that_is_no_model,
        a_missing_file,
        an_empty_file,
        a_broken_graph,
        a_broken_booster,
        something_else,
        a_pickle_without_leave,
        no_signature_and_no_example,
        a_graph_of_pictures,
        a_version_that_does_not_exist,
    ],
)
def test_what_is_no_model_gets_one_line_and_leaves_nothing(settings, client, table, tmp_path, make):
    source, message = make(tmp_path, table)
    assert_refused(settings, client, message, source)


def assert_refused(settings, client, message, source, **options):
    before = names(client)
    with pytest.raises(UsageError, match=message) as refused:
        bring(settings, source, "refused", **options)
    assert "\n" not in str(refused.value)
    assert names(client) == before
    assert not (settings.project_root / "pipelines" / "refused").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="income"), r"rows.json does not fit model.ubj: it lacks 'income'"),
        (lambda rows: rows.assign(plan="pro"), r"it has 'plan', which it does not take. It takes 'age', 'income'"),
        (lambda rows: rows.assign(income="much"), r"does not answer .*rows.json: "),
    ],
)
def test_an_example_that_does_not_fit_gets_one_line(settings, client, table, tmp_path, change, message):
    booster(table).save_model(tmp_path / "model.ubj")
    example = written(tmp_path / "rows.json", change(table[NUMBERS].head(2)))
    assert_refused(settings, client, message, tmp_path / "model.ubj", example=example)


def test_a_row_that_the_signature_refuses_is_named(settings, client, pipeline, rows, tmp_path):
    signature = infer_signature(rows, pipeline.predict(rows))
    mlflow.sklearn.save_model(pipeline, tmp_path / "model", signature=signature, pip_requirements=[])
    example = written(tmp_path / "rows.json", rows.head(2).assign(age=[30.5, 40.0]))
    message = r"rows.json: row 1: age: must be a whole number"
    assert_refused(settings, client, message, tmp_path / "model", example=example)


@pytest.mark.parametrize(("library", "start"), [("lightgbm", b"tree\n"), ("onnx", b"\x08")])
def test_a_library_that_is_not_installed_is_named_with_how_to_get_it(
    settings, client, tmp_path, monkeypatch, library, start
):
    file = tmp_path / "model.onnx"
    file.write_bytes(start)
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"and {library} is not installed here. Add {library} to requirements/runtime.in"
    assert_refused(settings, client, message, file)


def test_a_name_that_is_taken_is_refused(settings, client, table, tmp_path):
    booster(table).save_model(tmp_path / "model.ubj")
    folder = settings.project_root / "pipelines" / "own_code"
    folder.mkdir(parents=True)
    (folder / "model.py").touch()
    with pytest.raises(UsageError, match="pipelines/own_code holds code already"):
        bring(settings, tmp_path / "model.ubj", "own_code")
    client.create_registered_model("trained_here")
    client.create_model_version("trained_here", "shopfloor:/trained_here", tags={imported.INPUTS: "0"})
    with pytest.raises(UsageError, match="Version 1 of trained_here was made by a pipeline"):
        bring(settings, tmp_path / "model.ubj", "trained_here")
    bring(settings, tmp_path / "model.ubj", "binary_one")
    booster(table, objective="reg:squarederror").save_model(tmp_path / "other.ubj")
    with pytest.raises(UsageError, match=r"other.ubj is a regression model, and .*use_case.yaml says binary"):
        bring(settings, tmp_path / "other.ubj", "binary_one")


def test_a_version_that_is_not_there_is_not_deployed(settings, table, tmp_path):
    booster(table).save_model(tmp_path / "model.ubj")
    bring(settings, tmp_path / "model.ubj", "few")
    with pytest.raises(NotFoundError, match="There is no version 9 of a model 'few'"):
        introduce(settings, "few", "9", Traffic())


class Shouts(mlflow.pyfunc.PythonModel):
    """Answers a list of texts a row."""

    def predict(self, context, model_input, params=None):
        return [
            [text.upper()] * int(age // 20) for text, age in zip(model_input["plan"], model_input["age"], strict=True)
        ]


def test_a_python_model_is_imported_where_somebody_trusts_its_code(settings, rows, tmp_path):
    place = tmp_path / "shouts"
    mlflow.pyfunc.save_model(place, python_model=Shouts(), pip_requirements=["mlflow"])
    example = written(tmp_path / "rows.json", rows.head(5))
    with pytest.raises(UsageError, match="shouts is loaded by mlflow.pyfunc.model: loading it runs whatever code"):
        bring(settings, place, "shouts", example)

    version = bring(settings, place, "shouts", example, allow_code=True)
    assert (version.task, version.golden_rows, version.columns["plan"]) == ("custom", 5, "string")
    served = load_model(settings.tracking_uri, "shouts", version.version)
    assert served.many([[45.0, 0.0, "pro"]]) == [["PRO", "PRO"]]
    assert served.known_answers[1:] == tuple(Shouts().predict(None, rows.head(5)))

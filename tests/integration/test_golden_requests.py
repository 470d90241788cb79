"""Golden requests that a version brings along, on a real registry and endpoint: asked before it gets requests."""

import gc
import json
import tempfile

import numpy as np
import pytest
import requests
from mlflow.exceptions import MlflowException
from shopfloor.errors import ShopfloorError
from shopfloor.judging import golden
from shopfloor.records import Checks, DataVersion, Evaluation, FeatureSet, Trial
from shopfloor.registry import register as registry
from shopfloor.runs.mlflow import EXTRA_FILES
from shopfloor.serving.deploy.champion import promote_version
from shopfloor.serving.deploy.rollout import deploy, endpoint, live_versions
from shopfloor.serving.deploy.verify import verify
from shopfloor.serving.model import loading as predictors
from shopfloor.serving.model.loading import AnswersDifferently, load_model
from shopfloor.serving.model.native import Native, one_of

from tests.integration.test_native_ways import linear
from tests.support.artifacts import Recorder
from tests.support.endpoints import USE_CASE, offline, post, register_models, rows_of

CASE = "toy_golden"
BY_HAND = "toy_by_hand"
ONNX, PYTORCH = "toy_onnx", "toy_pytorch"
GOOD, BAD = "1", "2"

ONNX_MODEL = """
def load(directory):
    import onnx
    return onnx.load(directory / "model.onnx")


def predict(model, frame):
    import numpy as np
    import onnxruntime
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"rows": frame.to_numpy(np.float32)})[0]
"""
PYTORCH_MODEL = """
def load(directory):
    import torch
    return torch.load(directory / "model.pt", weights_only=False)


def predict(model, frame):
    import numpy as np
    import torch
    with torch.no_grad():
        return model.eval()(torch.tensor(frame.to_numpy(np.float32))).numpy()
"""


@pytest.fixture(scope="module")
def settings(project):
    texts = {name: USE_CASE.format(name=name) for name in (CASE, ONNX, PYTORCH)}
    for name, flavor in ((ONNX, "onnx"), (PYTORCH, "pytorch")):
        texts[name] = texts[name].replace("flavor: xgboost", f"flavor: {flavor}")
    settings = project(**texts)
    for name, code in ((ONNX, ONNX_MODEL), (PYTORCH, PYTORCH_MODEL)):
        (settings.project_root / "pipelines" / name / "model.py").write_text(code)
    return settings


@pytest.fixture(scope="module")
def models(settings):
    """Rows and boosters; the first booster is version 1 of another model, registered with plain MLflow."""
    return register_models(settings, BY_HAND, versions=1)


@pytest.fixture(scope="module", autouse=True)
def _use_cases(settings):
    import pipelines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "__path__", [*pipelines.__path__, str(settings.project_root / "pipelines")])
        yield


@pytest.fixture(scope="module")
def versions(settings, models, tmp_path_factory):
    """Two versions as a pipeline registers them; the first is champion, the second comes to the tests."""
    frame, [booster] = models
    for version in (GOOD, BAD):
        made_of = made(tmp_path_factory.mktemp("made"), frame, trial=version)
        booster.save_model(f"{made_of['model'].uri}/model.ubj")
        assert registry.register(settings, CASE, made_of, Recorder()) == version
    promote_version(settings, CASE, GOOD)


@pytest.fixture
def file(settings, servers, versions):
    """The second version's file where the MLflow server keeps it; as it was again after the test."""
    import mlflow

    model_id = mlflow.MlflowClient(settings.tracking_uri).get_model_version(CASE, BAD).source.rpartition("/")[2]
    [file] = (servers.state_dir / "mlflow").rglob(f"{model_id}/**/{EXTRA_FILES}/{golden.FILE}")
    content = file.read_bytes()
    yield file
    file.write_bytes(content)


def made(directory, frame, trial):
    """What the steps before `register` hand on, as far as it reads them; the model itself is left to the caller."""
    columns = {name: "int" if name.startswith("count") else "float" for name in frame}
    version = DataVersion(path="data/toy", md5="0", rev="", commit="", tables=[])
    evaluation = Evaluation.model_construct(metrics={"roc_auc": 0.7}, champion=None, gates=[])
    optional = [name for name in columns if frame[name].isna().any()]
    feature_set = FeatureSet(
        feature_service="toy",
        features=columns,
        optional=optional,
        target="late",
        entities=[],
        rows={"test": len(frame)},
    )
    best = Trial(trial_id=trial, params={}, metrics={}, rounds=1, seconds=1, status="finished")
    records = {
        "tables": {"data_version.json": version},
        "checks": {"checks.json": Checks(success=True, checks=[])},
        "features": {"feature_set.json": feature_set},
        "model": {"best_trial.json": best},
        "evaluation": {"evaluation.json": evaluation},
    }
    artifacts = {}
    for name, contents in records.items():
        (directory / name).mkdir()
        for file, record in contents.items():
            (directory / name / file).write_text(json.dumps(_complete(record)))
        artifacts[name] = Recorder()
        artifacts[name].uri, artifacts[name].metadata = str(directory / name), {"content_hash": f"{name}-{trial}"}
    for split in ("train", "test"):
        frame.to_parquet(directory / "features" / f"{split}.parquet")
    return artifacts


def _complete(record):
    content = record.model_dump(mode="json")
    if isinstance(record, Evaluation):
        empty = {"champion_metrics": {}, "slices": [], "importance": {}}
        content |= {"rows": 1, "passed": True, **empty}
    return content


def change(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def another_prediction(content):
    content["predictions"][3] += 0.25


def test_a_version_brings_rows_and_what_its_model_answered_offline(settings, models, file):
    import pandas as pd

    record = golden.read(file.parents[1])
    assert len(record.rows) == 20
    assert any(row["age_0"] is None for row in record.rows)
    rows = pd.DataFrame(record.rows).astype({"age_0": float})
    assert record.predictions == pytest.approx(offline(models[1][0], rows), abs=1e-9)
    served = load_model(settings.tracking_uri, CASE, BAD)
    assert served.native is not None
    deploy(settings, CASE, champion=GOOD, challenger=BAD)
    assert live_versions(settings, CASE) == {"champion": GOOD, "challenger": BAD}
    deploy(settings, CASE, challenger=None)


def test_a_version_that_answers_otherwise_never_replaces_the_live_one_and_says_why(settings, models, file):
    change(file, another_prediction)
    why = r"Version 2 of toy_golden does not load: AnswersDifferently: golden row 3 is answered 0\.\d+, and was \d\.\d+"
    with pytest.raises(ShopfloorError, match=why) as refused:
        deploy(settings, CASE, champion=BAD)
    assert "\n" not in str(refused.value)
    with pytest.raises(ShopfloorError, match=why):
        promote_version(settings, CASE, BAD)
    assert live_versions(settings, CASE) == {"champion": GOOD, "challenger": None}
    url = endpoint(settings, CASE)
    assert post(f"{url}/predict", rows_of(models[0])[0]).json()["version"] == GOOD
    assert "golden row 3" in requests.get(f"{url}/status", timeout=10).json()["errors"][BAD]


def test_a_version_registered_by_hand_has_none_and_loads(settings, models):
    assert load_model(settings.tracking_uri, BY_HAND, "1").native is not None


def test_the_files_of_a_version_go_when_it_does(settings, models, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    served = load_model(settings.tracking_uri, BY_HAND, "1")
    assert list(tmp_path.rglob("MLmodel"))
    del served
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(MlflowException):
        load_model(settings.tracking_uri, BY_HAND, "99")
    assert not list(tmp_path.iterdir())


def test_a_quick_way_that_is_wrong_for_a_golden_row_only_is_not_taken(settings, models, versions, monkeypatch):
    right = predictors.native

    def wrong_without_an_age(*model):
        way = right(*model)

        def matrix(rows):  # the example has every value
            return np.where(np.isnan(rows).any(axis=1), 0.0, way.matrix(rows))

        return Native(matrix, one_of(matrix))

    monkeypatch.setattr(predictors, "native", wrong_without_an_age)
    served = load_model(settings.tracking_uri, CASE, GOOD)
    assert served.native is None
    rows = models[0].head(5)
    answers = [json.loads(served.predict(json.dumps(row).encode()))["prediction"] for row in rows_of(rows)]
    assert answers == pytest.approx(offline(models[1][0], rows), abs=1e-6)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda content: content["rows"][2].update(count_0="seven"), "golden row 2 is refused: count_0"),
        (lambda content: content["rows"][2].pop("rate_0"), "golden row 2 is refused: rate_0"),
        (lambda content: content["predictions"].__setitem__(1, [0.5, 0.5]), "golden row 1 is answered"),
    ],
)
def test_a_golden_row_that_the_version_does_not_take_is_named(settings, file, edit, why):
    change(file, edit)
    with pytest.raises(AnswersDifferently, match=why):
        load_model(settings.tracking_uri, CASE, BAD)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x80\x04 a pickle", "cannot be read: Invalid JSON"),
        (b'{"rows": [], "predictions": []}', "cannot be read: rows"),
        (b'{"rows": [{}], "predictions": [NaN]}', "cannot be read: predictions.0"),
        (b'{"rows": [{}], "predictions": []}', "1 rows and 0 predictions"),
        (b"[" * 100_000, "cannot be read: Invalid JSON"),
        (b" " * (golden.MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_in_one_line(settings, file, content, why):
    file.write_bytes(content)
    with pytest.raises(ShopfloorError, match=why) as refused:
        load_model(settings.tracking_uri, CASE, BAD)
    assert "\n" not in str(refused.value)


def test_a_graph_of_onnx_goes_from_the_search_to_the_endpoint(settings, models, tmp_path):
    import onnx

    frame = models[0][["rate_0", "rate_1", "rate_2"]]
    made_of = made(tmp_path, frame, trial="1")
    onnx.save(linear("FLOAT", np.float32), f"{made_of['model'].uri}/model.onnx")
    assert_registered_and_answering(settings, ONNX, made_of)


def test_a_module_of_pytorch_goes_from_the_search_to_the_endpoint(settings, models, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is too large for the lock: pip install torch")
    frame = models[0][["rate_0", "rate_1", "rate_2"]]
    made_of = made(tmp_path, frame, trial="1")
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Sigmoid()), f"{made_of['model'].uri}/model.pt")
    assert_registered_and_answering(settings, PYTORCH, made_of)


def assert_registered_and_answering(settings, case, made_of):
    metrics = Recorder()
    version = registry.register(settings, case, made_of, Recorder())
    deploy(settings, case, champion=version)
    verify(settings, case, version, made_of["features"].uri, made_of["model"].uri, metrics)
    assert metrics.metrics["golden_rows"] == 20
    status = requests.get(f"{endpoint(settings, case)}/status", timeout=10).json()
    assert status["loaded"][version] == {"native": True}

"""A model on its test set beside the champions of a real registry: the best of them counts, and whom it refuses."""

import json
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import xgboost
from mlflow.models import infer_signature
from shopfloor import storage
from shopfloor.judging.evaluate import evaluate
from shopfloor.records import Evaluation, FeatureSet
from shopfloor.runs.versions import PROMOTED, ROLLED_BACK
from shopfloor.settings import Settings

from tests.support.artifacts import Recorder
from tests.support.endpoints import MODEL, USE_CASE, file_registry

CASE = "toy_judged"
GATES = "gates: {champion: {roc_auc: {max_loss: 0.01}}}\n"


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(3)
    frame = pd.DataFrame(random.normal(size=(600, 3)), columns=["a", "b", "c"])
    frame["late"] = (frame.a + frame.b + frame.c + random.normal(size=600) > 0).astype(int)
    return frame


def trained(rows, *columns):
    matrix = xgboost.DMatrix(rows[list(columns)], label=rows["late"])
    return xgboost.train({"objective": "binary:logistic", "max_depth": 2}, matrix, 20)


@pytest.fixture(scope="module")
def settings(rows, tmp_path_factory):
    """A project with three versions: 1 knows all columns, 2 one of them, 3 two; 3 is the champion."""
    import pipelines

    root = tmp_path_factory.mktemp("project")
    folder = root / "pipelines" / CASE
    folder.mkdir(parents=True)
    (folder / "use_case.yaml").write_text(USE_CASE.format(name=CASE) + GATES)
    (folder / "model.py").write_text(MODEL)
    uri, experiment = file_registry(root)
    client = mlflow.MlflowClient(uri)
    for number, columns in enumerate((["a", "b", "c"], ["a"], ["a", "b"]), 1):
        booster = trained(rows, *columns)
        signature = infer_signature(rows[columns], booster.predict(xgboost.DMatrix(rows[columns])))
        with mlflow.start_run(experiment_id=experiment):
            mlflow.xgboost.log_model(
                booster, name="model", signature=signature, pip_requirements=[], registered_model_name=CASE
            )
        promoted = json.dumps({"when": f"2026-11-2{number}T00:00:00Z"})
        client.set_model_version_tag(CASE, str(number), PROMOTED, promoted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "__path__", [*pipelines.__path__, str(root / "pipelines")])
        yield Settings(
            project_root=root, state_dir=root / "state", artifact_root=str(root / "artifacts"), tracking_uri=uri
        )


def judged(settings, rows, booster, *columns, champion="3"):
    """Return whether a model of these columns passes, and its evaluation; the other columns are in its rows too."""
    features, model, evaluation = Recorder(), Recorder(), Recorder()
    record = FeatureSet(
        feature_service="toy",
        features=dict.fromkeys(columns, "float"),
        optional=[],
        target="late",
        entities=[],
        rows={"test": len(rows)},
    )
    with storage.publish(settings, features, "features") as directory:
        rows.to_parquet(directory / "test.parquet")
        (directory / "feature_set.json").write_text(record.model_dump_json())
    with storage.publish(settings, model, "model") as directory:
        booster.save_model(directory / "model.ubj")
    passed = evaluate(settings, CASE, features.uri, model.uri, champion, evaluation, Recorder())
    text = (Path(evaluation.uri) / "evaluation.json").read_text()
    return passed, Evaluation.model_validate_json(text)


def test_a_loss_counts_from_the_best_of_the_last_champions_and_no_copy_of_them_stays(
    settings, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    passed, evaluation = judged(settings, rows, trained(rows, "a", "b"), "a", "b")
    assert evaluation.champion == "3"
    assert evaluation.metrics["roc_auc"] == pytest.approx(evaluation.champion_metrics["roc_auc"])
    gate, signature = evaluation.gates
    assert not gate.passed
    assert gate.note.startswith("version 1, a champion before version 3, has 0.")
    assert signature.passed
    assert not passed
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_rolled_back_counts_no_more_nor_one_beyond_the_window(settings, rows, monkeypatch):
    client = mlflow.MlflowClient(settings.tracking_uri)
    client.set_model_version_tag(CASE, "1", ROLLED_BACK, "{}")
    try:
        assert judged(settings, rows, trained(rows, "a", "b"), "a", "b")[0]
    finally:
        client.delete_model_version_tag(CASE, "1", ROLLED_BACK)
    file = settings.project_root / "pipelines" / CASE / "use_case.yaml"
    text = file.read_text()
    file.write_text(text.replace("gates: {", "gates: {champion_window: 2, "))
    try:
        assert judged(settings, rows, trained(rows, "a", "b"), "a", "b")[0]
    finally:
        file.write_text(text)


def test_a_version_that_takes_other_rows_than_the_champion_misses_its_gate_with_the_column(settings, rows):
    passed, evaluation = judged(settings, rows, trained(rows, "a", "b", "c"), "a", "b", "c")
    signature = evaluation.gates[-1]
    assert (signature.gate, signature.bound, signature.passed) == ("signature", "compatible", False)
    assert signature.note == "against version 3: 'c' is new and required"
    assert not passed


def test_without_a_champion_there_is_nobody_to_refuse(settings, rows):
    passed, evaluation = judged(settings, rows, trained(rows, "a"), "a", champion="")
    assert passed
    assert [gate.gate for gate in evaluation.gates] == ["roc_auc vs champion"]
    assert [line.name for line in evaluation.curves[1].lines] == ["this model"]


def test_both_curves_are_in_the_picture(settings, rows):
    _, evaluation = judged(settings, rows, trained(rows, "a", "b"), "a", "b", champion="2")
    assert [line.name.partition(",")[0] for line in evaluation.curves[0].lines] == ["this model", "champion"]

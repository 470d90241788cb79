"""A task of a use case's own: labels and answers are whatever its metrics.py can judge."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from shopfloor.data import building
from shopfloor.errors import UsageError
from shopfloor.judging import live
from shopfloor.judging.metrics import of_use_case
from shopfloor.judging.offline import ask_offline
from shopfloor.records import FeatureSet
from shopfloor.settings import Settings
from shopfloor.storage import local_copy
from shopfloor.use_case import load_use_case

from tests.support.artifacts import Recorder
from tests.support.cases import KEPT_BY_SKOPS
from tests.support.judged import judged

CASE = "toy_addresses"
USE_CASE = f"""
name: {CASE}
task: custom
data: {{path: data/toy, tables: [addresses]}}
features: {{source: addresses, target: street, split: {{by: random}}}}
search: {{metric: m, mode: max, trials: 1, space: {{max_depth: {{type: int, low: 2, high: 3}}}}}}
evaluation: {{golden_rows: 5}}
model: {{flavor: sklearn}}
gates: {{metrics: {{same_letters: {{min: 0.5}}}}, live: {{min_requests: 2, metrics: {{same_letters: {{min: 0.9}}}}}}}}
"""
METRICS = """
METRICS = {"same_letters": "max"}


def same_letters(truth, prediction):
    pairs = [zip(one, other) for one, other in zip(truth, prediction)]
    return sum(a == b for pair in pairs for a, b in pair) / sum(map(len, truth))
"""
MODEL = (
    """
def prepare(train, validate, target):
    return train.drop(columns=target), train[target]


def train(params, data, context):
    from sklearn.naive_bayes import GaussianNB
    context.report({"m": 1.0}, checkpoint=GaussianNB().fit(*data))
"""
    + KEPT_BY_SKOPS
)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    import pipelines

    folder = tmp_path / "pipelines" / CASE
    folder.mkdir(parents=True)
    for name, text in {"use_case.yaml": USE_CASE, "metrics.py": METRICS, "model.py": MODEL}.items():
        (folder / name).write_text(text)
    (tmp_path / "data/toy").mkdir(parents=True)
    random = np.random.default_rng(0)
    number = random.integers(0, 100, 200)
    streets = np.where(number < 50, "high street", "low street")
    pd.DataFrame({"number": number, "street": streets}).to_parquet(tmp_path / "data/toy/addresses.parquet")
    monkeypatch.setattr(pipelines, "__path__", [*pipelines.__path__, str(tmp_path / "pipelines")])
    yield Settings(project_root=tmp_path, state_dir=tmp_path / "state", artifact_root=str(tmp_path / "artifacts"))
    for name in [name for name in sys.modules if CASE in name]:
        del sys.modules[name]


def test_a_custom_task_is_judged_by_its_own_metrics_offline_and_by_feedback(settings):
    built = Recorder("features")
    building.build(settings, CASE, str(settings.project_root / "data/toy"), built, Recorder())
    directory = local_copy(settings, built.uri)
    record = FeatureSet.model_validate_json((directory / "feature_set.json").read_text())
    parts = {name: pd.read_parquet(directory / f"{name}.parquet") for name in record.rows}

    made_of, evaluation = judged(settings, CASE, parts, record, features=built)
    assert evaluation.metrics["same_letters"] > 0.9
    assert evaluation.passed
    assert evaluation.curves == []

    case = load_use_case(settings, CASE)
    model = case.code("model").load(local_copy(settings, made_of["model"].uri))
    golden = ask_offline(settings, case, built.uri, model)
    assert set(golden.predictions) == {"high street", "low street"}

    log = pd.DataFrame(
        [
            ("a", 0, "1", "live", "/predict", 200, False, 1.0, json.dumps({"prediction": "high street"})),
            ("b", 0, "1", "live", "/predict", 200, False, 1.0, json.dumps({"prediction": "low street"})),
        ],
        columns=live.COLUMNS,
    )
    feedback = pd.DataFrame({"request_id": ["a", "b"], "outcome": ['"high street"', '"low stream"']})
    numbers = live.live_numbers(log, feedback, "1", None, 0, None, case.task, of_use_case(case))
    assert numbers.metrics["same_letters"] == pytest.approx(19 / 21)
    assert numbers.counts["same_letters"] == 2


def test_an_estimator_in_one_line_has_no_custom_task(settings):
    file = settings.project_root / "pipelines" / CASE / "use_case.yaml"
    file.write_text(USE_CASE.replace("flavor: sklearn", "estimator: sklearn.linear_model.Ridge"))
    with pytest.raises(UsageError, match="model.estimator: goes with the other tasks"):
        load_use_case(settings, CASE)

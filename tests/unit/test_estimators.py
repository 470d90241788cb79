"""What use_case.yaml says of an estimator of scikit-learn is that, or the key is named with what is there."""

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from shopfloor.errors import UsageError
from shopfloor.estimators import Times
from shopfloor.pipeline.keys import component_key
from shopfloor.settings import Settings
from shopfloor.training.trial import Context
from shopfloor.use_case import ModelSection

from tests.support.cases import use_case

DATA = (pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0]}), pd.Series([0, 1, 0, 1]))
SPACE = {
    "metric": "validate-mae",
    "mode": "min",
    "trials": 1,
    "space": {"alpha": {"type": "float", "low": 1, "high": 2}},
}


def train(estimator, given, task="regression", **model):
    code = use_case(task=task, model={"estimator": estimator} | model, search=SPACE).code("model")
    reports = []
    code.train(given, (*DATA, *DATA), Context(lambda *report: reports.append(report), rounds=7, threads=1))
    [report] = reports
    return report


def test_an_estimator_is_fit_once_with_the_parameters_of_the_trial_and_the_fixed_ones():
    round_, numbers, model = train("sklearn.linear_model.Ridge", {"alpha": 2.0}, params={"fit_intercept": False})
    assert round_ == 1
    assert numbers.keys() == {"validate-mae", "validate-rmse", "validate-r2"}
    own = model[-1].get_params()
    assert (own["alpha"], own["fit_intercept"], own["random_state"]) == (2.0, False, 0)


@pytest.mark.parametrize(
    ("estimator", "params", "task", "why"),
    [
        (
            "sklearn.linear_model.Rigde",
            {},
            "regression",
            "Rigde is no estimator. Did you mean sklearn.linear_model.Ridge?",
        ),
        ("sklearn.linar_model.Ridge", {}, "regression", "sklearn.linar_model cannot be imported"),
        ("sklearn.metrics.r2_score", {}, "regression", "sklearn.metrics.r2_score is no estimator"),
        (
            "sklearn.linear_model.Ridge",
            {"alhpa": 1},
            "regression",
            "Ridge has no parameter 'alhpa'. It has alpha, copy_X",
        ),
        ("sklearn.linear_model.Ridge", {}, "binary", "Ridge is no classifier, and task is binary"),
        ("sklearn.svm.LinearSVC", {}, "binary", "LinearSVC answers no probability"),
    ],
)
def test_what_is_no_estimator_of_the_task_is_told_with_the_key(estimator, params, task, why):
    with pytest.raises(UsageError) as raised:
        train(estimator, params, task)
    assert str(raised.value).startswith("pipelines/toy/use_case.yaml: model.estimator: ")
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"estimator": "Ridge"}, "should match pattern"),
        ({"estimator": "sklearn.linear_model.Ridge", "flavor": "xgboost"}, "registered with the flavor sklearn"),
        ({"params": {"alpha": 1}}, "model.estimator names none"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(section, why):
    with pytest.raises(ValidationError, match=why):
        ModelSection.model_validate(section)


def test_times_become_numbers_and_missing_ones_stay_missing():
    times = pd.DataFrame({"at": pd.to_datetime(["1970-01-02T12:00", None])})
    numbers = Times().fit(times).transform(times)
    assert numbers[0].tolist() == [1.5, 1, 2, 4, 12]
    assert np.isnan(numbers[1]).all()


@pytest.mark.parametrize(
    ("type_name", "trusted"),
    [
        ("sklearn.linear_model._ridge.Ridge", True),
        ("shopfloor.estimators.Times", True),
        ("mine.Own", True),
        ("numpy.save", False),
        ("shopfloor.storage.filesystem", False),
        ("os.system", False),
    ],
)
def test_classes_of_the_libraries_are_trusted_and_no_functions(type_name, trusted):
    assert ModelSection(trusted=["mine.Own"]).trusts(type_name) is trusted


def test_the_key_of_a_step_that_reads_the_model_holds_the_code_that_stands_in_for_it(tmp_path):
    folder = tmp_path / "pipelines/toy"
    folder.mkdir(parents=True)
    for place, text in {
        "components/tune.py": 'READS = ("model", "model.py")\ndef tune(use_case): ...\n',
        "platform/shopfloor/estimators.py": "A = 1\n",
        "pipelines/toy/use_case.yaml": "",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)

    def parts(model):
        content = use_case(model=model).model_dump_json(by_alias=True)
        (folder / "use_case.yaml").write_text(content)
        command = ["\nfrom kfp import dsl\ndef tune(use_case): ...\n", "--function_to_execute", "tune"]
        return component_key(Settings(project_root=tmp_path), command, {"use_case": "toy"}, {}, {}).parts

    assert "code shopfloor.estimators" in parts({"estimator": "sklearn.linear_model.Ridge"})
    assert "code shopfloor.estimators" not in parts({"flavor": "xgboost"})

"""`use_case.yaml` is validated as a whole, and errors name file, line and key."""

from pathlib import Path

import pytest
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.settings import Settings
from shopfloor.use_case import list_use_cases, load_served_case, load_use_case

PROJECT = Path(__file__).resolve().parents[2]
GOOD = (PROJECT / "pipelines/flight_delays/use_case.yaml").read_text()


def write(tmp_path, text):
    folder = tmp_path / "pipelines" / "flight_delays"
    folder.mkdir(parents=True)
    (folder / "use_case.yaml").write_text(text)
    return Settings(project_root=tmp_path)


def test_the_use_case_of_the_project_is_valid():
    settings = Settings(project_root=PROJECT)
    assert "flight_delays" in list_use_cases(settings)
    assert load_use_case(settings, "flight_delays").search.trials == 16


def test_an_unknown_use_case_is_named_with_the_known_ones(tmp_path):
    settings = write(tmp_path, GOOD)
    with pytest.raises(NotFoundError, match=r"no use case 'x'. Known use cases: flight_delays"):
        load_use_case(settings, "x")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials: 16", "trails: 16", r"use_case.yaml:21: search.trails: unknown key"),
        ("trials: 16", "trials: many", r"use_case.yaml:21: search.trials: Input should be a valid integer"),
        ("trials: 16", "trials: 0", r"use_case.yaml:21: search.trials: Input should be greater than 0"),
        ("roc_auc: {min: 0.70}", "roc_auc: {min: 0.7, max: 0.8}", r"gates.metrics.roc_auc: give either min or max"),
        ('["2013-09-01", "2013-10-01"]', '["2013-08-01", "2013-10-01"]', r"must follow one another"),
        ("name: flight_delays", "name: other", r"name is 'other', the folder is 'flight_delays'"),
        (
            "service: flight_delays",
            "source: pilots\n  time: at",
            r"yaml:9: features.source: is 'pilots', which data.tables",
        ),
        ("service: flight_delays", "source: flights\n  time: at", r"serving.online: looks features up in Feast, and"),
        ("service: flight_delays", "source: flights", r"use_case.yaml:8: features: a split by time needs time"),
        ("  split:\n", "  split:\n    by: chance\n", r"features.split: by must be random, group or column"),
        (
            "flavor: xgboost",
            "flavor: xgboost\n  estimator: sklearn.svm.SVC",
            r"model: an estimator is registered with the",
        ),
        ("service: flight_delays", "service: flight_delays\n  files: [x]", r"features: time, inputs, leave_out and"),
        ("search:", "search: [", r"use_case.yaml:\d+: "),
    ],
)
def test_a_broken_file_gets_a_line_that_names_file_line_and_key(tmp_path, old, new, message):
    assert old in GOOD
    settings = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        load_use_case(settings, "flight_delays")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target: digit", "target: picture", r"features: files names 'picture'"),
        ("target: digit", "leave_out: [picture]\n  target: digit", r"files names 'picture', which is no input"),
        ("flavor: sklearn", "estimator: sklearn.svm.SVC", r"features.files: holds what an estimator cannot read"),
    ],
)
def test_files_that_no_model_would_read_are_refused(tmp_path, old, new, message):
    text = (PROJECT / "pipelines/digits/use_case.yaml").read_text().replace("name: digits", "name: flight_delays")
    with pytest.raises(UsageError, match=message):
        load_use_case(write(tmp_path, text.replace(old, new, 1)), "flight_delays")


IMPORTED = """
name: flight_delays
imported: true
gates: {live: {metrics: {error_rate: {max: 0.01}}}}
"""


def test_a_use_case_of_imported_models_serves_and_trains_nothing(tmp_path):
    settings = write(tmp_path, IMPORTED)
    case = load_served_case(settings, "flight_delays")
    assert (case.target, case.serving.replicas, case.gates.live.metrics["error_rate"].max) == ("", 1, 0.01)
    with pytest.raises(UsageError, match=r"use_case.yaml:3: imported: models of flight_delays are imported"):
        load_use_case(settings, "flight_delays")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("search: {trials: 3}", r"use_case.yaml:5: search: unknown key"),
        ("imported: false", r"imported: Input should be True"),
        ("gates: {metrics: {roc_auc: {min: 0.7}}}", r"gates.metrics: bounds a test set"),
        ("gates: {drift: {max: 0.2}}", r"gates.drift: bounds a test set"),
        ("serving: {online: {entities: {origin: string}}}", r"serving.online: looks features up"),
    ],
)
def test_what_an_imported_model_cannot_have_is_refused(tmp_path, more, message):
    settings = write(tmp_path, IMPORTED + more)
    with pytest.raises(UsageError, match=message):
        load_served_case(settings, "flight_delays")

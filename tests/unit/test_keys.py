"""The content key changes with what a result depends on, and with nothing else."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shopfloor.pipeline.keys import step_key
from shopfloor.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = "\nfrom kfp import dsl\ndef tune(use_case: str):\n"
SOURCE += "    from shopfloor.training.tuning import tune\n    tune(use_case)\n"


@pytest.fixture
def project(tmp_path):
    for folder in ("platform/shopfloor", "components", "pipelines"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/runtime.txt").write_text("xgboost==3.2.0\n")
    return Settings(project_root=tmp_path)


def key(settings, **parameters):
    given = {"use_case": "flight_delays", "trials": 16} | parameters
    return step_key(settings, SOURCE, "tune", given, {"features": "abc"}).key


def edit(settings, file, old, new):
    path = settings.project_root / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_same_things_have_the_same_key(project):
    assert key(project) == key(project)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("platform/shopfloor/training/tuning.py", "MAX_FAILURES = 3", "MAX_FAILURES = 4"),
        ("platform/shopfloor/storage.py", 'CONTENT_HASH = "content_hash"', 'CONTENT_HASH = "hash_of_content"'),
        ("pipelines/flight_delays/model.py", '"seed": 2013', '"seed": 2014'),
        ("pipelines/flight_delays/use_case.yaml", "max_rounds: 100", "max_rounds: 50"),
        ("requirements/runtime.txt", "3.2.0", "3.2.1"),
    ],
)
def test_code_search_section_and_lock_change_the_key(project, file, old, new):
    before = key(project)
    edit(project, file, old, new)
    assert key(project) != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("platform/shopfloor/training/tuning.py", "MAX_FAILURES = 3", "MAX_FAILURES  =  3  # a remark"),
        ("platform/shopfloor/report/page.py", "TEMPLATE", "TEMPLATE_NAME"),
        ("pipelines/flight_delays/use_case.yaml", "roc_auc: {min: 0.70}", "roc_auc: {min: 0.71}"),
        ("pipelines/flight_delays/use_case.yaml", "trials: 16", "trials: 16  # a remark"),
    ],
)
def test_comments_and_what_the_step_does_not_read_leave_the_key(project, file, old, new):
    before = key(project)
    edit(project, file, old, new)
    assert key(project) == before


@given(st.integers(), st.integers())
def test_parameters_are_part_of_the_key_by_value(first, second):
    settings = Settings(project_root=PROJECT)
    keys = [step_key(settings, "def f(): pass", "f", {"a": value}, {}).key for value in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)


@given(
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=5)),
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=5)),
)
def test_inputs_are_part_of_the_key_by_content(first, second):
    settings = Settings(project_root=PROJECT)
    keys = [step_key(settings, "def f(): pass", "f", {}, inputs).key for inputs in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)

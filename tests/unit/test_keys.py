"""The content key changes with what a result depends on, and with nothing else."""

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shopfloor.errors import UsageError
from shopfloor.pipeline.keys import component_key, step_key
from shopfloor.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = "\nfrom kfp import dsl\ndef tune(use_case: str):\n"
SOURCE += "    from shopfloor.training.tuning import tune\n    tune(use_case)\n"
IMPORT = "\nfrom pathlib import Path\n"
"""Where the use case's modules begin their imports."""


@pytest.fixture
def project(tmp_path):
    for folder in ("platform/shopfloor", "components", "pipelines"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/runtime.txt").write_text("xgboost==3.2.0\n")
    return Settings(project_root=tmp_path)


def key(settings, **parameters):
    arguments = {"use_case": "flight_delays", "trials": 16} | parameters
    return step_key(settings, SOURCE, "tune", arguments, {"features": "abc"}).key


@pytest.fixture(scope="module", autouse=True)
def parsed():
    """Parse the library once, by whichever test comes first: what was parsed is kept by its content."""
    key(Settings(project_root=PROJECT))


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


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("features.py", IMPORT, IMPORT + "# A remark.\n"),
        ("features.py", '"""', '"""Another docstring. '),
        (
            "features.py",
            "\nfrom pathlib import Path\n",
            '\nfrom pathlib import Path\n"""What is said of the name above."""\n',
        ),
    ],
)
def test_what_is_only_said_in_a_use_cases_code_leaves_the_key(project, file, old, new):
    before = step_key(project, "\nx = 1", "build_features", {"use_case": "flight_delays"}, {})
    edit(project, f"pipelines/flight_delays/{file}", old, new)
    after = step_key(project, "\nx = 1", "build_features", {"use_case": "flight_delays"}, {})
    assert after.parts == before.parts
    assert "code pipelines.flight_delays.features" in after.parts


BROUGHT_IN = {
    "from .helper import FACTOR": "helper.py",
    "from . import helper": "helper.py",
    "from .deeper.helper import FACTOR": "deeper/helper.py",
    "from pipelines.flight_delays import helper": "helper.py",
    "import importlib; importlib.import_module('pipelines.flight_delays.helper')": "helper.py",
    "import importlib; importlib.import_module('.helper', __package__)": "helper.py",
    "import importlib; importlib.import_module(f'{__package__}.help' + 'er')": "helper.py",
    "exec(open('helper' + '.py').read())": "helper.py",
    "import json; json.load(open('factors.json'))": "factors.json",
    "open('queries/orders.sql')": "queries/orders.sql",
    "open('rates.csv')": "rates.csv",
}


@pytest.mark.parametrize("statement", BROUGHT_IN)
def test_what_a_use_cases_code_brings_in_changes_the_key(project, statement):
    file = project.project_root / "pipelines/flight_delays" / BROUGHT_IN[statement]
    file.parent.mkdir(exist_ok=True)
    file.write_text("FACTOR = 1")
    edit(
        project,
        "pipelines/flight_delays/model.py",
        "\nfrom pathlib import Path\n",
        f"\nfrom pathlib import Path\n{statement}\n",
    )
    before = key(project)

    file.write_text("FACTOR = -100")

    assert key(project) != before


def test_what_nothing_brings_in_leaves_the_key(project):
    before = key(project)
    for name in ("unused.py", "README.md", ".hidden.json"):
        (project.project_root / "pipelines/flight_delays" / name).write_text("FACTOR = 1")
    assert key(project) == before


def test_reads_is_found_wherever_the_component_is_defined(project):
    component = 'READS = ("gates",)\ndef train_it(use_case: str): ...\n'
    (project.project_root / "pipelines/mine.py").write_text(component)
    (project.project_root / "pipelines/broken.py").write_text("def (")

    def parts():
        return step_key(project, "\nx = 1", "train_it", {"use_case": "flight_delays"}, {}).parts

    before = parts()
    assert {part for part in before if part.startswith("use case")} == {"use case gates"}
    edit(project, "pipelines/flight_delays/use_case.yaml", "roc_auc: {min: 0.70}", "roc_auc: {min: 0.71}")
    assert parts() != before
    (project.project_root / "pipelines/mine.py").write_text(component.replace("gates", "gate"))
    with pytest.raises(UsageError, match="names 'gate', which is no section"):
        parts()


@pytest.mark.parametrize(
    ("source", "function"),
    [("\nx = 1", "unheard_of"), ("\nimport importlib\nimportlib.import_module(f'pipelines.{use_case}')", "tune")],
)
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("use_case.yaml", "roc_auc: {min: 0.70}", "roc_auc: {min: 0.71}"), ("source.py", "\nimport ", "\nX = 1\nimport ")],
)
def test_where_nobody_says_what_a_component_reads_everything_counts(project, source, function, file, old, new):
    before = step_key(project, source, function, {"use_case": "flight_delays"}, {}).key
    edit(project, f"pipelines/flight_delays/{file}", old, new)
    assert step_key(project, source, function, {"use_case": "flight_delays"}, {}).key != before


def test_every_component_of_ours_says_what_it_reads():
    for file in (PROJECT / "components").glob("[a-z]*.py"):
        assert file.stem == "base" or "\nREADS = (" in file.read_text(), file


def test_packages_and_pythons_minor_version_are_parts_of_the_key(project):
    command = ["sh", "-c", "python3 -m pip install 'tabulate==0.9.0' && \"$0\"", "\nfrom kfp import dsl\nx = 1"]
    first = component_key(project, command, {}, {}, {})
    command[2] = command[2].replace("0.9.0", "0.9.1")
    assert component_key(project, command, {}, {}, {}).key != first.key
    assert first.parts["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


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

"""The promises that the layout makes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
LIBRARY = PROJECT / "platform" / "shopfloor"


def test_platform_stays_the_standard_librarys_module_in_the_project_root():
    assert not (PROJECT / "platform" / "__init__.py").exists()
    result = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, '.'); import platform; print(platform.system())"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "Linux"


def test_no_tracked_file_names_a_package_index():
    files = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    word = "index" + "-url"
    names = [
        file
        for file in files.splitlines()
        if (PROJECT / file).is_file() and not file.startswith("tests/") and f"{word} " in (PROJECT / file).read_text()
    ]
    assert names == []


def test_help_answers_without_loading_a_component():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "shopfloor", "--help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "submit" in result.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert loaded & {"mlflow", "ray", "feast", "kfp", "dvc", "pandas", "great_expectations", "xgboost"} == set()


def test_every_room_is_part_of_the_package_that_is_built():
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {file.parent.relative_to(LIBRARY.parent).as_posix().replace("/", ".") for file in LIBRARY.rglob("*.py")}
    assert {name for name in packages if name.startswith("shopfloor")} == rooms


def test_the_page_of_the_house_names_every_room_and_only_modules_that_exist():
    text = (PROJECT / "docs" / "explanation" / "the-house.md").read_text()
    rooms = {f"{folder.name}/" for folder in LIBRARY.iterdir() if (folder / "__init__.py").exists()}
    assert {room for room in rooms if f"| `{room}` |" not in text} == set()

    names = {name for name in re.findall(r"`([\w/]+(?:/\w+)*(?:\.py)?)`", text) if "/" in name.rstrip("/")}
    places = [LIBRARY, LIBRARY / "serving", PROJECT]
    missing = {
        name
        for name in names
        if not any((place / name).exists() or (place / f"{name}.py").exists() for place in places)
    }
    assert missing == set()


def test_a_client_of_mlflow_is_made_in_one_place():
    files = [file for file in LIBRARY.rglob("*.py") if "MlflowClient(" in file.read_text()]
    assert [file.relative_to(LIBRARY).as_posix() for file in files] == ["runs/mlflow.py"]


@pytest.mark.parametrize("name", ["runtime", "dev"])
def test_no_lock_has_the_grammar_that_jsonschema_would_read_in_every_process(name):
    lock = (PROJECT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")

    assert "\njsonschema==" in lock
    assert "\nrfc3987-syntax==" not in lock

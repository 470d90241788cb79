"""The promises that the layout makes."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_platform_stays_the_standard_librarys_module_in_the_project_root():
    assert not (PROJECT / "platform" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, '.'); import platform; print(platform.system())"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "Linux"


def test_no_tracked_file_names_a_package_index():
    files = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    word = "index" + "-url"
    named = [
        file
        for file in files.splitlines()
        if (PROJECT / file).is_file() and not file.startswith("tests/") and f"{word} " in (PROJECT / file).read_text()
    ]
    assert named == []


def test_help_answers_without_loading_a_component():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "shopfloor", "--help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "submit" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert loaded & {"mlflow", "ray", "feast", "kfp", "dvc", "pandas", "great_expectations", "xgboost"} == set()

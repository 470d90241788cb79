"""The platform image alone, as `make images` built it: who may run it, how large it is, what is in it and what not."""

import json
import subprocess

import pytest
import yaml

from tests.support.compose import engine_answers
from tests.support.project import ROOT

pytestmark = [
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
    pytest.mark.timeout(600),
]
SIZE_BYTES = 1_600_000_000
IMPORTS = "import dvc, feast, great_expectations, kfp, mlflow, optuna, ray.serve, ray.tune, shopfloor, xgboost"


@pytest.fixture(scope="module")
def image():
    """Give the name of the image that docker-compose.yml names."""
    text = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["mlflow"]["image"]
    return text.partition(":-")[2].rstrip("}")


def run(image, *command):
    """Run it as a user whom it does not know, with a root that nobody can write to."""
    options = ["--rm", "--network", "none", "--user", "54321:54321", "--read-only", "--tmpfs=/tmp"]
    options += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"]
    return subprocess.run(["docker", "run", *options, image, *command], capture_output=True, text=True, check=False)


def test_any_user_id_imports_every_component_and_has_the_command(image):
    done = run(image, "sh", "-c", f"! grep -q 54321 /etc/passwd && python -c '{IMPORTS}' && shopfloor --version")
    assert done.returncode == 0, done.stderr


def test_no_compiler_is_in_it_and_what_kuberay_calls_is(image):
    assert run(image, "sh", "-c", "command -v gcc cc g++ clang make").stdout == ""
    assert run(image, "wget", "--version").returncode == 0


def test_it_is_small_and_says_what_it_is(image):
    shown = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=True).stdout
    (own,) = json.loads(shown)
    assert own["Size"] < SIZE_BYTES
    assert own["Config"]["User"] == "10001:10001"
    labels = {name.rpartition(".")[2] for name in own["Config"]["Labels"] if name.startswith("org.opencontainers.")}
    assert {"title", "version", "revision", "licenses", "name"} <= labels
    assert (ROOT / "build/platform.cdx.json").is_file(), "its bill of materials: make images"

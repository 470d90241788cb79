"""What terraform/ promises: its pages are its files', its values are the platform's, nothing open, and it is valid.

`make test-terraform` plans all of it (tests/e2e/test_terraform_plans.py): each start of the provider takes seconds.
"""

import ipaddress
import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from shopfloor.stack import object_store

from tests.contract.terraform_docs import MODULES, entries, readme
from tests.support import terraform

PROJECT = Path(__file__).resolve().parents[2]
MANIFESTS = PROJECT / "manifests"
SOURCES = terraform.SOURCES
ENVIRONMENTS = sorted((SOURCES / "environments").iterdir())
FOLDERS = sorted({file.parent for file in SOURCES.rglob("*.tf")})
AGAIN = "Write it anew: .venv/bin/python -m tests.contract.terraform_docs"


def text(*parts):
    return SOURCES.joinpath(*parts).read_text(encoding="utf-8")


def listing(source, name):
    """Return the strings of a list that is given to a name."""
    return re.findall(r'"([^"]+)"', re.search(rf"\b{name} += \[(.*?)\]", source, re.DOTALL)[1])


@pytest.mark.parametrize("module", sorted(MODULES.iterdir()), ids=lambda module: module.name)
def test_the_readme_of_a_module_is_what_its_files_say(module):
    assert (module / "README.md").read_text(encoding="utf-8") == readme(module), AGAIN


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(SOURCES)))
def test_every_input_says_what_it_is_and_is_checked(folder):
    for entry in entries(folder):
        assert entry.description.endswith("."), entry.name
        if entry.kind == "variable":
            assert entry.attribute("type"), entry.name
            assert "  validation {\n" in entry.text, entry.name


@pytest.mark.parametrize("module", sorted(MODULES.iterdir()), ids=lambda module: module.name)
def test_a_module_leaves_the_provider_and_the_state_to_who_uses_it(module):
    for file in module.glob("*.tf"):
        assert not re.search(r"^provider |^\s+backend ", file.read_text(encoding="utf-8"), re.MULTILINE), file


def test_an_exception_from_a_rule_has_its_reason():
    lines = [
        line.strip() for file in SOURCES.rglob("*.tf") for line in file.read_text().splitlines() if "skip=" in line
    ]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"#checkov:skip=CKV2?_AWS_\d+:[A-Z].{20,}", line)] == []


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda folder: folder.name)
def test_an_environments_state_is_its_own_encrypted_and_locked(environment):
    backend = re.search(r'backend "s3" \{(.*?)\}', text("environments", environment.name, "versions.tf"), re.DOTALL)[1]
    values = dict(re.findall(r"(\w+) += (.+)", backend))
    assert values == {"key": f'"{environment.name}/terraform.tfstate"', "encrypt": "true", "use_lockfile": "true"}


def test_the_environments_take_the_same_inputs_and_give_the_same_outputs():
    dev, prod = ({(entry.kind, entry.name, entry.description) for entry in entries(one)} for one in ENVIRONMENTS)
    assert dev == prod


def test_a_workload_may_do_with_its_objects_what_the_stacks_policy_lets_it():
    policy = json.loads((PROJECT / "platform" / "compose" / "s3-policy.json").read_text())
    buckets, objects = (set(statement["Action"]) for statement in policy["Statement"])
    source = text("modules", "object-storage", "workloads.tf")

    assert set(listing(source, "write_actions")) == objects
    assert {
        *listing(source, "bucket_actions"),
        *listing(source, "list_actions"),
        *listing(source, "upload_actions"),
    } == buckets
    assert set(listing(source, "read_actions")) <= {one for one in objects if one.startswith("s3:Get")}


def test_old_versions_and_unfinished_uploads_stay_as_long_as_in_a_bucket_that_we_make():
    inputs = {entry.name: entry.attribute("default") for entry in entries(MODULES / "object-storage")}
    assert int(inputs["old_version_days"]) == object_store.OLD_VERSION_DAYS
    assert int(inputs["unfinished_upload_days"]) == object_store.ATTEMPT_DAYS


def test_prod_has_at_its_largest_what_kueues_flavors_promise_the_teams():
    flavors = [yaml.safe_load(file.read_text()) for file in MANIFESTS.glob("base/kueue/*-resourceflavor.yaml")]
    promised = {
        one["metadata"]["name"]: int(one["metadata"]["annotations"].get("shopfloor.io/gpu", 0)) for one in flavors
    }
    pools = re.findall(
        r"^    ([\w-]+) += \{ (instance_types.*) \}$", text("environments", "prod", "main.tf"), re.MULTILINE
    )
    largest = Counter()
    for name, pool in pools:
        values = dict(re.findall(r"(\w+) = \"?([\w-]+)", pool))
        largest[values.get("flavor", name)] += int(values.get("gpus", 0)) * int(values["max"])

    assert {name: gpus for name, gpus in largest.items() if name != "system"} == promised
    assert {key for one in flavors for key in one["spec"]["nodeLabels"]} == {"shopfloor.io/pool"}
    assert 'pool_label = "shopfloor.io/pool"' in text("modules", "gpu-cluster-eks", "nodes.tf")


def test_the_overlay_prod_lets_pods_reach_the_api_server_where_the_module_puts_it():
    inputs = {entry.name: entry.attribute("default") for entry in entries(MODULES / "gpu-cluster-eks")}
    services = ipaddress.ip_network(inputs["service_cidr"].strip('"'))
    overlay = (MANIFESTS / "overlays" / "prod" / "kustomization.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"cidr: ([\d./]+)", overlay)) == {inputs["vpc_cidr"].strip('"'), f"{services[1]}/32"}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda folder: folder.name)
def test_the_account_of_the_profile_gets_objects_in_every_teams_namespace(environment):
    profile = tomllib.loads((PROJECT / "platform" / "profiles" / "cluster.toml").read_text())["cluster"]
    accounts = re.search(r"setproduct\(local\.teams, \[(.*?)\]\)", text("environments", environment.name, "main.tf"))[1]
    assert f'"{profile["service_account"]}"' in accounts

    written = {
        yaml.safe_load(file.read_text())["metadata"]["name"] for file in MANIFESTS.glob("base/**/*-serviceaccount.yaml")
    }
    assert {*re.findall(r'"(.+?)"', accounts), "mlflow"} <= written


@pytest.mark.skipif(bool(terraform.absence(provider=False)), reason=terraform.absence(provider=False))
def test_files_are_in_terraforms_own_format():
    result = terraform.terraform(SOURCES, "fmt", "-check", "-recursive")
    assert (result.returncode, result.stdout) == (0, ""), "Write them anew: terraform fmt -recursive terraform"


@pytest.mark.skipif(bool(terraform.absence()), reason=terraform.absence())
def test_the_environment_that_uses_every_module_is_valid(tmp_path):
    root = terraform.copy(tmp_path) / "environments" / "prod"
    terraform.initialize(root)

    result = json.loads(terraform.terraform(root, "validate", "-json").stdout)

    assert result["diagnostics"] == []
    assert result["valid"]

"""What docker-compose.yml promises: nothing open, unlimited or unnamed, no secret; read as text and as YAML."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from shopfloor.settings import Settings
from shopfloor.stack import secrets

PROJECT = Path(__file__).resolve().parents[2]
FILE = PROJECT / "docker-compose.yml"
TEXT = FILE.read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = sorted(COMPOSE["services"])
ONCE = {"migrate", "bootstrap"}
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_0-9]+)(?:(:?[-?])([^}]*))?\}")


def service(name):
    return COMPOSE["services"][name]


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_has_a_version(name):
    default = VARIABLE.sub(lambda match: match[3] or "", service(name)["image"])

    assert re.search(r":[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?$", default), default
    assert ":latest" not in default


@pytest.mark.parametrize("name", SERVICES)
def test_only_this_machine_is_listened_on(name):
    for port in service(name).get("ports", []):
        assert isinstance(port, str)
        assert port.startswith("127.0.0.1:"), port
    assert "network_mode" not in service(name)


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_do_little(name):
    own = service(name)

    assert own["read_only"] is True
    assert own["cap_drop"] == ["ALL"]
    assert own["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in own
    assert "privileged" not in own
    assert all("docker.sock" not in str(volume) for volume in own.get("volumes", []))


@pytest.mark.parametrize("name", SERVICES)
def test_memory_and_processors_are_limited(name):
    assert service(name)["mem_limit"]
    assert service(name)["cpus"]


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
def test_what_stays_says_how_it_is_and_comes_back(name):
    assert service(name)["healthcheck"]["test"]
    assert service(name)["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_waited_for_is_healthy_or_done(name):
    for other, how in service(name).get("depends_on", {}).items():
        condition = "service_completed_successfully" if other in ONCE else "service_healthy"
        assert how == {"condition": condition}, other


def test_the_inner_network_reaches_nothing_outside():
    assert COMPOSE["networks"]["back"]["internal"] is True
    assert all("back" in service(name)["networks"] for name in SERVICES)


def test_every_variable_is_documented_with_its_default():
    documented = dict(
        line.lstrip("#").split("=", 1)
        for line in (PROJECT / ".env.example").read_text(encoding="utf-8").splitlines()
        if re.match(r"#?[A-Z_0-9]+=", line)
    )
    used = {}
    for name, operator, value in VARIABLE.findall(TEXT):
        if operator == ":-":
            assert used.setdefault(name, value) == value, f"{name} has two defaults"
        else:
            used.setdefault(name, "")

    assert documented == used


def test_no_secret_stands_in_the_file():
    for name in SERVICES:
        environment = service(name).get("environment", {})
        for variable, value in environment.items():
            secret = re.search(r"PASSWORD|SECRET|TOKEN|SESSION_KEY", variable)
            harmless = not value or value.startswith("/run/secrets/") or variable == "FROM_SECRETS"
            assert not secret or harmless, variable
    for entry in COMPOSE["secrets"].values():
        assert Path(entry["file"]).name in {*secrets.RANDOM, secrets.IDENTITIES}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_gets_the_secrets_that_it_names(name):
    own = service(name)
    text = yaml.safe_dump({key: value for key, value in own.items() if key != "secrets"})
    pairs = own.get("environment", {}).get("FROM_SECRETS", "").split()
    names = {pair.partition("=")[2] for pair in pairs} | set(re.findall(r"/run/secrets/(\w+)", text))
    for mounted in own.get("volumes", []):
        file = PROJECT / mounted.partition(":")[0]
        if file.is_file():
            names |= set(re.findall(r"/run/secrets/(\w+)", file.read_text(encoding="utf-8")))

    assert names == set(own.get("secrets", []))


def test_both_sides_of_the_profile_name_every_service():
    """The profile says what this machine sees, the file what the containers see."""
    profile = tomllib.loads((PROJECT / "platform/profiles/compose.toml").read_text(encoding="utf-8"))
    inside = COMPOSE["x-inside"]
    names = {name.upper(): f"SHOPFLOOR_{name.upper()}" for name in profile}

    assert set(names.values()) <= set(inside)
    assert {name.removeprefix("SHOPFLOOR_").lower() for name in inside if name.startswith("SHOPFLOOR_")} <= set(
        Settings.model_fields
    )
    for same in ("artifact_root", "data_remote"):
        assert inside[f"SHOPFLOOR_{same.upper()}"] == profile[same]


def compose_is_here():
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
def test_compose_itself_takes_the_file_and_refuses_it_without_secrets(tmp_path):
    command = ["docker", "compose", "--file", str(FILE), "--env-file", str(tmp_path / "env"), "--profile", "monitoring"]
    (tmp_path / "env").write_text("")
    without = subprocess.run([*command, "config", "--quiet"], capture_output=True, text=True, check=False)
    (tmp_path / "env").write_text(f"SHOPFLOOR_SECRETS={tmp_path}\n")
    result = subprocess.run([*command, "config", "--quiet"], capture_output=True, text=True, check=False)

    assert without.returncode != 0
    assert "shopfloor secrets init" in without.stderr
    assert (result.returncode, result.stdout) == (0, ""), result.stderr

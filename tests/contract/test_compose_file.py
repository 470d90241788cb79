"""What docker-compose.yml promises: nothing open, unlimited or unnamed, no secret; read as text and as YAML.

What the files beside it promise too: compose puts each over docker-compose.yml, and the same is asked of the whole.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from shopfloor.backup.sources import mlflow_bucket
from shopfloor.errors import UsageError
from shopfloor.flows import backup
from shopfloor.settings import Settings
from shopfloor.stack import secrets

PROJECT = Path(__file__).resolve().parents[2]
FILE = PROJECT / "docker-compose.yml"
TEXT = FILE.read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = sorted(COMPOSE["services"])
OVERRIDES = ("external-s3", "gpu", "minio", "tls")
OVERRIDE_TEXTS = {name: (PROJECT / f"platform/compose/{name}.yml").read_text(encoding="utf-8") for name in OVERRIDES}
ONCE = {"migrate", "bootstrap", "object-store-volume", "object-store-users"}
SHELL = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "DOCKER_CONFIG"}}
"""Variables of a shell in which nobody has set one of the file's."""
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_0-9]+)(?:(:?[-?])([^}]*))?\}")


def service(name):
    return COMPOSE["services"][name]


def has_a_version(image):
    return re.search(r":[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?$", image) is not None and ":latest" not in image


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_has_a_version(name):
    assert has_a_version(VARIABLE.sub(lambda match: match[3] or "", service(name)["image"]))


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
def test_what_the_platform_image_is_to_write_to_is_there_for_everybody(name):
    """The engine mounts it again with the owner and the mode that the image has, whatever the first mount said."""
    if "shopfloor/platform" not in service(name)["image"]:
        return
    places = [place.partition(":")[0] for place in service(name).get("tmpfs", [])]
    volumes = [volume for volume in service(name).get("volumes", []) if isinstance(volume, str)]
    places += [volume.split(":")[-1] for volume in volumes if not volume.endswith(":ro")]
    image = (PROJECT / "platform/images/Dockerfile").read_text(encoding="utf-8")
    made = re.search(r"install -d -m 1777 \S+ \S+ \S+ \S+ ((?:/\S+ )+)", image)[1].split()
    assert set(places) - {"/tmp"} <= set(made)  # noqa: S108  (every image has it)


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
    for name, operator, value in VARIABLE.findall("\n".join([TEXT, *OVERRIDE_TEXTS.values()])):
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
            value = VARIABLE.sub(lambda match: match[3] or "", value)
            harmless = not value or value.startswith(("/run/secrets/", "/run/tokens/")) or variable == "FROM_SECRETS"
            assert not secret or harmless, variable
    for entry in COMPOSE["secrets"].values():
        assert Path(entry["file"]).name in {*secrets.RANDOM, secrets.IDENTITIES}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_gets_the_secrets_that_it_names(name):
    own = service(name)
    text = yaml.safe_dump({key: value for key, value in own.items() if key != "secrets"})
    pairs = own.get("environment", {}).get("FROM_SECRETS", "").split()
    names = {pair.partition("=")[2] for pair in pairs} | set(re.findall(r"/run/secrets/(\w+)", text))
    for mounted in (volume for volume in own.get("volumes", []) if isinstance(volume, str)):
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
    bucket = mlflow_bucket(Settings(project_root=PROJECT, artifact_root=profile["artifact_root"]))
    assert COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"] == f"s3://{bucket}/artifacts"


def test_a_policy_opens_the_buckets_of_the_stack_and_no_others():
    policy = json.loads((PROJECT / "platform/compose/s3-policy.json").read_text(encoding="utf-8"))
    buckets = [f"arn:aws:s3:::{name}" for name in secrets.BUCKETS]
    resources = [statement["Resource"] for statement in policy["Statement"]]
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}

    assert resources == [buckets, [f"{name}/*" for name in buckets]]
    assert not any("*" in action or action.startswith(("s3:Create", "s3:PutBucket")) for action in actions)


def compose_is_here():
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
def test_compose_itself_takes_the_file_and_refuses_it_without_secrets(tmp_path):
    command = ["docker", "compose", "--file", str(FILE), "--env-file", str(tmp_path / "env"), "--profile", "monitoring"]
    (tmp_path / "env").write_text("")
    without = subprocess.run([*command, "config", "--quiet"], capture_output=True, text=True, env=SHELL, check=False)
    (tmp_path / "env").write_text(f"SHOPFLOOR_SECRETS={tmp_path}\n")
    result = subprocess.run([*command, "config", "--quiet"], capture_output=True, text=True, env=SHELL, check=False)

    assert without.returncode != 0
    assert "shopfloor secrets init" in without.stderr
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


NEEDED = {
    "MINIO_DIGEST": f"sha256:{'0' * 64}",
    "S3_ENDPOINT": "https://s3.example.org",
    "S3_REGION": "eu-central-1",
    "S3_ACCESS_KEY": "shopfloor",
    "TLS_DOMAIN": "example.org",
}


def config(folder, overrides, variables):
    """Let compose put these files over docker-compose.yml."""
    lines = [f"SHOPFLOOR_SECRETS={folder}", *(f"{name}={value}" for name, value in variables.items()), ""]
    (folder / "env").write_text("\n".join(lines))
    files = [FILE, *(PROJECT / f"platform/compose/{name}.yml" for name in overrides)]
    command = ["docker", "compose", *(f"--file={file}" for file in files), f"--env-file={folder / 'env'}"]
    options = ["--profile", "monitoring", "config", "--format", "json"]
    return subprocess.run([*command, *options], capture_output=True, text=True, env=SHELL, check=False)


def rendered(folder, *overrides):
    result = config(folder, overrides, NEEDED)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
@pytest.mark.parametrize("variable", sorted(NEEDED))
def test_an_override_is_refused_without_what_it_cannot_guess(tmp_path, variable):
    override = next(name for name, text in OVERRIDE_TEXTS.items() if f"${{{variable}:?" in text)

    result = config(tmp_path, [override], {name: value for name, value in NEEDED.items() if name != variable})

    assert result.returncode != 0
    assert variable in result.stderr


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
@pytest.mark.parametrize("override", OVERRIDES)
def test_the_stack_with_an_override_keeps_every_promise(tmp_path, override):
    for name, own in rendered(tmp_path, override)["services"].items():
        assert has_a_version(own["image"]), own["image"]
        assert all(port["host_ip"] == "127.0.0.1" for port in own.get("ports", [])), name
        assert own["read_only"] is True, name
        assert own["cap_drop"] == ["ALL"], name
        assert own["security_opt"] == ["no-new-privileges:true"], name
        assert not {"cap_add", "privileged", "network_mode"} & own.keys(), name
        assert own["mem_limit"], name
        assert own["cpus"], name
        assert "back" in own["networks"], name
        assert own["restart"] == ("no" if name in ONCE else "unless-stopped"), name
        assert name in ONCE or own["healthcheck"]["test"], name
        for other, how in own.get("depends_on", {}).items():
            assert how["condition"] == f"service_{'completed_successfully' if other in ONCE else 'healthy'}", name


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
def test_a_worker_with_gpus_asks_the_engine_for_as_many_as_it_tells_ray(tmp_path):
    own = rendered(tmp_path, "gpu")["services"]["ray-worker-gpu"]

    (device,) = own["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "--num-gpus=1 " in own["command"][-1]
    assert own["networks"]["back"]["aliases"] == ["ray-worker"], "Prometheus finds it"


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
def test_another_s3_leaves_nothing_that_names_the_stacks_own(tmp_path):
    services = rendered(tmp_path, "external-s3")["services"]

    assert "object-store" not in services
    for name in ("mlflow", "bootstrap", "ray-head", "ray-worker"):
        assert "object-store:8333" not in json.dumps(services[name]), name
        assert "object-store" not in services[name]["depends_on"], name


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
@pytest.mark.parametrize("override", ["external-s3", "minio"])
def test_no_alert_waits_for_the_numbers_of_a_store_that_is_not_there(tmp_path, override):
    volumes = rendered(tmp_path, override)["services"]["prometheus"]["volumes"]

    (targets,) = (volume["source"] for volume in volumes if volume["target"].endswith("/object-store-targets.yml"))
    assert targets == os.devnull


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
def test_a_drill_is_refused_where_it_would_write_to_the_store_of_the_live_stack(tmp_path, monkeypatch):
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SHOPFLOOR_SECRETS", str(tmp_path))
    monkeypatch.setenv("COMPOSE_FILE", "docker-compose.yml:platform/compose/external-s3.yml")
    settings = Settings(project_root=PROJECT, state_dir=tmp_path, in_containers=True, profile="team.toml")

    with pytest.raises(UsageError, match="object store of this stack is elsewhere"):
        backup.drill(settings, str(tmp_path / "store"), "latest", None, lambda _: None)


@pytest.mark.skipif(not compose_is_here(), reason="docker compose is not installed")
def test_all_overrides_go_together(tmp_path):
    assert {"ray-worker-gpu", "proxy", "object-store-users"} <= rendered(tmp_path, "minio", "gpu", "tls")[
        "services"
    ].keys()

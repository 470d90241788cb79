"""Where a value comes from, what is refused, and what another process or machine gets of it."""

import json
import os

import pytest
from shopfloor.cli.submit import with_ray_address
from shopfloor.environment import direct_loopback, elsewhere
from shopfloor.errors import NotFoundError, UsageError, first_line
from shopfloor.settings import ClusterSettings, Settings, load_settings, load_sourced_settings, stack_state_file


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with the embedded profile, and no variable of ours."""
    for name in [name for name in os.environ if name.startswith(("SHOPFLOOR_", "RAY_"))]:
        monkeypatch.delenv(name)
    profiles = tmp_path / "platform" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "embedded.toml").write_text('tracking_uri = "http://127.0.0.1:5000"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("field", "address", "remedy"),
    [
        ("tracking_uri", "http://me:s3cret@mlflow.example:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking_uri", "https://s3cret@mlflow.example", "MLFLOW_TRACKING_PASSWORD"),
        ("online_store", "redis://:s3cret@redis.example:6379", "REDIS_PASSWORD"),
        ("online_store", "redis://redis.example:6379,password=s3cret", "REDIS_PASSWORD"),
        ("feature_registry", "postgresql+psycopg://feast:s3/cret@db.example/feast", "PGPASSWORD"),
        ("feature_registry", "postgresql://db.example/feast?sslpassword=s3cret", "PGPASSWORD"),
        ("ray_dashboard_url", "http://ray.example:8265/?token=s3cret", "ray_token_file"),
        ("cluster.argo_url", "https://me:s3cret@argo.example", "own environment variable"),
    ],
)
def test_a_secret_in_an_address_is_one_line_that_does_not_repeat_it(project, field, address, remedy):
    table, _, key = field.rpartition(".")
    text = f"[{table}]\n{key} = {json.dumps(address)}" if table else f"{key} = {json.dumps(address)}"
    (project / "team.toml").write_text(text)

    with pytest.raises(UsageError) as refused:
        load_settings(str(project / "team.toml"), project_root=project)

    assert f"'{field}' (profile)" in str(refused.value)
    assert remedy in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_address_of_another_ray_cluster_has_no_secret_either(project):
    settings = load_settings(project_root=project)
    with pytest.raises(UsageError, match="'ray_dashboard_url' \\(argument\\) has a password") as refused:
        with_ray_address(settings, "ray", "http://me:s3cret@ray.example:8265")
    assert "s3cret" not in str(refused.value)


def test_the_words_of_somebody_else_are_repeated_without_the_secrets_in_their_addresses():
    words = "Cannot reach https://me:s3@cret@dvc.example/a@b?x=1&token=s3cret, nor s3://bucket/a."
    assert first_line(OSError(words)) == ("Cannot reach https://dvc.example/a@b?x=1&token=***, nor s3://bucket/a")


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/a:b@c",
        "sqlite:////tmp/a:b@c",
        "postgresql://feast@db.example/feast",
        "redis://redis.example:6379/3",
        "http://mlflow.example:5000/team@site",
    ],
)
def test_an_address_without_a_secret_is_taken(project, address):
    assert load_settings(project_root=project, feature_registry=address).feature_registry == address


def test_a_profile_can_be_any_file_and_is_the_same_one_from_another_directory(project, tmp_path, monkeypatch):
    (project / "team.toml").write_text('serve_url = "http://serve.example"\n')
    monkeypatch.chdir(project)

    settings = load_settings("team.toml", project_root=project)

    assert settings.serve_url == "http://serve.example"
    monkeypatch.chdir("/")
    monkeypatch.setenv("SHOPFLOOR_PROFILE", settings.environment()["SHOPFLOOR_PROFILE"])
    assert load_settings(project_root=project).serve_url == "http://serve.example"


def test_a_profile_that_is_not_there_is_named_with_its_folder(project):
    with pytest.raises(NotFoundError, match="no profile '/nowhere/team.toml' in /nowhere"):
        load_settings("/nowhere/team.toml", project_root=project)


def test_the_running_stacks_token_is_for_its_own_ray_only(project):
    settings = load_settings(project_root=project)
    settings.private_state_dir()
    state = {"addresses": {"ray_dashboard_url": "http://127.0.0.1:8399"}, "ray_token_file": str(project / "token")}
    stack_state_file(settings).write_text(json.dumps(state))

    ours = load_sourced_settings(project_root=project)
    theirs = load_settings(project_root=project, ray_dashboard_url="http://ray.example:8265")

    assert ours.settings.ray_token_file == str(project / "token")
    assert ours.sources["ray_token_file"] == "stack"
    assert theirs.ray_token_file is None
    assert ours.settings.with_ray_dashboard("http://ray.example:8265").ray_token_file is None
    assert ours.settings.with_ray_dashboard("http://127.0.0.1:8399/").ray_token_file == str(project / "token")


@pytest.mark.parametrize("content", ["[]", "{}", '{"addresses": 1, "ray_token_file": 2}', '{"addresses": {}}', "\xff"])
def test_a_damaged_record_of_the_stack_is_none(project, content):
    settings = load_settings(project_root=project)
    settings.private_state_dir()
    stack_state_file(settings).write_text(content, "latin-1")

    assert load_settings(project_root=project).tracking_uri == "http://127.0.0.1:5000"


def test_requests_to_ray_carry_the_token_of_the_file_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-shell")
    file = tmp_path / "token"
    file.write_text("first\n")
    settings = Settings(project_root=tmp_path, ray_token_file=str(file))
    assert settings.ray_headers() == {"Authorization": "Bearer first"}

    file.write_text("second")

    assert settings.ray_headers() == {"Authorization": "Bearer second"}
    file.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        settings.ray_headers()


def test_without_a_file_requests_to_ray_carry_what_rays_own_clients_would_send(tmp_path, monkeypatch):
    settings = Settings(project_root=tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-shell")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert settings.ray_headers() == {}

    monkeypatch.setenv("RAY_AUTH_MODE", "token")

    assert settings.ray_headers() == {"Authorization": "Bearer of-the-shell"}


def test_another_machine_gets_neither_our_places_nor_our_tokens(tmp_path):
    cluster = {"token_file": tmp_path / "argo", "queue": "team"}
    here = Settings(project_root=tmp_path, state_dir=tmp_path, ray_token_file=str(tmp_path / "ray"), cluster=cluster)

    there = elsewhere(here.environment())

    assert str(tmp_path) not in " ".join(there.values())
    assert not {name for name in there if name.startswith("RAY_AUTH_")}
    assert json.loads(there["SHOPFLOOR_CLUSTER"])["queue"] == "team"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "a.example", "NO_PROXY": "b.example"}, "a.example,b.example,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "localhost"}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_loopback_joins_what_goes_past_the_proxy(before, after):
    assert direct_loopback(before) == {"NO_PROXY": after, "no_proxy": after}


def test_a_container_keeps_its_own_addresses_and_gets_the_rest(project):
    environment = Settings(project_root=project, run_id="abc", in_containers=True, secrets_dir="/mine").environment()

    sent = elsewhere(environment, in_containers=True)

    assert sent["SHOPFLOOR_RUN_ID"] == "abc"
    assert environment["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] == "false"  # a signed address is the containers' own
    assert not {name for name in sent if "MULTIPART" in name}
    assert not {name for name in sent if name.endswith(("_URI", "_URL", "_DIR", "_STORE", "_PROFILE", "_CONTAINERS"))}


def test_a_job_in_containers_is_sent_a_copy_although_the_dashboard_is_on_this_machine(project):
    from shopfloor.engines.ray import RayEngine

    settings = Settings(project_root=project, artifact_root="s3://lake/artifacts")

    assert RayEngine(settings)._is_here()
    assert not RayEngine(settings.model_copy(update={"in_containers": True}))._is_here()


def test_the_platform_image_goes_by_the_name_that_the_cluster_has_for_it():
    from components.base import PLATFORM_IMAGE

    cluster = ClusterSettings(image="registry.example.org/platform:7")

    assert cluster.image_of(PLATFORM_IMAGE) == "registry.example.org/platform:7"
    assert cluster.image_of("python:3.11") == "python:3.11"

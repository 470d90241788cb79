"""Secrets of the stack with real services: made once, kept, refused where weak, and given to nobody who has his own."""

import json

import pytest
from shopfloor.errors import ServiceError, UsageError
from shopfloor.serving.replica.tokens import Tokens, create, read
from shopfloor.settings import Settings
from shopfloor.stack import secrets


@pytest.fixture
def made(tmp_path):
    return secrets.init(tmp_path / "kept", tmp_path / ".env")


def test_each_secret_is_made_once_and_kept(tmp_path, made):
    before = {name: (tmp_path / "kept" / name).read_text() for name in secrets.RANDOM}

    again = secrets.init(tmp_path / "kept", tmp_path / ".env")

    assert made.made == again.kept == list(secrets.RANDOM)
    assert {name: (tmp_path / "kept" / name).read_text() for name in secrets.RANDOM} == before
    assert len(set(before.values())) == len(before)


def test_the_directory_is_closed_and_the_variables_hold_no_secret(tmp_path, made):
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".env").read_text() == f"SHOPFLOOR_SECRETS={tmp_path / 'kept'}\n"


def test_other_variables_of_the_file_stay(tmp_path):
    (tmp_path / ".env").write_text("MLFLOW_PORT=5005\nSHOPFLOOR_SECRETS=/old\n")

    secrets.init(tmp_path / "kept", tmp_path / ".env")

    assert (tmp_path / ".env").read_text() == f"MLFLOW_PORT=5005\nSHOPFLOOR_SECRETS={tmp_path / 'kept'}\n"


@pytest.mark.parametrize("weak", ["", "hunter2", "changeme-changeme", "a" * 40])
def test_a_weak_secret_is_refused_by_its_file_and_not_repeated(tmp_path, made, weak):
    file = tmp_path / "kept" / "redis_password"
    file.chmod(0o600)
    file.write_text(weak)

    with pytest.raises(UsageError, match="redis_password is weak") as refused:
        secrets.init(tmp_path / "kept", tmp_path / ".env")

    assert not weak or weak not in str(refused.value)
    assert file.read_text() == weak


def test_the_platforms_account_may_not_make_buckets(tmp_path, made):
    identities = json.loads((tmp_path / "kept" / "object_store.json").read_text())["identities"]
    actions = {identity["name"]: identity["actions"] for identity in identities}

    assert actions["shopfloor-admin"] == ["Admin"]
    assert {action.partition(":")[2] for action in actions["shopfloor"]} == set(secrets.BUCKETS)


def test_a_container_finds_the_platforms_token_and_those_that_come_later(tmp_path, made):
    file = tmp_path / "kept" / secrets.TOKENS
    token = (tmp_path / "kept" / "serve_token").read_text()
    create(file, "web-shop", [], None)

    secrets.init(tmp_path / "kept", tmp_path / ".env")

    assert Tokens(file).allow(f"Bearer {token}".encode(), "any")
    assert [one.name for one in read(file)] == ["web-shop", "shopfloor"]
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o444, 0o755)


def test_a_command_gets_what_its_shell_does_not_have(tmp_path, made):
    shell = {"REDIS_PASSWORD": "mine"}

    secrets.export(Settings(project_root=tmp_path, secrets_dir=str(tmp_path / "kept")), shell)

    assert shell["REDIS_PASSWORD"] == "mine"
    assert shell["MLFLOW_TRACKING_PASSWORD"] == (tmp_path / "kept" / "mlflow_password").read_text()


def test_a_missing_secret_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ServiceError, match="shopfloor secrets init"):
        secrets.export(Settings(project_root=tmp_path, secrets_dir=str(tmp_path)), {})


def test_argos_server_gets_a_certificate_for_the_names_by_which_it_is_asked(tmp_path):
    from cryptography import x509

    made = secrets.init(tmp_path / "kept", tmp_path / ".env", ["robots"])
    file = tmp_path / "kept" / secrets.ARGO_CERTIFICATE
    names = x509.load_pem_x509_certificate(file.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    before = file.read_bytes()
    again = secrets.init(tmp_path / "kept", tmp_path / ".env", ["robots"])

    assert names.value.get_values_for_type(x509.DNSName) == list(secrets.ARGO_NAMES)
    assert {secrets.ARGO_CERTIFICATE, secrets.ARGO_KEY} <= {*made.made} & {*again.kept}
    assert file.read_bytes() == before

"""The secrets of the stack with real services: made once, one file each, and never written anywhere else.

Compose mounts the files into the containers that need them; `environment` gives a person's own commands the few that
they need. The directory is closed to other accounts; the files in it are readable, as a container runs as another one.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets as randomness
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from shopfloor.environment import THROUGH_MLFLOW
from shopfloor.errors import ServiceError, UsageError
from shopfloor.records import Record
from shopfloor.settings import Settings
from shopfloor.storage import write_atomically

RANDOM = (
    "postgres_password",
    "mlflow_db_password",
    "feast_db_password",
    "object_store_secret",
    "object_store_admin_secret",
    "mlflow_admin_password",
    "mlflow_password",
    "mlflow_session_key",
    "redis_password",
    "ray_token",
    "serve_token",
    "grafana_password",
    "argo_db_password",
)
"""The secrets that nobody chooses: each is a file of this name."""
IDENTITIES = "object_store.json"
"""SeaweedFS's identities: made from the two secrets of the object store, anew each time."""
TOKENS = Path("tokens") / "endpoints"
"""Hashes of the endpoints' tokens. The directory is for the file alone: a change replaces the file, and a container
sees that through a directory only."""
USER, ADMIN = "shopfloor", "shopfloor-admin"
"""Access keys of the object store, the user of MLflow and the endpoints' token: they are names, not secrets."""
VARIABLE = "SHOPFLOOR_SECRETS"
"""Variable by which compose finds the directory."""
ARGO_CERTIFICATE, ARGO_KEY = "argo_server.crt", "argo_server.key"
"""Certificate of Argo's server, which whoever asks it has to trust, and its key."""
ARGO_NAMES = ("argo-server.argo", "argo-server.argo.svc", "argo-server.argo.svc.cluster.local", "localhost")
"""Names by which it is asked: the service's, and a forwarded port's. Argo's own certificate is for the last alone."""
CERTIFICATE_DAYS = 3650
BUCKETS = ("shopfloor", "shopfloor-data", "shopfloor-mlflow")
TEAMS = "teams"
"""Directory of the teams of a cluster, in which each has one of its name."""
TEAM_SECRETS = {
    "object_store_secret": "AWS_SECRET_ACCESS_KEY",
    "mlflow_password": "MLFLOW_TRACKING_PASSWORD",
    "redis_password": "REDIS_PASSWORD",
    "ray_token": "RAY_AUTH_TOKEN",
    "serve_token": "SERVE_TOKEN",
}
"""The secrets of a team by their file, and the variable of its pods that gets each."""
TEAM_BUCKETS = BUCKETS[:2]
"""Buckets in which a team has the prefix of its name."""
SHORTEST = 20
"""Characters of the shortest secret that is taken from a person."""
_FEWEST_DIFFERENT = 8
_VARIABLES = {
    "AWS_SECRET_ACCESS_KEY": "object_store_secret",
    "MLFLOW_TRACKING_PASSWORD": "mlflow_password",
    "REDIS_PASSWORD": "redis_password",
    "PGPASSWORD": "feast_db_password",
    "SERVE_TOKEN": "serve_token",
}


class SecretsMade(Record):
    """What `init` did."""

    directory: str
    made: list[str]
    kept: list[str]


def init(directory: Path, env_file: Path, teams: Sequence[str] = ()) -> SecretsMade:
    """Make every secret that is missing, keep those that are there, and let the endpoints know the platform's token.

    Args:
        directory: Made, and closed to other accounts.
        env_file: Compose's, made or completed; it gets the directory, and no secret.
        teams: Teams of a cluster that get secrets of their own too; with them Argo's server gets a certificate.

    Raises:
        UsageError: A secret that is there is weak, or the directory belongs to somebody else.
    """
    from shopfloor.serving.replica import tokens

    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        directory.chmod(0o700)
    except PermissionError as error:
        raise UsageError(f"{directory} belongs to another account.", "Name a directory of your own.") from error
    names = [*RANDOM, *(f"{TEAMS}/{team}/{name}" for team in teams for name in TEAM_SECRETS)]
    present = [name for name in names if (directory / name).exists()]
    for name in present:
        _refuse_weak(directory / name)
    missing = [name for name in names if name not in present]
    for name in missing:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / name, randomness.token_urlsafe(32), 0o444)
    if teams:
        pair = [ARGO_CERTIFICATE, ARGO_KEY]
        whole = all((directory / name).exists() for name in pair)
        (present if whole else missing).extend(pair)
        if not whole:
            for name, text in zip(pair, _certificate(), strict=True):
                write_atomically(directory / name, text, 0o444)
    write_atomically(directory / IDENTITIES, _identities(directory), 0o444)
    for place, user in ((directory, USER), *((directory / TEAMS / team, team) for team in teams)):
        (place / TOKENS).parent.mkdir(exist_ok=True)
        (place / TOKENS).parent.chmod(0o755)
        tokens.put(place / TOKENS, user, (place / "serve_token").read_text(encoding="utf-8").strip())
        (place / TOKENS).chmod(0o444)
    set_variable(env_file, VARIABLE, str(directory.resolve()))
    return SecretsMade(directory=str(directory), made=missing, kept=present)


def set_variable(env_file: Path, name: str, value: str) -> None:
    """Give a variable of compose's file a value; the other lines stay as they are."""
    lines = env_file.read_text(encoding="utf-8").splitlines() if env_file.exists() else []
    other_lines = [line for line in lines if not line.startswith(f"{name}=")]
    write_atomically(env_file, "\n".join([*other_lines, f"{name}={value}", ""]), 0o600)


def export(settings: Settings, environment: MutableMapping[str, str] = os.environ) -> None:
    """Give this process, and those that it starts, the secrets of the profile's `secrets_dir`.

    A variable that is set already stays: somebody else's credentials go before ours.

    Raises:
        ServiceError: The directory lacks a secret.
    """
    if not settings.secrets_dir:
        return
    values = {"AWS_ACCESS_KEY_ID": USER, "MLFLOW_TRACKING_USERNAME": USER, "AWS_DEFAULT_REGION": "us-east-1"}
    values |= THROUGH_MLFLOW if settings.in_containers else {}
    if settings.s3_endpoint_url:
        values["AWS_ENDPOINT_URL"] = settings.s3_endpoint_url
    for variable, name in _VARIABLES.items():
        try:
            values[variable] = (Path(settings.secrets_dir) / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ServiceError(
                f"The secret {name} of profile {settings.profile!r} cannot be read: {error.strerror}.",
                f"Make it: shopfloor secrets init --directory {settings.secrets_dir}",
            ) from error
    for variable, value in values.items():
        environment.setdefault(variable, value)


def _refuse_weak(file: Path) -> None:
    """Refuse a secret that could be guessed.

    Raises:
        UsageError: It is short, of few characters, or is no text.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The secret {file} cannot be read.", "Remove the file, and a new one is made.") from error
    if len(text) < SHORTEST or len(set(text)) < _FEWEST_DIFFERENT:
        raise UsageError(
            f"The secret {file} is weak: it has {len(text)} characters, {len(set(text))} of them different.",
            f"At least {SHORTEST}, and {_FEWEST_DIFFERENT} different ones; or remove the file, and one is made.",
        )


def _certificate() -> tuple[str, str]:
    """Return a certificate of Argo's server, which speaks for itself, and its key, both as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ARGO_NAMES[0])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A clock on the cluster may be behind this one.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in ARGO_NAMES]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def _identities(directory: Path) -> str:
    """Return who may do what in SeaweedFS.

    The platform may use its buckets, the administrator may make them, a team of a cluster may use what lies below the
    prefix of its name.
    """
    users = [
        (USER, "object_store_secret", _actions(BUCKETS)),
        (ADMIN, "object_store_admin_secret", ["Admin"]),
    ]
    for file in sorted(directory.glob(f"{TEAMS}/*/object_store_secret")):
        team = file.parent.name
        users.append((team, str(file.relative_to(directory)), _actions([f"{name}/{team}/*" for name in TEAM_BUCKETS])))
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": (directory / secret).read_text(encoding="utf-8").strip()}],
            "actions": rights,
        }
        for name, secret, rights in users
    ]
    return json.dumps({"identities": identities}, indent=1)


def _actions(places: Sequence[str]) -> list[str]:
    return [f"{action}:{place}" for place in places for action in ("Read", "Write", "List", "Tagging")]

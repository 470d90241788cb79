"""Where a run finds its services: one frozen object, read once at the edge and passed down.

A value comes from the first of: an argument, the environment (`SHOPFLOOR_*`), the state of the running embedded stack,
the profile file, the default. Secrets are not settings, and refused where one stands in an address: the components read
them from their own environment variables (`AWS_ACCESS_KEY_ID`, `MLFLOW_TRACKING_PASSWORD`, ...) and files.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, ValidationError, field_validator

from shopfloor.environment import ENV_PREFIX, NO_REPORTS, THROUGH_MLFLOW
from shopfloor.errors import NotFoundError, UsageError

_CHILD = "artifact_root"
"""A process that was started by another one has all settings in its environment, and the profile's file perhaps not:
an image does not hold the profile of every team."""
NO_TOKENS = "none"
"""Value of `serve_tokens_file` that takes the protection away from the endpoints that are deployed with it."""
EMBEDDED = "embedded"
"""Profile whose services are this account's own, on this machine."""
_PLACES = ("artifact_root", "secrets_dir", "feature_registry", "online_store", "serve_tokens_file", "ray_token_file")
"""The settings that may hold a relative path."""
_PROFILES = Path("platform") / "profiles"
_NO_SECRETS = {
    "tracking_uri": "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead.",
    "online_store": "Set REDIS_PASSWORD instead.",
    "feature_registry": "Let the database's own client find it: PGPASSWORD or ~/.pgpass for PostgreSQL.",
    "ray_dashboard_url": "Name a file that holds Ray's token with ray_token_file instead.",
}
"""How else a secret gets to who needs it, for the settings where one could stand in the address."""
_SECRET = re.compile(r"[?&,;](?:\w*password|passwd|pwd|\w*token|\w*secret)=[^&,;]", re.IGNORECASE)
PLATFORM_IMAGE = "shopfloor/platform:0.1.0"
"""Name of the platform image as `make images` builds it and compiled pipelines have it; a cluster may have another."""
ALL_RUNS, LIMITS = "runs", "limits"
"""Key of how many runs of a team go on at a time on a cluster, and the ConfigMap in its namespace that has it."""
Source = Literal["argument", "environment", "stack", "profile", "default"]


class ClusterSettings(BaseModel):
    """What runs on Kubernetes are made with: the `[cluster]` table of a profile, a team's own values in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = "shopfloor"
    """The team's namespace."""
    image: str = PLATFORM_IMAGE
    """The platform image: Python, the lock's packages and this project."""
    service_account: str = "shopfloor-run"
    queue: str | None = None
    """Kueue LocalQueue of the team; `None` leaves the pods to the default scheduler."""
    priority_class: str | None = None
    """Kueue WorkloadPriorityClass."""
    limits: tuple[str, ...] = ()
    """Keys of the ConfigMap `limits` in the namespace, which says how many runs go on at a time: `runs` counts all, the
    name of a pipeline those of that pipeline. The others wait in Argo."""
    environment_secret: str | None = None
    """Secret whose keys every step gets as environment variables, e.g. the object store's."""
    argo_url: str = "http://127.0.0.1:2746"
    kfp_url: str = "http://127.0.0.1:8888"
    token_file: Path | None = None
    """File with the bearer token of Argo or KFP, read anew for each request; $ARGO_TOKEN and $KFP_TOKEN go first."""
    artifact_repository: str = "artifact-repositories"
    """Argo's ConfigMap that says where artifacts go."""
    artifact_repository_key: str = "default"
    active_deadline_s: int = 86_400
    """Longest life of a run."""
    ttl_success_s: int = 86_400
    """How long a workflow stays after it succeeded."""
    ttl_failure_s: int = 604_800
    pod_gc: Literal["OnPodCompletion", "OnPodSuccess", "OnWorkflowCompletion", "OnWorkflowSuccess"] = "OnPodSuccess"
    parallelism: int = 16
    """Pods of one run at a time."""
    ray_head_cpu: str = "1"
    """CPU that the head of a search's Ray cluster asks for; it does no work, and a small machine has less to give."""
    ray_head_memory: str = "4Gi"
    currency: str = "USD"
    """Currency of the prices."""
    prices: dict[str, dict[Literal["gpu", "cpu"], NonNegativeFloat]] = {}
    """Price of an hour of a GPU, a CPU or both, by Kueue's flavor; empty: nobody counts what a run costs."""

    def __hash__(self) -> int:
        """Return a hash also of the prices, which are a table."""
        return hash(self.model_dump_json())

    def image_of(self, image: str) -> str:
        """Return the image of a step as the cluster pulls it: the platform's own by the profile's name for it."""
        return self.image if image == PLATFORM_IMAGE else image

    def token(self, variable: str) -> str:
        """Return the bearer token of a server: the variable's, or else the file's as it is now; empty where none is.

        Raises:
            UsageError: The file cannot be read.
        """
        token = os.environ.get(variable, "")
        if not token and self.token_file is not None:
            try:
                token = self.token_file.read_text(encoding="utf-8")
            except OSError as error:
                raise UsageError(
                    f"The token file {self.token_file} cannot be read: {error.strerror}.", "Mend it."
                ) from error
        return token.strip().removeprefix("Bearer ").strip()


class Settings(BaseModel):
    """Addresses and places of one profile. Relative paths in it are relative to `project_root`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project_root: Path
    profile: str = EMBEDDED
    state_dir: Path = Path(".shopfloor")
    """Everything that the embedded stack and the runs keep on this machine."""
    default_engine: Literal["local", "ray", "argo", "kfp"] = "local"
    tracking_uri: str = "http://127.0.0.1:5000"
    """MLflow tracking and registry server."""
    artifact_root: str = ".shopfloor/artifacts"
    """URI or directory of what steps hand on, the result store and the checkpoints."""
    s3_endpoint_url: str | None = None
    data_remote: str | None = None
    """DVC remote in place of the one in `.dvc/config`, such as `s3://bucket/prefix`."""
    secrets_dir: str | None = None
    """Directory that `shopfloor secrets init` filled: what the components ask for is taken from there."""
    backup_aws_profile: str | None = None
    """Profile of AWS's own configuration files that has the address and the keys of the store of backups, where that is
    another object store than the stack's."""
    in_containers: bool = False
    """Whether the Ray cluster runs in containers, which know the services by other addresses than this machine."""
    ray_address: str = "127.0.0.1:6379"
    """Ray cluster that searches join; `rayjob`: each brings its own, a KubeRay RayJob in the team's namespace."""
    ray_dashboard_url: str = "http://127.0.0.1:8265"
    ray_token_file: str | None = None
    """File with the token that the Ray cluster asks for; the embedded stack makes its own."""
    serve_url: str = "http://127.0.0.1:8000"
    serve_tokens_file: str | None = None
    """File with the hashes of the tokens that the endpoints ask for, where each replica reads it.

    Without it an endpoint keeps the file that it has; `none` lets everybody ask.
    """
    serve_hosts: str = ""
    """Names, with commas, under which endpoints on this machine answer beside 127.0.0.1 and localhost."""
    feature_registry: str = ".shopfloor/feast/registry.db"
    """Feast's registry: a file path, an s3:// URI or an SQLAlchemy URL."""
    online_store: str = ".shopfloor/feast/online.db"
    """Feast's online store: a SQLite file, or `redis://host:port`."""
    cluster: ClusterSettings = ClusterSettings()
    run_id: str | None = None
    """MLflow run that the process works for; an engine sets it for its steps."""
    step_run_id: str | None = None
    """MLflow run of the step; an engine sets it."""
    max_cost: PositiveFloat | None = None
    """What a run on the cluster may cost, in `cluster.currency`; `submit --max-cost` sets it, and its steps keep it."""
    attempt: str | None = None
    """Attempt that the process belongs to (`attempts.py`); an engine sets it for its steps."""
    published_dir: Path | None = None
    """Where a step leaves a note of each artifact that it published, so that a failed step's are known too."""
    request_timeout_s: float = 30.0
    """How long one network call may take."""

    @field_validator("cluster", mode="before")
    @classmethod
    def _from_environment(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @property
    def lock_file(self) -> Path:
        """File that pins every package that a step runs with."""
        return self.project_root / "requirements" / "runtime.txt"

    def environment(self) -> dict[str, str]:
        """Return the variables that give a child process the same settings."""
        values = {
            f"{ENV_PREFIX}{name.upper()}": value.model_dump_json() if isinstance(value, BaseModel) else str(value)
            for name, value in self
            if value is not None
        }
        values |= {**NO_REPORTS, "MLFLOW_TRACKING_URI": self.tracking_uri}
        if self.ray_token_file:
            # A token in the variable would go before the file.
            values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": self.ray_token_file, "RAY_AUTH_TOKEN": ""}
        if self.ray_address.startswith(("127.", "localhost:")):
            # A Ray driver would look for a local head on the machine's outer address, where the embedded one is not.
            values["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if self.s3_endpoint_url:
            values["AWS_ENDPOINT_URL"] = self.s3_endpoint_url
            values["MLFLOW_S3_ENDPOINT_URL"] = self.s3_endpoint_url
            values["FEAST_S3_ENDPOINT_URL"] = self.s3_endpoint_url
            values["AWS_REQUEST_CHECKSUM_CALCULATION"] = "WHEN_REQUIRED"
        return values | (THROUGH_MLFLOW if self.in_containers else {})

    def ray_headers(self) -> dict[str, str]:
        """Return what every request to Ray's dashboard carries: the cluster's token, as the file holds it now.

        Without `ray_token_file` it is what Ray's own clients would send: nothing, unless RAY_AUTH_MODE is `token`.

        Raises:
            UsageError: The file cannot be read.
        """
        file, token = self.ray_token_file, ""
        if file is None and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
            token = os.environ.get("RAY_AUTH_TOKEN", "")
            file = os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
        if file is not None and not token:
            try:
                token = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(
                    f"Ray's token file {file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.",
                    "`shopfloor up` makes that of the embedded stack; for another cluster ask who runs it.",
                ) from error
        return {"Authorization": f"Bearer {token}"} if token else {}

    def with_ray_dashboard(self, url: str) -> Settings:
        """Return the settings for another Ray cluster; it never gets the token of this one.

        Raises:
            UsageError: The address has a password or token in it.
        """
        _refuse_secrets({"ray_dashboard_url": url}, {"ray_dashboard_url": "argument"})
        same = url.rstrip("/") == self.ray_dashboard_url.rstrip("/")
        other = {} if same else {"ray_token_file": None}
        return self.model_copy(update={"ray_dashboard_url": url.rstrip("/"), **other})

    def private_state_dir(self) -> Path:
        """Return the state directory, made for this account alone where it is missing, and closed to all others.

        Raises:
            UsageError: It cannot be made, belongs to another account, or stays open to others.
        """
        place = self.state_dir
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if place.stat().st_mode & 0o077:
                place.chmod(0o700)
            wide = place.stat().st_mode & 0o077
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UsageError(
                f"The state directory {place} cannot be written or closed to other accounts: {error.strerror}.",
                "Mend its owner and permissions, or set SHOPFLOOR_STATE_DIR to another directory.",
            ) from error
        if wide:
            raise UsageError(
                f"The state directory {place} stays open to other accounts: its file system keeps no permissions.",
                "Set SHOPFLOOR_STATE_DIR to a directory on another one: whoever reads it runs code as you.",
            )
        return place

    def private_dir(self, *parts: str) -> Path:
        """Return a directory below the state directory, made where it is missing; see `private_state_dir`."""
        place = self.private_state_dir().joinpath(*parts)
        place.mkdir(parents=True, exist_ok=True)
        return place


class SourcedSettings(BaseModel):
    """Settings, and for each field where its value came from."""

    model_config = ConfigDict(frozen=True)

    settings: Settings
    sources: dict[str, Source]
    """Sources by the setting's name; those of the cluster's stand as `cluster.queue` beside it."""

    def values(self) -> dict[str, Any]:
        """Return each setting's value by its name, the cluster's as `cluster.queue`."""
        values = {name: value for name, value in self.settings if name != "cluster"}
        return values | {f"cluster.{name}": value for name, value in self.settings.cluster}


def find_project_root(start: Path | None = None) -> Path:
    """Return the directory at or above `start` that holds `pyproject.toml` and `pipelines/`.

    Raises:
        NotFoundError: No such directory.
    """
    root = os.environ.get(f"{ENV_PREFIX}PROJECT_ROOT")
    if root:
        return Path(root).resolve()
    here = (start or Path.cwd()).resolve()
    for directory in (here, *here.parents):
        if (directory / "pyproject.toml").is_file() and (directory / "pipelines").is_dir():
            return directory
    raise NotFoundError(
        f"No Shopfloor project at or above {here}.",
        "Change into your clone, or set SHOPFLOOR_PROJECT_ROOT to it.",
    )


def load_settings(profile: str | None = None, **arguments: Any) -> Settings:
    """Return the settings of `profile` (default: $SHOPFLOOR_PROFILE, then `embedded`); see `load_sourced_settings`."""
    return load_sourced_settings(profile, **arguments).settings


def load_sourced_settings(profile: str | None = None, **arguments: Any) -> SourcedSettings:
    """Merge arguments, environment, stack state, profile file and defaults.

    Args:
        profile: Name of a file in `platform/profiles/`, without its ending; or the path of one that stands elsewhere.
        **arguments: Fields of `Settings` that override everything else; `None` means not given.

    Raises:
        NotFoundError: There is no project here, or no such profile.
        UsageError: A value has the wrong type, an unknown name, or a secret in it.
    """
    root = Path(arguments.pop("project_root", None) or find_project_root())
    environment = {
        name: os.environ[f"{ENV_PREFIX}{name.upper()}"]
        for name in Settings.model_fields
        if f"{ENV_PREFIX}{name.upper()}" in os.environ and name != "project_root"
    }
    explicit = {name: value for name, value in arguments.items() if value is not None}
    name = _profile_name(profile or environment.get("profile") or EMBEDDED)
    layers: list[tuple[Source, dict[str, Any]]] = [
        ("argument", explicit),
        ("environment", environment),
        ("profile", _read_profile(root, name, required=bool(profile) or _CHILD not in environment)),
    ]
    merged: dict[str, Any] = {"project_root": root, "profile": name}
    sources: dict[str, Source] = {"project_root": "default", "profile": "default"}
    for source, layer in reversed(layers):
        merged.update(layer)
        sources.update(dict.fromkeys(layer, source))
    merged["profile"] = name
    if profile:
        sources["profile"] = "argument"
    _refuse_secrets(merged, sources)
    try:
        settings = _absolute(Settings.model_validate(merged))
        if name == EMBEDDED:
            state = _stack_state(settings)
            stack = {key: value for key, value in state.items() if key not in {*explicit, *environment}}
            if settings.model_copy(update=stack).ray_dashboard_url != state.get("ray_dashboard_url"):
                stack.pop("ray_token_file", None)  # another cluster never gets this one's token
            settings = settings.model_copy(update=stack)
            sources.update(dict.fromkeys(stack, "stack"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"Setting {field!r} ({sources.get(str(first['loc'][0]), 'default')}): {first['msg']},"
            f" not {first['input']!r}.",
            "See docs/reference/settings.md for the settings.",
        ) from error
    for field in ClusterSettings.model_fields:
        in_table = field in settings.cluster.model_fields_set
        sources[f"cluster.{field}"] = sources.get("cluster", "default") if in_table else "default"
    return SourcedSettings(settings=settings, sources={**dict.fromkeys(Settings.model_fields, "default"), **sources})


def stack_state_file(settings: Settings) -> Path:
    """Return where `shopfloor up` records the addresses of the embedded services."""
    return settings.state_dir / "stack.json"


def profile_file(root: Path, name: str) -> Path:
    """Return where a profile stands."""
    return Path(name) if name.endswith(".toml") else root / _PROFILES / f"{name}.toml"


def _profile_name(text: str) -> str:
    """Return the name of a profile, for a file by path its whole one: a step begins in another directory."""
    return str(Path(text).expanduser().resolve()) if text.endswith(".toml") else text


def _refuse_secrets(values: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    """Refuse an address with a password in it: addresses stand in logs, links, manifests and Ray's job lists."""
    cluster = values.get("cluster")
    inner = {f"cluster.{key}": value for key, value in cluster.items()} if isinstance(cluster, dict) else {}
    for field, value in {**values, **inner}.items():
        if isinstance(value, str) and "://" in value and _holds_secret(value):
            source = sources.get(field.partition(".")[0], "default")
            raise UsageError(
                f"Setting {field!r} ({source}) has a password or token in its address.",
                _NO_SECRETS.get(field, "Take it out: the component reads it from its own environment variable."),
            )


def _holds_secret(address: str) -> bool:
    scheme, _, rest = address.partition("://")
    if scheme in {"s3", "gs", "file"} or scheme.startswith("sqlite"):
        return False
    web = scheme in {"http", "https"}  # where a user alone may be a token, and a path may hold what looks like one
    user = (re.split("[/?#]", rest)[0] if web else rest).rpartition("@")[0]
    return ":" in user or bool(web and user) or bool(_SECRET.search(rest))


def _read_profile(root: Path, name: str, required: bool) -> dict[str, Any]:
    file = profile_file(root, name)
    folder = file.parent
    if not file.is_file() and not required:
        return {}
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in (root / _PROFILES).glob("*.toml"))) or "none"
        raise NotFoundError(
            f"There is no profile {name!r} in {folder}.",
            f"Known profiles: {names}; or name a file that ends in .toml.",
        )
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: {error}.", "Mend the file.") from error


def _stack_state(settings: Settings) -> dict[str, str]:
    """Return what `shopfloor up` recorded: the addresses and Ray's token file; without a stack, nothing."""
    try:
        state = json.loads(stack_state_file(settings).read_text(encoding="utf-8"))
        own = {**state["addresses"], "ray_token_file": state["ray_token_file"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {key: str(value) for key, value in own.items() if key in Settings.model_fields}


def _absolute(settings: Settings) -> Settings:
    """Anchor relative paths: at the state directory where they begin with `.shopfloor/`, else at the project."""
    root = settings.project_root
    state_dir = (root / settings.state_dir).resolve()

    def anchor(value: str) -> str:
        if "://" in value or Path(value).is_absolute() or value == NO_TOKENS:
            return value
        path = Path(value)
        if path.parts and path.parts[0] == ".shopfloor":
            return str(state_dir.joinpath(*path.parts[1:]))
        return str((root / path).resolve())

    return settings.model_copy(
        update={
            "state_dir": state_dir,
            **{field: anchor(getattr(settings, field)) for field in _PLACES if getattr(settings, field)},
        }
    )

"""Where a run finds its services: one frozen object, read once at the edge and passed down.

A value comes from the first of: an argument, the environment (`SHOPFLOOR_*`), the state of the running embedded stack,
the profile file, the default. Secrets are not settings: the components read them from their own environment variables
(`AWS_ACCESS_KEY_ID`, `MLFLOW_TRACKING_PASSWORD`, ...).
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from shopfloor.errors import NotFoundError, UsageError

ENV_PREFIX = "SHOPFLOOR_"
_CHILD = "artifact_root"
"""A process that was started by another one has all settings in its environment, and the profile's file perhaps not:
an image does not hold the profile of every team."""
NO_TOKENS = "none"
"""Value of `serve_tokens_file` that takes the protection away from the endpoints that are deployed with it."""
Source = Literal["argument", "environment", "stack", "profile", "default"]


class ClusterSettings(BaseModel):
    """What runs on Kubernetes are made with: the `[cluster]` table of a profile, a team's own values in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = "shopfloor"
    """The team's namespace."""
    image: str = "shopfloor/platform:0.1.0"
    """The platform image: Python, the lock's packages and this project."""
    service_account: str = "shopfloor-run"
    queue: str | None = None
    """Kueue LocalQueue of the team; `None` leaves the pods to the default scheduler."""
    priority_class: str | None = None
    """Kueue WorkloadPriorityClass."""
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

    def token(self, variable: str) -> str:
        """Return the bearer token of a server: the variable's, or else the file's as it is now; empty where none is.

        Raises:
            UsageError: The file cannot be read.
        """
        given = os.environ.get(variable, "")
        if not given and self.token_file is not None:
            try:
                given = self.token_file.read_text(encoding="utf-8")
            except OSError as error:
                raise UsageError(
                    f"The token file {self.token_file} cannot be read: {error.strerror}.", "Mend it."
                ) from error
        return given.strip().removeprefix("Bearer ").strip()


class Settings(BaseModel):
    """Addresses and places of one profile. Relative paths in it are relative to `project_root`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project_root: Path
    profile: str = "embedded"
    state_dir: Path = Path(".shopfloor")
    """Everything that the embedded stack and the runs keep on this machine."""
    default_engine: Literal["local", "ray", "argo", "kfp"] = "local"
    tracking_uri: str = "http://127.0.0.1:5000"
    """MLflow tracking and registry server."""
    artifact_root: str = ".shopfloor/artifacts"
    """URI or directory of what steps hand on, the result store and the checkpoints."""
    s3_endpoint_url: str | None = None
    ray_address: str = "127.0.0.1:6379"
    """Ray cluster that searches join; `rayjob`: each brings its own, a KubeRay RayJob in the team's namespace."""
    ray_dashboard_url: str = "http://127.0.0.1:8265"
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
        values |= {"MLFLOW_TRACKING_URI": self.tracking_uri, **NO_REPORTS}
        if self.ray_address.startswith(("127.", "localhost:")):
            # A Ray driver would look for a local head on the machine's outer address, where the embedded one is not.
            values["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if self.s3_endpoint_url:
            values["AWS_ENDPOINT_URL"] = self.s3_endpoint_url
            values["MLFLOW_S3_ENDPOINT_URL"] = self.s3_endpoint_url
            values["FEAST_S3_ENDPOINT_URL"] = self.s3_endpoint_url
            values["AWS_REQUEST_CHECKSUM_CALCULATION"] = "WHEN_REQUIRED"
        return values


NO_REPORTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "FEAST_USAGE": "False",
}
"""Variables that keep each component from reporting its use to its makers, for every process that we start.

MLflow's thread for it changes the environment while other threads read it, which ends one start in two of a pod.
"""


class SourcedSettings(BaseModel):
    """Settings, and for each field where its value came from."""

    model_config = ConfigDict(frozen=True)

    settings: Settings
    sources: dict[str, Source]


def find_project_root(start: Path | None = None) -> Path:
    """Return the directory at or above `start` that holds `pyproject.toml` and `pipelines/`.

    Raises:
        NotFoundError: No such directory.
    """
    given = os.environ.get(f"{ENV_PREFIX}PROJECT_ROOT")
    if given:
        return Path(given).resolve()
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
        UsageError: A value has the wrong type or an unknown name.
    """
    root = Path(arguments.pop("project_root", None) or find_project_root())
    environment = {
        name: os.environ[f"{ENV_PREFIX}{name.upper()}"]
        for name in Settings.model_fields
        if f"{ENV_PREFIX}{name.upper()}" in os.environ and name != "project_root"
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    name = profile or environment.get("profile") or "embedded"
    if name.endswith(".toml"):
        name = str(Path(name).expanduser().resolve())
    layers: list[tuple[Source, dict[str, Any]]] = [
        ("argument", given),
        ("environment", environment),
        ("profile", _read_profile(root, name, required=bool(profile) or _CHILD not in environment)),
    ]
    merged: dict[str, Any] = {"project_root": root, "profile": name}
    sources: dict[str, Source] = {"project_root": "default", "profile": "argument" if profile else "default"}
    for source, layer in reversed(layers):
        merged.update(layer)
        sources.update(dict.fromkeys(layer, source))
    merged["profile"] = name
    try:
        settings = _absolute(Settings.model_validate(merged))
        if name == "embedded":
            stack = {key: value for key, value in _stack_state(settings).items() if key not in {*given, *environment}}
            settings = settings.model_copy(update=stack)
            sources.update(dict.fromkeys(stack, "stack"))
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise UsageError(
            f"Setting {field!r} ({sources.get(field, 'default')}): {first['msg']}, not {first['input']!r}.",
            "See docs/reference/settings.md for the settings.",
        ) from error
    return SourcedSettings(
        settings=settings, sources={field: sources.get(field, "default") for field in Settings.model_fields}
    )


def stack_state_file(settings: Settings) -> Path:
    """Return where `shopfloor up` records the addresses of the embedded services."""
    return settings.state_dir / "stack.json"


def _read_profile(root: Path, name: str, required: bool) -> dict[str, Any]:
    folder = root / "platform" / "profiles"
    # A team's own file may stand anywhere.
    own = name.endswith(".toml") or "/" in name
    file = Path(name).expanduser() if own else folder / f"{name}.toml"
    if not file.is_file() and not required:
        return {}
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.toml"))) or "none"
        where = "" if own else f" in {folder}"
        raise NotFoundError(
            f"There is no profile {name!r}{where}.", f"Known profiles: {known}; or name a file that ends in .toml."
        )
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: {error}.", "Mend the file.") from error


def _stack_state(settings: Settings) -> dict[str, str]:
    """Return the addresses that `shopfloor up` recorded; without a stack, none."""
    try:
        state: dict[str, Any] = json.loads(stack_state_file(settings).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    addresses: dict[str, str] = state.get("addresses", {})
    return {key: value for key, value in addresses.items() if key in Settings.model_fields}


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
            **{
                field: anchor(getattr(settings, field))
                for field in ("artifact_root", "feature_registry", "online_store", "serve_tokens_file")
                if getattr(settings, field) is not None
            },
        }
    )

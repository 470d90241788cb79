"""The environment of processes: what each of ours has, whatever the person's shell says, and what is sent elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping

ENV_PREFIX = "SHOPFLOOR_"
NO_REPORTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "False",
    "DVC_NO_ANALYTICS": "1",
}
"""Variables that keep each component from reporting its use to its makers, for every process that we start.

MLflow's thread for it changes the environment while other threads read it, which ends one start in two of a pod.
"""
THROUGH_MLFLOW = {f"MLFLOW_ENABLE_PROXY_MULTIPART_{way}": "false" for way in ("UPLOAD", "DOWNLOAD")}
"""Variables that let MLflow's client send artifacts through its server. The server would else give it an address of the
object store that it signed, and that only containers can find."""
PATIENT = {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "12"}
"""Variables that let a pod of a run wait a minute for its object store: one that moves to another node fails no search.

Who waits at a terminal is told within some seconds.
"""
_ONLY_HERE = {
    *(f"{ENV_PREFIX}{name}" for name in ("PROJECT_ROOT", "STATE_DIR", "SECRETS_DIR", "STEP_RUN_ID", "PUBLISHED_DIR")),
    *(f"{ENV_PREFIX}RAY_TOKEN_FILE", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
}
_ADDRESSES = {
    *(f"{ENV_PREFIX}{name}" for name in ("TRACKING_URI", "ARTIFACT_ROOT", "S3_ENDPOINT_URL", "DATA_REMOTE", "PROFILE")),
    *(f"{ENV_PREFIX}{name}" for name in ("RAY_DASHBOARD_URL", "SERVE_URL", "FEATURE_REGISTRY", "ONLINE_STORE")),
    *(f"{ENV_PREFIX}SERVE_TOKENS_FILE", f"{ENV_PREFIX}IN_CONTAINERS", "MLFLOW_TRACKING_URI"),
    *("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL", "FEAST_S3_ENDPOINT_URL"),
    *THROUGH_MLFLOW,
}
"""Variables that say where a service or the tokens' file is; containers have their own."""


def direct_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep requests to this machine away from the proxy that an environment names."""
    names = environment.get("no_proxy", ""), environment.get("NO_PROXY", "")
    hosts = [host for text in names for host in text.split(",") if host.strip()]
    # A star counts only where it stands alone.
    direct = "*" if "*" in hosts else ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost", "::1"]))
    return {"NO_PROXY": direct, "no_proxy": direct}


def elsewhere(environment: Mapping[str, str], in_containers: bool = False) -> dict[str, str]:
    """Return what `Settings.environment` gave without what is true only of this machine: its places and its tokens.

    Args:
        environment: The variables.
        in_containers: Leave the services' addresses out too: who gets the variables has its own.
    """
    without = _ONLY_HERE | _ADDRESSES if in_containers else _ONLY_HERE
    values = {name: value for name, value in environment.items() if name not in without}
    cluster = f"{ENV_PREFIX}CLUSTER"
    if cluster in values:
        values[cluster] = json.dumps({**json.loads(values[cluster]), "token_file": None})
    return values

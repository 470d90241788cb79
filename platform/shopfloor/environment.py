"""What every process of ours has in its environment, whatever the person's shell says; imports nothing."""

from __future__ import annotations

from collections.abc import Mapping

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


def direct_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep requests to this machine away from the proxy that an environment names."""
    names = environment.get("no_proxy", ""), environment.get("NO_PROXY", "")
    hosts = [host for text in names for host in text.split(",") if host.strip()]
    # A star counts only where it stands alone.
    direct = "*" if "*" in hosts else ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost", "::1"]))
    return {"NO_PROXY": direct, "no_proxy": direct}

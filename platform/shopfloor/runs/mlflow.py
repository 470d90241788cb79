"""Imports MLflow without importing Feast: every MLflow client asks its plugins for request headers, and Feast is one.

Feast's plugin adds the tokens of Feast's own auth manager, which nobody uses here, and costs each process that talks to
MLflow five seconds and 100 MiB. MLflow has no switch for it, so the plugin is left out while MLflow collects them.
"""

from __future__ import annotations

from typing import Any


def import_mlflow() -> Any:
    """Return the module `mlflow`, its request header plugins collected without Feast's."""
    import mlflow
    from mlflow.utils import plugins

    collect = plugins.get_entry_points
    plugins.get_entry_points = lambda group: [point for point in collect(group) if not point.value.startswith("feast.")]
    try:
        import mlflow.tracking.request_header.registry
    finally:
        plugins.get_entry_points = collect
    return mlflow

"""Judge a version by what it did for the requests of the last hours."""

from kfp import dsl

from components.base import component

READS = ()


@component
def monitor(
    use_case: str,
    version: str,
    hours: float,
    monitored: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> bool:
    """Return whether no gate on real requests is missed; `monitored` says what the version did."""
    from shopfloor.serving.monitoring import monitor
    from shopfloor.settings import load_settings

    return monitor(load_settings(), use_case, version, hours, monitored, metrics)

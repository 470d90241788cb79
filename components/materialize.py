"""Put the newest feature values into the online store, which the endpoint looks them up in."""

from kfp import dsl

from components.base import component

READS = ("features", "features.py", "serving")


@component
def materialize(
    use_case: str,
    tables: dsl.Input[dsl.Dataset],
    online: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Write what follows from `tables`; `online` says how much of which view, up to when."""
    from shopfloor.data.materialization import materialize
    from shopfloor.settings import load_settings

    materialize(load_settings(), use_case, tables.uri, online, metrics)

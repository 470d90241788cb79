"""Join the features of every row as of its time, through Feast, or take them from a table; split the rows."""

from kfp import dsl

from components.base import component

READS = ("task", "features", "features.py")


@component
def build_features(
    use_case: str,
    tables: dsl.Input[dsl.Dataset],
    checks: dsl.Input[dsl.Artifact],
    features: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Make the splits; `checks` is here so that nothing is built from data that the gate refused."""
    from shopfloor.data.building import build
    from shopfloor.settings import load_settings

    build(load_settings(), use_case, tables.uri, features, metrics)

"""Check every table against the use case's expectations; an unmet critical one stops the run."""

from kfp import dsl

from components.base import component

READS = ("data", "expectations.py")


@component
def validate_data(
    use_case: str,
    tables: dsl.Input[dsl.Dataset],
    checks: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Run Great Expectations; `checks` holds the results and the Data Docs."""
    from shopfloor.data.quality import validate
    from shopfloor.settings import load_settings

    validate(load_settings(), use_case, tables.uri, checks, metrics)

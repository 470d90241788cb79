"""Pull the tables of a data version out of DVC."""

from kfp import dsl

from components.base import component

READS = ("data",)


@component
def pull_data(
    use_case: str,
    tables: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    data_rev: str = "",
    data_version: str = "",
) -> None:
    """Hand on the tables that `data_rev` names; they must have the hash `data_version` where one is given."""
    from shopfloor.data.versions import pull
    from shopfloor.settings import load_settings

    pull(load_settings(), use_case, data_rev, data_version, tables, metrics)

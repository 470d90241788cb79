"""Fills the online store of a use case with the newest values of its features, without a new model."""

from kfp import dsl

from components.materialize import materialize as fill
from components.pull_data import pull_data


@dsl.pipeline(name="materialize", description="From a data version to features at request time.")
def materialize(use_case: str, data_rev: str = "", data_version: str = "") -> None:
    """Write the newest values into the online store, from which endpoints read them at once.

    Args:
        use_case: Folder under `pipelines/`.
        data_rev: Git revision of the data; empty means the workspace.
        data_version: DVC hash that the revision must have; `shopfloor submit` fills it in.
    """
    pulled = pull_data(use_case=use_case, data_rev=data_rev, data_version=data_version)
    fill(use_case=use_case, tables=pulled.outputs["tables"])

"""Scores a data set of any size with the champion, or another version, of a use case."""

from kfp import dsl

from components.complete import complete
from components.score import score


@dsl.pipeline(name="batch-scoring", description="From a parquet data set to its predictions.")
def batch_scoring(use_case: str, data: str, version: str = "", predictions: str = "", data_rev: str = "") -> None:
    """Score every row of a data set.

    Args:
        use_case: Folder under `pipelines/`.
        data: A parquet file or a directory of them, path or URI, with the model's columns, or with
            the entities and the time (`event_timestamp`) that their features are looked up by.
        version: Version that scores; empty means the champion.
        predictions: Directory for the predictions, path or URI; empty means among the artifacts.
        data_rev: Git revision of the tables that the features come from; empty means the workspace.
    """
    # The key of a step knows the data's name, not its content. `score` itself finds what it has scored before.
    rows = complete(use_case=use_case, data=data, data_rev=data_rev).set_caching_options(False)
    score(use_case=use_case, version=version, data=rows.outputs["Output"], predictions=predictions).set_caching_options(
        False
    )

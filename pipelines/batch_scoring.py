"""Scores a data set of any size with the champion, or another version, of a use case."""

from kfp import dsl

from components.score import score


@dsl.pipeline(name="batch-scoring", description="From a parquet data set to its predictions.")
def batch_scoring(use_case: str, data: str, version: str = "", predictions: str = "") -> None:
    """Score every row of a data set.

    Args:
        use_case: Folder under `pipelines/`.
        data: A parquet file or a directory of them, path or URI, with the model's columns.
        version: Version that scores; empty means the champion.
        predictions: Directory for the predictions, path or URI; empty means among the artifacts.
    """
    # The key of a step knows the data's name, not its content. The step itself finds what it has scored before.
    score(use_case=use_case, version=version, data=data, predictions=predictions).set_caching_options(False)

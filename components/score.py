"""Score a data set with a version of the model."""

from kfp import dsl

from components.base import component

READS = ()


@component
def score(use_case: str, version: str, data: str, predictions: str, scored: dsl.Output[dsl.Dataset]) -> int:
    """Return how many rows were scored; `scored` says where the predictions are."""
    from shopfloor.serving.batch import score
    from shopfloor.settings import load_settings

    return score(load_settings(), use_case, version, data, predictions, scored)

"""Search for the best parameters on the Ray cluster."""

from kfp import dsl

from components.base import component

READS = ("task", "search", "model", "model.py", "metrics.py")


@component
def tune(
    use_case: str,
    features: dsl.Input[dsl.Dataset],
    trials: int,
    model: dsl.Output[dsl.Model],
    search: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Run `trials` trials (0: as many as the use case says); `model` is the best one's."""
    from shopfloor.settings import load_settings
    from shopfloor.training.tuning import tune

    tune(load_settings(), use_case, features.uri, trials, model, search, metrics)

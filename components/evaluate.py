"""Judge a model on the test set: metrics, slices, the champion on the same rows, gates."""

from kfp import dsl

from components.base import component

READS = ("task", "evaluation", "gates", "model", "model.py", "metrics.py")


@component
def evaluate(
    use_case: str,
    features: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    champion: str,
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> bool:
    """Return whether every gate is met."""
    from shopfloor.judging.evaluate import evaluate
    from shopfloor.serving.assignment import resolve
    from shopfloor.settings import load_settings

    settings = load_settings()
    version = resolve(settings, use_case, champion)  # which a schedule cannot name before its run
    return evaluate(settings, use_case, features.uri, model.uri, version, evaluation, metrics)

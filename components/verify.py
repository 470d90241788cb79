"""Prove that a deployed version answers as it did offline."""

from kfp import dsl

from components.base import component

READS = ("task", "evaluation", "model", "model.py")


@component
def verify(
    use_case: str,
    version: str,
    features: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    deployment: dsl.Input[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Send rows of the test set to `version`; `deployment` makes it run again for each deployment."""
    from shopfloor.serving.deploy.verify import verify
    from shopfloor.settings import load_settings

    verify(load_settings(), use_case, version, features.uri, model.uri, metrics)

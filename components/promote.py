"""Make a verified version the champion: the one that answers."""

from kfp import dsl

from components.base import component

READS = ()


@component
def promote(use_case: str, version: str, champion: dsl.Output[dsl.Artifact]) -> None:
    """Move the champion alias and the endpoint to `version`."""
    from shopfloor.serving.deploy.steps import promote
    from shopfloor.settings import load_settings

    promote(load_settings(), use_case, version, champion)

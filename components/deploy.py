"""Load a new version into the endpoint, beside the champion that answers."""

from kfp import dsl

from components.base import component

READS = ("serving",)


@component
def deploy(use_case: str, version: str, deployment: dsl.Output[dsl.Artifact]) -> None:
    """Make `version` the challenger; `deployment` says where it answers."""
    from shopfloor.serving.deploy.steps import introduce
    from shopfloor.settings import load_settings

    introduce(load_settings(), use_case, version, deployment)

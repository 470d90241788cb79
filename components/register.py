"""Make one registry version of a model that met its gates, with its passport."""

from kfp import dsl

from components.base import component

READS = ("task", "evaluation", "model", "model.py")


@component
def register(
    use_case: str,
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    features: dsl.Input[dsl.Dataset],
    checks: dsl.Input[dsl.Artifact],
    tables: dsl.Input[dsl.Dataset],
    model_version: dsl.Output[dsl.Artifact],
) -> str:
    """Return the new version; `model_version` holds the passport."""
    from shopfloor.registry.register import register
    from shopfloor.settings import load_settings

    made_of = {"model": model, "evaluation": evaluation, "features": features, "checks": checks, "tables": tables}
    return register(load_settings(), use_case, made_of, model_version)

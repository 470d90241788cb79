"""The main DAG: a data version goes in, a served and verified champion comes out, or a reason why not."""

from kfp import dsl

from components.build_features import build_features
from components.deploy import deploy
from components.evaluate import evaluate
from components.materialize import materialize
from components.promote import promote
from components.pull_data import pull_data
from components.register import register
from components.tune import tune
from components.validate_data import validate_data
from components.verify import verify


@dsl.pipeline(name="training", description="From a data version to a champion that answers.")
def training(
    use_case: str,
    data_rev: str = "",
    data_version: str = "",
    champion: str = "",
    trials: int = 0,
    register_only: bool = False,
) -> None:
    """Train, judge and serve a model of a use case.

    Args:
        use_case: Folder under `pipelines/`.
        data_rev: Git revision of the data; empty means the workspace.
        data_version: DVC hash that the revision must have; `shopfloor submit` fills it in.
        champion: Version to compare with; `shopfloor submit` fills it in, empty means none.
        trials: Trials of the search; 0 means as many as the use case says.
        register_only: Leave a verified version beside the champion as the challenger, and promote nothing.
    """
    pulled = pull_data(use_case=use_case, data_rev=data_rev, data_version=data_version)
    tables = pulled.outputs["tables"]
    checks = validate_data(use_case=use_case, tables=tables).outputs["checks"]
    features = build_features(use_case=use_case, tables=tables, checks=checks).outputs["features"]
    model = tune(use_case=use_case, features=features, trials=trials).outputs["model"]
    evaluated = evaluate(use_case=use_case, features=features, model=model, champion=champion)
    with dsl.If(evaluated.outputs["Output"] == True, name="gates-pass"):  # noqa: E712  KFP compiles the comparison
        registered = register(
            use_case=use_case,
            model=model,
            evaluation=evaluated.outputs["evaluation"],
            features=features,
            checks=checks,
            tables=tables,
        )
        version = registered.outputs["Output"]
        online = materialize(use_case=use_case, tables=tables)
        deployed = deploy(use_case=use_case, version=version).after(online)
        verified = verify(
            use_case=use_case,
            version=version,
            features=features,
            model=model,
            deployment=deployed.outputs["deployment"],
        )
        with dsl.If(register_only == False, name="promotion"):  # noqa: E712
            promote(use_case=use_case, version=version).after(verified)

"""The steps from a search of one trial to the evaluation of its model, without a cluster."""

from pathlib import Path

import pandas as pd
from shopfloor import storage
from shopfloor.judging.evaluate import evaluate
from shopfloor.records import Checks, DataVersion, Evaluation, Trial
from shopfloor.training.trial import Context, prepared, try_contract
from shopfloor.use_case import load_use_case

from tests.support.artifacts import Recorder


def artifact(settings, name, files):
    """Return an output artifact with these files, as the step of that name publishes it."""
    recorder = Recorder()
    with storage.publish(settings, recorder, name) as directory:
        for file, content in files.items():
            if isinstance(content, pd.DataFrame):
                content.to_parquet(directory / file)
            elif callable(content):
                content(directory)
            else:
                (directory / file).write_text(content.model_dump_json())
    return recorder


def search(settings, case, parts, record, params):
    """Return the artifact of a search of one trial, tried before as each search is."""
    code, names = case.code("model"), [*record.features, record.target]
    data = parts["train"][names], parts["validate"][names]
    try_contract(case, *data, record.target)
    reports = []
    context = Context(lambda *report: reports.append(report), rounds=1, threads=1)
    code.train(params, prepared(code, data, record.target), context)
    best = Trial(trial_id="t", params={}, metrics={}, rounds=1, seconds=1, status="finished")
    return artifact(
        settings, "tune", {"best_trial.json": best, "model": lambda directory: code.save(reports[-1][2], directory)}
    )


def judged(settings, name, parts, record, champion="", features=None, params=None):
    """Return what the steps from the search to the evaluation hand on, and the evaluation.

    Args:
        settings: Of a project with the use case.
        name: Of the use case.
        parts: Split to rows.
        record: The feature set.
        champion: Version to compare with.
        features: What `build_features` made, in place of an artifact of `parts` and `record`.
        params: Of the one trial.
    """
    case = load_use_case(settings, name)
    files = {f"{split}.parquet": part for split, part in parts.items()} | {"feature_set.json": record}
    made_of = {
        "features": features or artifact(settings, "features", files),
        "model": search(settings, case, parts, record, params or {"max_depth": 2}),
        "checks": artifact(settings, "checks", {"checks.json": Checks(success=True, checks=[])}),
        "tables": artifact(
            settings,
            "tables",
            {"data_version.json": DataVersion(path="data/toy", md5="0", rev="", commit="", tables=[])},
        ),
        "evaluation": Recorder(),
    }
    evaluate(settings, name, made_of["features"].uri, made_of["model"].uri, champion, made_of["evaluation"], Recorder())
    text = (Path(made_of["evaluation"].uri) / "evaluation.json").read_text()
    return made_of, Evaluation.model_validate_json(text)

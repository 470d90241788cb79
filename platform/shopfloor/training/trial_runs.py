"""A finished search in MLflow: each trial a run below its step's, with parameters and learning curve."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shopfloor.errors import ServiceError, first_line
from shopfloor.records import Search, Trial
from shopfloor.runs.mlflow import PARENT, add_params, connect
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

TRIAL = "shopfloor.trial"
"""Tag of a trial's run: its id."""
_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_AT_ONCE = 4


def record(settings: Settings, search: Search) -> None:
    """Record a search, where a run of MLflow stands for this step; a finished search is not lost where MLflow is away.

    Args:
        settings: `step_run_id` and `run_id` name the runs of the step and of the pipeline; both get the parameters of
            the best trial.
        search: What to record.
    """
    if settings.step_run_id is None:
        return
    import requests
    from mlflow.exceptions import MlflowException

    try:
        _record_search(settings, settings.step_run_id, search)
    except (ServiceError, MlflowException, requests.RequestException) as error:
        logger.warning("the trials of this search are not all in MLflow: %s", first_line(error))


def _record_search(settings: Settings, step_run_id: str, search: Search) -> None:
    client = connect(settings)
    experiment_id = client.get_run(step_run_id).info.experiment_id
    for run_id in filter(None, (step_run_id, settings.run_id)):
        add_params(client, run_id, search.best_params)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda trial: _record_trial(client, experiment_id, step_run_id, search, trial), search.trials))


def _record_trial(client: Any, experiment_id: str, step_run_id: str, search: Search, trial: Trial) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    tags = {PARENT: step_run_id, TRIAL: trial.trial_id, "mlflow.source.name": "shopfloor submit"}
    if trial.error:
        tags["mlflow.note.content"] = trial.error
    if trial.trial_id == search.best_trial_id:
        tags["shopfloor.best"] = "true"
    name = f"trial {trial.trial_id}"
    run = client.create_run(experiment_id, start_time=now - int(trial.seconds * 1000), tags=tags, run_name=name)
    curve = [Metric(search.metric, value, now, rounds) for rounds, value in trial.curve]
    ends = [Metric(f"best {name}", value, now, trial.rounds) for name, value in trial.metrics.items()]
    client.log_batch(run.info.run_id, metrics=[*curve, *ends], params=_params(trial.params))
    client.set_terminated(run.info.run_id, _STATUS[trial.status])


def _params(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)[:6000]) for name, value in values.items()]

"""What every engine can do, and what it tells of the steps that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from shopfloor.errors import Failure
from shopfloor.pipeline.results import Outputs
from shopfloor.records import StepRecord
from shopfloor.settings import Settings

StepState = Literal["cached", "succeeded", "failed", "killed"]
RunState = Literal["pending", "running", "succeeded", "gate_missed", "failed", "killed"]
GOING = frozenset({"pending", "running"})
"""States of a run that has not ended."""

KFP_RUN = "SHOPFLOOR_KFP_RUN"
"""Variable of a step on Kubeflow Pipelines that holds the backend's id of the run."""


def engine_url(settings: Settings, name: str) -> str:
    """Return where the engine of that name is: an address, and the namespace where it has one."""
    cluster = settings.cluster
    return {
        "local": "",
        "ray": settings.ray_dashboard_url,
        "argo": f"{cluster.argo_url} {cluster.namespace}",
        "kfp": f"{cluster.kfp_url} {cluster.namespace}",
    }[name]


class StepListener(Protocol):
    """Hears of each step as it happens: the run's record and the live view are listeners."""

    def step_started(self, step: str) -> dict[str, str]:
        """Hear that a step begins to run; return environment variables for its process."""
        ...

    def step_finished(
        self,
        step: str,
        state: StepState,
        seconds: float,
        outputs: Outputs,
        log: Path | None,
        failure: Failure | None,
        result_of: str = "",
    ) -> None:
        """Hear how a step ended; a cached step ends without having started, with the result of the run `result_of`."""
        ...


@dataclass(frozen=True)
class Job:
    """A compiled pipeline and what it is to be run with."""

    name: str
    """The pipeline's name."""
    ir: dict[str, Any]
    """KFP's `PipelineSpec` as JSON."""
    platforms: dict[str, Any]
    """KFP's platform configuration as JSON (`{"platforms": {"kubernetes": ...}}`), or empty."""
    arguments: dict[str, Any]
    """Values of the pipeline's parameters."""
    run_id: str | None = None
    """MLflow run that records it; `None` where there is none, as for `compile`."""
    use_cache: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    """Variables for every step: the settings (`Settings.environment`)."""
    cron: str | None = None
    """A schedule; `None` means now and once."""
    file: Path | None = None
    """The pipeline's file, for an engine that submits it anew somewhere else."""
    from_step: str | None = None
    """This step and what follows it run even where their results are known."""
    function: str | None = None
    """Name of one of the file's pipelines."""


@runtime_checkable
class KnowsSteps(Protocol):
    """An engine that can tell of the steps of a run, also of those that record nothing themselves."""

    def steps(self, engine_run: str) -> list[StepRecord]:
        """Return the steps in the order in which they began; one that waits has the reason as its error.

        Raises:
            NotFoundError: There is no such run here.
            ServiceError: The engine's service does not answer, or refuses.
        """
        ...


class Engine(Protocol):
    """Tells of runs and stops them. A run is named by the id that the engine itself knows it under."""

    name: ClassVar[str]

    def status(self, engine_run: str) -> RunState:
        """Return how the run stands.

        Raises:
            NotFoundError: There is no such run here.
        """
        ...

    def why(self, engine_run: str) -> str:
        """Return in one line what the engine says of how the run ended; empty where it says nothing."""
        ...

    def logs(self, engine_run: str, step: str | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the run's log, or of one step's; with `follow`, until the run ends."""
        ...

    def stop(self, engine_run: str) -> None:
        """Ask the run to end; what it finished stays finished."""
        ...


@runtime_checkable
class TakesJobs(Engine, Protocol):
    """An engine that is handed a job, which then goes on by itself; the local one runs while its command waits."""

    def submit(self, job: Job) -> str:
        """Begin the run and return its id; come back at once.

        Raises:
            UsageError: The engine cannot run such a pipeline; nothing was begun.
            ServiceError: The engine's service does not answer, or refuses.
        """
        ...

    def retry(self, engine_run: str) -> str:
        """Run again what failed of a run, and return the id of the run that goes on."""
        ...

"""What `--json` prints where it is no record of the library's own; the reference is made of these."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import JsonValue, RootModel

from shopfloor.flows.promote import Standing
from shopfloor.flows.queue import RunQueue
from shopfloor.flows.rollout import RolloutResult
from shopfloor.records import Passport, Record, StepRecord
from shopfloor.stack.lifecycle import StackStatus


class Stack(StackStatus):
    """All services, the applications on Serve, and who answers."""

    models: list[Standing]


class Setting(Record):
    """A setting's value."""

    value: JsonValue
    source: str
    """Place that it comes from: `argument`, `environment`, `stack`, `profile` or `default`."""


class AllSettings(RootModel[dict[str, Setting]]):
    """Every setting by its name, those of the cluster as `cluster.queue`."""


class Variables(RootModel[dict[str, str]]):
    """Environment variables by their name."""


class ModelVersion(Record):
    """A registered version."""

    model: str
    version: str
    aliases: list[str]
    run_id: str
    """MLflow run that made it."""
    description: str


class ModelVersions(Record):
    """All registered versions, the newest of each model first."""

    versions: list[ModelVersion]


class VersionPassport(Passport):
    """What made a version, how it was judged, and who changed whether it is champion."""

    promoted: dict[str, str | None] | None = None
    """Last promotion: when, by whom, why, and `before`, the champion until then."""
    rolled_back: dict[str, str | None] | None = None
    """Last rollback from it: when, by whom and why."""


class Deployed(Record):
    """A version beside the champion, or the first one of an imported model."""

    use_case: str
    version: str
    canary: float
    """Percent of the requests that it answers."""
    shadow: bool
    """Whether it answers copies of the others."""
    endpoint: str
    champion: bool
    """Whether it is the champion, which answers all requests."""


class Undeployed(Record):
    """An endpoint that is gone."""

    use_case: str
    removed: bool
    """Whether there was one."""


class TrialEnded(Record):
    """A version that is no longer on trial."""

    use_case: str
    version: str


class TrialDetached(Record):
    """A trial that a Ray job judges."""

    use_case: str
    version: str
    job: str
    """Id of the job."""


class Guarded(Record):
    """What became of a champion that was watched."""

    use_case: str
    outcome: Literal["kept", "rolled_back"]
    rollback: RolloutResult | None = None
    """Reason and gates, where it was rolled back."""


class Run(Record):
    """A recorded run."""

    run_id: str
    pipeline: str
    use_case: str
    engine: str
    state: str
    started: dt.datetime
    seconds: float | None
    """Duration; none while it goes on."""


class Runs(Record):
    """Runs, the newest first."""

    runs: list[Run]


class RunDetails(Run):
    """A recorded run with its steps."""

    engine_run: str | None
    """Id under which its engine knows it."""
    outcome: str
    """Sentence that says how the run ended."""
    parameters: dict[str, str]
    metrics: dict[str, float]
    steps: list[StepRecord]
    queue: RunQueue | None = None
    """Why it waits; none of a run that has ended, or that no queue of a cluster has."""


class RunStopped(Record):
    """A run that was stopped."""

    run_id: str
    state: str


class Token(Record):
    """An entry of the tokens' file."""

    name: str
    use_cases: list[str]
    """Use cases that it opens; `*` is all of them."""
    expires: dt.date | None
    """Last day on which the token counts."""


class Tokens(Record):
    """Tokens by name; a token itself is kept nowhere."""

    tokens: list[Token]

"""What a deployer and a replica must agree on: the configuration, the assignment of versions, names and headers.

Both sides import this module, and it imports neither of them.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shopfloor.settings import Settings
from shopfloor.storage import is_remote, join

DEPLOYMENT = "predictor"
"""Name of the one deployment of every application."""
IMPORT_PATH = "shopfloor.serving.replica.app:build"
"""Function that Ray Serve builds an application with."""
VERSION_HEADER = "X-Shopfloor-Version"
"""Header of a request: the version that is to answer; of an answer: the one that did."""
TAG = "shopfloor.endpoint"
"""Tag that holds an assignment."""
LEASE_S = 60.0
"""How long a challenger keeps its share when nobody says any more that its trial goes on."""
LEASE_KEPT, LEASE_ENDED = "kept", "ended"
"""A lease that never runs out, and one that has; any other is `<Unix time of its last renewal>+<seconds>`."""
Action = Literal["promote", "rollback", "deploy", "end", "remove"]


class OnlineConfig(BaseModel):
    """What a replica needs to know to read features: part of its deployment's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_case: str
    code_root: str
    """Directory that has the use case's `pipelines/`; replicas see it under the same path."""
    service: str
    """Feast feature service."""
    entities: dict[str, str]
    """Entities that a request may send beside the model's inputs, name to MLflow's type."""
    deadline_ms: float
    fallback: Literal["missing", "refuse"]
    feature_registry: str
    online_store: str
    s3_endpoint_url: str | None = None


class Config(BaseModel):
    """Where an endpoint finds its versions, and the limits on what it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_case: str
    """Name of the registered model, and of the application."""
    tracking_uri: str
    log_root: str | None = None
    """URI under which predictions and feedback are logged; `None` logs nothing."""
    s3_endpoint_url: str | None = None
    log_days: int = 365
    """Days for which predictions and feedback are kept."""
    log_max_bytes: int = 10 * 1024**3
    """Size of the log of predictions, of which the oldest go first."""
    max_rows: int = 10_000
    max_body_bytes: int = 8 * 1024 * 1024
    max_in_flight: int = 200
    """Requests that a replica holds at once; one more is told to come back."""
    timeout_s: float = 30
    """How long a request may take, the arrival of its body included."""
    batch_rows: int = 0
    """Single rows that are answered together; 0 answers each at once."""
    batch_wait_ms: float = 5
    """How long the first of them waits for the others."""
    tokens_file: str | None = None
    """Whoever sends rows must show a token of this file; `None` asks nobody."""
    hosts: tuple[str, ...] | None = None
    """Names in a request's `Host`, without a port, under which the endpoint answers; `None` for every name."""
    description: str = ""
    """Description of the use case, for its page."""
    target: str = ""
    """Description of what is predicted."""
    online: OnlineConfig | None = None
    """Features that are looked up; `None` where requests send them all."""
    declaration: str = ""
    """Hash of all that was declared to Serve, which tells whether it must be declared anew."""

    def digest(self, assignment: Assignment) -> str:
        """Return a hash of the whole, which tells whether a replica has it."""
        # The registry hands a declaration back with its keys in another order.
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(f"{text}{assignment.digest()}".encode()).hexdigest()[:16]


class Assignment(BaseModel):
    """Who answers: the versions of an endpoint, their shares of the requests that name none, and whose doing it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: str | None = None
    """Version that answers."""
    challenger: str | None = None
    """Version on trial, which answers whoever asks for it."""
    canary_percent: float = Field(default=0, ge=0, le=100)
    """Share of the requests that the challenger answers."""
    shadow: bool = False
    """Whether the challenger answers a copy of each row that the champion answers."""
    before: str | None = None
    """Champion to go back to."""
    replaced: str | None = None
    """Champion until this change, where this change made another one."""
    action: Action = "deploy"
    by: str = ""
    """User and host."""
    when: dt.datetime | None = None
    reason: str = ""
    run_id: str = ""
    """MLflow run that asked for the change, or that made the version."""
    id: str = ""
    """Name of this change alone, by which its writer knows it again."""
    revision: int = 0
    """Number that the registry gave the change; 0 before the first one."""

    def versions(self) -> list[str]:
        """Return the versions that are to be loaded."""
        return [version for version in (self.champion, self.challenger) if version]

    def digest(self) -> str:
        """Return a hash of it, which tells whether a replica has it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def words(self) -> str:
        """Return the change for a person."""
        what = {
            "promote": f"promotion of version {self.champion}",
            "rollback": f"rollback to version {self.champion}",
            "deploy": f"deployment of {' and '.join(self.versions()) or 'nothing'}",
            "end": "end of a trial",
            "remove": "removal of the endpoint",
        }[self.action]
        when = f" at {self.when:%Y-%m-%d %H:%M:%S} UTC" if self.when else ""
        return f"{what} by {self.by or 'somebody'}{when}" + (f" ({self.reason})" if self.reason else "")


def log_root(settings: Settings) -> str:
    """Return the URI under which every endpoint logs its predictions."""
    root = settings.artifact_root
    return join(root if is_remote(root) else str((settings.project_root / root).resolve()), "predictions")

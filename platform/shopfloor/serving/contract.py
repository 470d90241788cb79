"""What a replica is told for as long as it runs: the `user_config` of a use case's deployment on Ray Serve."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict

from shopfloor.serving.assignment import Assignment
from shopfloor.serving.online.store import OnlineConfig


class Config(BaseModel):
    """Where an endpoint finds its versions, and the limits on what it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_case: str
    """Name of the registered model, and of the application."""
    tracking_uri: str
    log_root: str | None = None
    """URI under which predictions and feedback are logged; `None` logs nothing."""
    s3_endpoint_url: str | None = None
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
    online: OnlineConfig | None = None
    """Features that are looked up; `None` where requests send them all."""
    declaration: str = ""
    """Hash of all that was declared to Serve, which tells whether it must be declared anew."""

    def digest(self, assignment: Assignment) -> str:
        """Return a hash of the whole, which tells whether a replica has it."""
        return hashlib.sha256(f"{self.model_dump_json()}{assignment.digest()}".encode()).hexdigest()[:16]

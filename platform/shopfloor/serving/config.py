"""What a replica is told: the `user_config` of a use case's deployment on Ray Serve."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """The versions that an endpoint holds, who answers, and the limits on what it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_case: str
    """Name of the registered model, and of the application."""
    tracking_uri: str
    champion: str | None = None
    """Version that answers."""
    challenger: str | None = None
    """Version on trial, which answers whoever asks for it."""
    canary_percent: float = Field(default=0, ge=0, le=100)
    """Share of the requests that ask for no version which the challenger answers."""
    shadow: bool = False
    """Whether the challenger answers a copy of each row that the champion answers."""
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

    def digest(self) -> str:
        """Return a hash of the whole configuration, which tells whether a replica has it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def versions(self) -> list[str]:
        """Return the versions that are to be loaded."""
        return [version for version in (self.champion, self.challenger) if version]

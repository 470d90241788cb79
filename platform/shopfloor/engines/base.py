"""What every engine tells about the steps that it runs, whatever runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from shopfloor.results import Outputs

StepState = Literal["cached", "succeeded", "failed", "killed"]


class StepListener(Protocol):
    """Hears of each step as it happens: the run's record and the live view are listeners."""

    def step_started(self, step: str) -> dict[str, str]:
        """Hear that a step begins to run; return environment variables for its process."""
        ...

    def step_finished(
        self, step: str, state: StepState, seconds: float, outputs: Outputs, log: Path | None, error: str
    ) -> None:
        """Hear how a step ended; a cached step ends without having started."""
        ...

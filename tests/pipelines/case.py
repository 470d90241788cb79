"""What is known of a pipeline."""

from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format


@dataclass(frozen=True)
class Case:
    """A pipeline, and what it does."""

    pipeline: Any
    """Compiled by KFP's SDK."""
    gives: dict[str, Any] = field(default_factory=dict)
    """Outputs by the path of their step and their name, as in `loop-iteration-0/say.Output`; `None`: it did not run."""
    arguments: dict[str, Any] = field(default_factory=dict)
    fails: bool = False
    on_local: bool = True
    """Whether `kfp.local` can run it, and gives the same."""
    runs: bool = True
    """Whether its steps are run; for those that need a cluster, only the Workflow is looked at."""

    @property
    def ir(self) -> dict[str, Any]:
        """The `PipelineSpec` as JSON."""
        return dict(json_format.MessageToDict(self.pipeline.pipeline_spec))

    @property
    def platforms(self) -> dict[str, Any]:
        """The platform configuration."""
        return dict(json_format.MessageToDict(self.pipeline.platform_spec))

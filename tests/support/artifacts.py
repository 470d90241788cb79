"""What KFP hands a step: an output artifact, or the one that takes metrics."""


class Recorder:
    """Stands for an output artifact, of metrics too."""

    def __init__(self, name: str = "artifact") -> None:
        self.name, self.uri, self.metadata, self.metrics = name, "", {}, {}

    def log_metric(self, metric: str, value: float) -> None:
        self.metrics[metric] = value

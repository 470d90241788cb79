"""Looks at what the champion of a use case did for real requests, and whether those are still what it was judged on."""

from kfp import dsl

from components.monitor import monitor


@dsl.pipeline(name="monitoring", description="From an endpoint's log to a verdict on the version that answers.")
def monitoring(use_case: str, version: str = "", hours: float = 24.0) -> None:
    """Judge the requests of the last hours by the gates for real requests; a missed one is the run's outcome.

    Args:
        use_case: Folder under `pipelines/`.
        version: Version to look at; empty means the champion.
        hours: How far to look back.
    """
    # Its key knows neither the time nor the log.
    monitor(use_case=use_case, version=version, hours=hours).set_caching_options(False)

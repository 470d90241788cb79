"""Every endpoint built again from the registry on an empty Ray cluster, as `up` does it after a reboot.

The peer is the same number of endpoints deployed one after another, the way they came to be.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from shopfloor.flows.promote import restore
from shopfloor.serving.deploy import applications
from shopfloor.serving.deploy.champion import promote_version
from shopfloor.serving.deploy.rollout import live_versions

from tests.benchmarks.table import Row
from tests.support.endpoints import MODEL, USE_CASE, register_models, serving_cluster

CASES = ("toy_one", "toy_two", "toy_three")
BROKEN = "toy_broken"
"""Its champion does not load any more: the others come back all the same."""


def measure() -> list[Row]:
    """Return how long the endpoints took to come back."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in (*CASES, BROKEN):
            case = directory / "pipelines" / name
            case.mkdir(parents=True)
            (case / "use_case.yaml").write_text(USE_CASE.format(name=name).replace("cpus: 0.2", "cpus: 0.1"))
            (case / "model.py").write_text(MODEL)
        settings = stack.enter_context(serving_cluster(directory))
        for name in (*CASES, BROKEN):
            register_models(settings, name, versions=1)
        deployed = 0.0
        for name in (*CASES, BROKEN):
            start_s = time.perf_counter()
            promote_version(settings, name, "1")
            deployed += (time.perf_counter() - start_s) * (name != BROKEN)
        _lose_files(settings, BROKEN)
        applications.ask_ray(settings, "DELETE", applications.SERVE)
        while applications.running(settings):
            time.sleep(0.2)
        start_s = time.perf_counter()
        restored = restore(settings, progress=lambda text: None)
        seconds = time.perf_counter() - start_s
        back = sum(live_versions(settings, name).get("champion") == "1" for name in CASES)
    return [
        Row(
            name=f"{len(CASES)} endpoints rebuilt from the registry, beside one that does not load",
            ours=f"{seconds:.1f} s, {back} of {len(CASES)} back, {len(restored.problems)} told",
            peer=f"deployed one by one {deployed:.1f} s",
            ratio=seconds / deployed,
            target="<= 1, all back",
            ok=seconds <= deployed and back == len(CASES) and list(restored.problems) == [BROKEN],
        )
    ]


def _lose_files(settings: object, name: str) -> None:
    import mlflow

    client = mlflow.MlflowClient(settings.tracking_uri)  # type: ignore[attr-defined]
    client.delete_model_version(name, "1")

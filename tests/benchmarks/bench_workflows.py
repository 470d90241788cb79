"""Many small workflows at once on a real cluster: a compiled pipeline against Argo's own Workflow of the same DAG.

It needs the cluster that KUBECONFIG names, as `tests/support/cluster.py` says, with the image `busybox:1.37`; without
them it says so and measures nothing. WORKFLOWS says how many of each, 500 where it says nothing.
"""

import datetime as dt
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kfp import dsl

from tests.argo.compiled import workflow
from tests.benchmarks.table import Row
from tests.support import cluster as clusters
from tests.support.waiting import wait_until

IMAGE = "docker.io/library/busybox:1.37"
WRITE = 'mkdir -p "$(dirname "$1")"; printf %s "$0" > "$1"'
TEST = 'test "$0" = hello'
SHOWN = ("metadata.name", "metadata.creationTimestamp", "status.phase", "status.finishedAt")
PLACE = "/step"
END_S = 7200
AT_ONCE = 50
"""Workflows that are created by one call."""
Json = dict[str, Any]


@dsl.container_component
def make(text: str, made: dsl.OutputPath(str)):  # type: ignore[valid-type]
    """Write a text."""
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-ec", WRITE], args=[text, made])


@dsl.container_component
def read(text: str):
    """Succeed where the text is the one that was written."""
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-ec", TEST], args=[text])


@dsl.pipeline(name="two-tiny-steps")
def two_tiny_steps() -> None:
    """One step writes, the other reads."""
    read(text=make(text="hello").outputs["made"])


def measure() -> Iterator[Row]:
    """Yield the rows, or the one that says why there are none."""
    count = int(os.environ.get("WORKFLOWS", "500"))
    name = f"{count} workflows of two steps at once"
    if why := clusters.why_none():
        yield Row(name=name, ours=why, peer="", ratio=None, target="", ok=False, pending=True)
        return
    with (
        tempfile.TemporaryDirectory(prefix="bench-workflows-") as directory,
        clusters.team(Path(directory)) as cluster,
    ):
        bare = _spans(cluster, _bare(cluster.namespace), count)
        ours = _spans(cluster, workflow(two_tiny_steps, settings=cluster.settings), count)
    for what, of in (("half have ended", statistics.median), ("the last has ended", max)):
        mine, theirs = of(ours), of(bare)
        yield Row(
            name=f"{name}: until {what}",
            ours=f"{mine:.0f} s",
            peer=f"Argo's own {theirs:.0f} s",
            ratio=mine / theirs,
            target="measured",
            ok=True,
        )


def _spans(cluster: clusters.Cluster, manifest: Json, count: int) -> list[float]:
    """Create the workflows, wait until all have ended well, and return the seconds that each took.

    Each is seen by every change of it, as Argo removes those that have ended when there are many.
    """
    fields = " ".join(f"{{.{name}}}" for name in SHOWN)
    watch = ["kubectl", "-n", cluster.namespace, "get", "workflows", "--watch", "-o", f"jsonpath={fields}{{'\\n'}}"]
    with (
        tempfile.NamedTemporaryFile("w", prefix="workflows-") as seen,
        subprocess.Popen(watch, stdout=seen) as watching,
    ):
        try:
            for first in range(0, count, AT_ONCE):
                copies = {"apiVersion": "v1", "kind": "List", "items": [manifest] * min(AT_ONCE, count - first)}
                clusters.kubectl("create", "-f", "-", text=json.dumps(copies))
            spans: dict[str, float] = {}

            def ended() -> bool:
                assert watching.poll() is None, "the watch has ended"
                spans.update(_ended(Path(seen.name).read_text(), manifest["metadata"]["generateName"]))
                return len(spans) == count

            wait_until(ended, END_S, every_s=10)
        finally:
            watching.terminate()
    return list(spans.values())


def _ended(lines: str, prefix: str) -> dict[str, float]:
    """Return the seconds from creation to end of the workflows that have ended, by name."""
    spans = {}
    for line in lines.splitlines()[: lines.count("\n")]:
        name, created, *rest = line.split()
        phase, finished = (*rest, "", "")[:2]
        if name.startswith(prefix):
            assert phase not in clusters.ENDED - {"Succeeded"}, line
            if phase == "Succeeded":
                spans[name] = (_time(finished) - _time(created)).total_seconds()
    return spans


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def _bare(namespace: str) -> Json:
    """Return the same DAG as somebody writes it for Argo by hand, who clears up after a success too."""
    pods = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"image": IMAGE, "imagePullPolicy": "IfNotPresent", "securityContext": pods}
    text = {"inputs": {"parameters": [{"name": "text"}]}}
    place = f"{PLACE}/made"
    step = {"volumes": [{"name": "step", "emptyDir": {}}]}
    mount = {"volumeMounts": [{"name": "step", "mountPath": PLACE}]}
    argument = "{{inputs.parameters.text}}"
    value = "{{tasks.make.outputs.parameters.made}}"
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "bare-", "namespace": namespace},
        "spec": {
            "entrypoint": "both",
            "serviceAccountName": "shopfloor-run",
            "podGC": {"strategy": "OnPodSuccess"},
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "templates": [
                {
                    "name": "both",
                    "dag": {
                        "tasks": [
                            _task("make", "hello"),
                            _task("read", value) | {"depends": "make"},
                        ]
                    },
                },
                {
                    "name": "make",
                    **text,
                    **step,
                    "outputs": {"parameters": [{"name": "made", "valueFrom": {"path": place}}]},
                    "container": container | mount | {"command": ["sh", "-ec", WRITE], "args": [argument, place]},
                },
                {"name": "read", **text, "container": container | {"command": ["sh", "-ec", TEST], "args": [argument]}},
            ],
        },
    }


def _task(name: str, text: str) -> Json:
    return {"name": name, "template": name, "arguments": {"parameters": [{"name": "text", "value": text}]}}

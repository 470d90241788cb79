"""How many runs of a team go on at a time, counted by Argo's own controller.

`make test-cluster KUBECONFIG=...` runs it; `tests/support/cluster.py` says what the cluster must have.
"""

import json

import pytest
from shopfloor.engines.argo.translation import translate
from shopfloor.settings import LIMITS

from tests.pipelines import CASES
from tests.support import cluster as clusters
from tests.support.cluster import kubectl
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(clusters.why_none()), reason=clusters.why_none()),
    pytest.mark.timeout(2 * clusters.RUN_S),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with clusters.team(tmp_path_factory.mktemp("cluster")) as cluster:
        numbers = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": LIMITS}, "data": {"runs": "1"}}
        kubectl("-n", cluster.namespace, "apply", "-f", "-", text=json.dumps(numbers))
        yield cluster


def test_a_run_over_the_teams_limit_waits_until_another_has_ended(cluster):
    own = cluster.settings.cluster.model_copy(update={"limits": ("runs",)})
    settings = cluster.settings.model_copy(update={"cluster": own})
    case = CASES["nested"]
    ir = case.ir
    for executor in ir["deploymentSpec"]["executors"].values():  # the one image that the cluster has
        executor["container"]["image"] = clusters.ANOTHERS_IMAGE
    manifest = translate(ir, case.platforms, case.arguments, settings, None, False)

    names = [cluster.create(manifest) for _ in range(2)]

    def waiting():
        status = [cluster.workflow(name).get("status", {}) for name in names]
        return [one for one in status if one.get("phase") == "Pending" and f"/{LIMITS}/runs" in one.get("message", "")]

    (held,) = wait_until(waiting, 60, every_s=0.2)
    assert held.get("nodes") in (None, {})
    first, second = sorted((cluster.ended(name)["status"] for name in names), key=lambda one: one["finishedAt"])
    assert {first["phase"], second["phase"]} == {"Succeeded"}
    began = min(node["startedAt"] for node in second["nodes"].values() if node["type"] == "Pod")
    assert began >= first["finishedAt"]

"""The online store of a team, filled on a real cluster by the schedule that Argo keeps.

`make test-cluster KUBECONFIG=...` runs it; `tests/support/cluster.py` says what the cluster must have, and the image of
Redis that manifests/images names.
"""

import json

import pytest
import yaml

from tests.support import cluster as clusters
from tests.support.cluster import kubectl
from tests.support.member import member_of_a_team
from tests.support.project import ROOT, copy_project, git
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(clusters.why_none()), reason=clusters.why_none()),
    pytest.mark.timeout(2 * clusters.RUN_S),
]
STORE = """
online_store = "redis://redis:6379"
feature_registry = "s3://shopfloor/feast/registry.db"
data_remote = "s3://shopfloor-data/dvc"
"""


def redis():
    """Return a Redis without a password, as a pod with its service."""
    images = yaml.safe_load((ROOT / "manifests/images/kustomization.yaml").read_text())["images"]
    version = next(image["newTag"] for image in images if image["name"] == "redis")
    container = {
        "name": "redis",
        "image": f"redis:{version}",
        "args": ["redis-server", "--save", "", "--protected-mode", "no"],
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    context = {"runAsNonRoot": True, "runAsUser": 999, "seccompProfile": {"type": "RuntimeDefault"}}
    metadata = {"name": "redis", "labels": {"app": "redis"}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    service = {"selector": {"app": "redis"}, "ports": [{"port": 6379}]}
    return [
        pod | {"spec": {"containers": [container], "securityContext": context}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "redis"}, "spec": service},
    ]


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    """Give a member whose data are in the team's remote, in a copy of the project."""
    place = tmp_path_factory.mktemp("materialize")
    with member_of_a_team(place) as member:
        project = place / "project"
        copy_project(project)
        for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "The project")):
            git(project, *words)
        profile = place / "team.toml"
        profile.write_text(STORE + profile.read_text())
        member.environment["SHOPFLOOR_PROJECT_ROOT"] = str(project)
        (place / "store/shopfloor-data").mkdir()
        for one in redis():
            kubectl("-n", member.cluster.namespace, "apply", "-f", "-", text=json.dumps(one))
        member.shopfloor("data", "prepare", "flight_delays")
        yield member


def test_a_schedule_fills_the_online_store(member):
    namespace = member.cluster.namespace
    options = ("--use-case", "flight_delays", "--cron", "* * * * *")
    schedule = member.submit("materialize", *options, file=ROOT / "pipelines/materialize.py")
    name = schedule["engine_run"].rpartition("/")[2]

    def its_run():
        runs = member.answer("runs", "list")["runs"]
        ended = [run for run in runs if run["pipeline"] == "materialize" and run["state"] in {"succeeded", "failed"}]
        return next(iter(ended), None)

    run = wait_until(its_run, clusters.RUN_S, every_s=2)
    kubectl("-n", namespace, "delete", "cronworkflow", name)

    assert run["state"] == "succeeded", member.shopfloor("runs", "logs", run["run_id"])
    keys = kubectl("-n", namespace, "exec", "redis", "--", "redis-cli", "dbsize")
    assert int(keys.split()[-1]) > 1000, "every carrier, airport and aircraft has its values"

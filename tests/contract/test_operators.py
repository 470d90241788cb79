"""What `doctor` says of a cluster's operators: an API on loopback in the words of a real server."""

import re

import pytest
from shopfloor.settings import Settings
from shopfloor.stack import operators
from shopfloor.training.admission import OPERATORS

from tests.support.cluster_api import Answer, serve, use_kubeconfig, write_kubeconfig
from tests.support.project import ROOT

NOT_FOUND = Answer(404, "404 page not found\n")
FORBIDDEN = Answer(403, {"reason": "Forbidden", "message": 'deployments.apps "x" is forbidden: User "member" cannot'})


@pytest.fixture
def api(tmp_path, monkeypatch):
    """The API of a cluster that has every operator in the version of the project's manifests."""
    with serve() as server:
        write_kubeconfig(tmp_path / "kubeconfig", server.url, "nobody-may-see", monkeypatch)
        for operator in OPERATORS:
            server.on("GET", of_api(operator), Answer(200, {"kind": "APIResourceList"}))
            version = operators.pinned(ROOT, operator)
            server.on("GET", of_deployment(operator), deployment(f"quay.io/x/{operator.deployment}:v{version}"))
        yield server


def of_api(operator):
    return f"/apis/{operator.group}/{operator.version}"


def of_deployment(operator):
    return f"/apis/apps/v1/namespaces/{operator.namespace}/deployments/{operator.deployment}"


def deployment(image, available=1):
    containers = [{"image": "docker.io/library/sidecar"}, {"image": image}]
    return Answer(
        200, {"spec": {"template": {"spec": {"containers": containers}}}, "status": {"availableReplicas": available}}
    )


def findings(**values):
    settings = Settings(project_root=ROOT, ray_address="rayjob", **values)
    return {one.subject: one for one in operators.examine(settings, timeout_s=2.0)}


def test_the_manifests_name_a_version_of_each_operator():
    for operator in OPERATORS:
        assert len(operators.pinned(ROOT, operator).split(".")) == 3


def test_a_cluster_with_all_operators_is_well(api):
    assert {name: one.verdict for name, one in findings().items()} == {
        "Argo Workflows": "ok",
        "KubeRay": "ok",
        "Kueue": "ok",
    }


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.title)
def test_an_operator_that_a_cluster_lacks_is_named_with_the_command_that_installs_it(api, operator):
    api.on("GET", of_api(operator), NOT_FOUND)

    found = findings()

    assert {name for name, one in found.items() if one.verdict == "fail"} == {operator.title}
    assert f"no {operator.title} (API {operator.group}/{operator.version})" in found[operator.title].message
    assert f"kubectl kustomize manifests/operators/{operator.folder} |" in found[operator.title].remedy


@pytest.mark.parametrize(
    ("answer", "verdict", "words"),
    [
        (deployment("quay.io/x/controller:v0.1.0"), "warn", "0.1.0 runs, and the project's manifests name"),
        (deployment("quay.io/x/controller:v0.1.0", available=0), "fail", "no pod of workflow-controller"),
        (deployment("mirror/x/controller@sha256:0a1b"), "ok", "some version runs"),
        (NOT_FOUND, "warn", "no workflow-controller is in the namespace argo"),
        (FORBIDDEN, "ok", "not for this login to read"),
    ],
    ids=["another version", "no pod", "a digest", "elsewhere", "a member"],
)
def test_what_an_operators_deployment_says_is_told(api, answer, verdict, words):
    api.on("GET", of_deployment(OPERATORS[0]), answer)

    found = findings()["Argo Workflows"]

    assert found.verdict == verdict
    assert words in found.message
    assert bool(found.remedy) == (verdict != "ok")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(401, {"message": "Unauthorized"}), "does not take the login"),
        (
            Answer(403, {"message": 'forbidden: User "system:anonymous" cannot get path'}),
            'without a login: .*anonymous"',
        ),
        (Answer(500, {"message": "etcdserver: leader changed"}), "failed with status 500"),
        (Answer(drop=True), "does not answer"),
        (Answer(wait_s=4.0), "does not answer"),
    ],
    ids=["expired", "no login", "failing", "cut off", "silent"],
)
def test_a_cluster_that_gives_no_answer_is_told_once(api, answer, words):
    for operator in OPERATORS:
        api.on("GET", of_api(operator), answer)

    [finding] = findings().values()

    assert (finding.subject, finding.verdict) == ("kubernetes", "fail")
    assert re.search(words, finding.message)
    assert "nobody-may-see" not in str(finding)


def test_without_a_cluster_that_is_said_and_a_profile_without_one_asks_none(monkeypatch, tmp_path):
    use_kubeconfig(tmp_path / "none", monkeypatch)

    assert "no Kubernetes cluster to talk to" in findings()["kubernetes"].message
    assert list(operators.examine(Settings(project_root=ROOT), timeout_s=2.0)) == []

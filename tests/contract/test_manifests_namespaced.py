"""The stack for who has rights in one namespace alone: every object of it is in that namespace, and names no other."""

import re
import shutil

import pytest
import yaml

from tests.contract import custom_resources
from tests.support import manifests
from tests.support.manifests import MANIFESTS, containers, key_of

pytestmark = pytest.mark.skipif(bool(manifests.why_none()), reason=manifests.why_none())
FOLDER = MANIFESTS / "namespaced"
TEAM = "flights"
AN_ADMINISTRATORS = {"ResourceQuota", "LimitRange", "LocalQueue", "PriorityClass", "CustomResourceDefinition"}
RELEASES = {
    "argo-workflows": """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: workflows.argoproj.io}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: workflow-controller}
value: 1000000
---
apiVersion: v1
kind: ConfigMap
metadata: {name: workflow-controller-configmap}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: workflow-controller}
spec:
  selector: {matchLabels: {app: workflow-controller}}
  template:
    metadata: {labels: {app: workflow-controller}}
    spec:
      priorityClassName: workflow-controller
      securityContext: {runAsNonRoot: true}
      containers: [{name: workflow-controller, image: "example.org/controller:v1", args: [--namespaced]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: argo-server}
spec:
  selector: {matchLabels: {app: argo-server}}
  template:
    metadata: {labels: {app: argo-server}}
    spec:
      securityContext: {runAsNonRoot: true}
      containers: [{name: argo-server, image: "example.org/server:v1", args: [server, --namespaced]}]
""",
    "kuberay": """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rayclusters.ray.io}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kuberay-operator}
rules: [{apiGroups: [ray.io], resources: [rayclusters], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kuberay-operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kuberay-operator}
subjects: [{kind: ServiceAccount, name: kuberay-operator}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: kuberay-operator, namespace: default}
spec:
  selector: {matchLabels: {app: kuberay}}
  template:
    metadata: {labels: {app: kuberay}}
    spec:
      containers:
        - {name: kuberay-operator, image: "example.org/kuberay:v1", args: [--x], resources: {}}
""",
}
"""What the makers' releases have of what is changed."""


@pytest.fixture(scope="module")
def stack():
    return manifests.build(FOLDER / "stack")


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """Give what each operator's folder builds, the release's file put in the place of its address."""
    root = tmp_path_factory.mktemp("namespaced")
    return {
        name: manifests.build(manifests.put_in_place(shutil.copytree(FOLDER / name, root / name), release))
        for name, release in RELEASES.items()
    }


def test_every_object_is_in_the_one_namespace_and_none_is_an_administrators(stack, operators):
    for one in [*stack, *operators["argo-workflows"], *operators["kuberay"]]:
        kind, namespace, name = key_of(one)
        assert namespace == TEAM, (kind, name)
        assert kind not in manifests.CLUSTER_WIDE | AN_ADMINISTRATORS, (kind, name)


def test_every_object_is_valid(stack, operators, kubernetes_schema):
    for one in [*stack, *operators["argo-workflows"], *operators["kuberay"]]:
        if one["kind"] in custom_resources.SCHEMAS:
            assert custom_resources.problems(one) == [], key_of(one)
        else:
            kubernetes_schema(one)


def test_nothing_is_asked_in_another_namespace(stack):
    for one in stack:
        if one["kind"] == "NetworkPolicy":  # what it lets in from elsewhere, and out to it, is asked by nobody here
            continue
        text = yaml.safe_dump(one)
        # The names by which MLflow lets itself be asked may be more than are used.
        text = re.sub(r"mlflow,mlflow:\*[^\n]*(\n\s+[^\n]*127[^\n]*)?", "", text)
        assert not re.search(r"\.(shopfloor-system|argo)\b", text), key_of(one)


def test_the_operators_see_the_one_namespace(operators):
    deployments = {one["metadata"]["name"]: one for made in operators.values() for one in made}
    arguments = {
        name: one["spec"]["template"]["spec"]["containers"][0]["args"]
        for name, one in deployments.items()
        if one["kind"] == "Deployment"
    }
    assert f"--watch-namespace={TEAM}" in arguments["kuberay-operator"]
    assert "--namespaced" in arguments["workflow-controller"]
    assert {"--namespaced", "--auth-mode=client"} <= set(arguments["argo-server"])
    roles = {one["kind"]: one for one in operators["kuberay"] if one["metadata"]["name"] == "kuberay-operator"}
    assert roles["RoleBinding"]["roleRef"]["kind"] == "Role"
    assert roles["RoleBinding"]["subjects"][0]["namespace"] == TEAM


def test_the_secrets_are_those_that_the_pods_name(stack, tmp_path):
    manifests.secrets_in(tmp_path)
    shutil.copytree(FOLDER / "secrets", tmp_path / "manifests/namespaced/secrets")
    secrets = {one["metadata"]["name"]: one for one in manifests.build(tmp_path / "manifests/namespaced/secrets")}
    assert {one["metadata"]["namespace"] for one in secrets.values()} == {TEAM}
    for pod in manifests.pods(stack):
        named = {volume["secret"]["secretName"] for volume in pod.spec.get("volumes", []) if "secret" in volume}
        for container in containers(pod):
            named |= {one["secretRef"]["name"] for one in container.get("envFrom", []) if "secretRef" in one}
        assert named <= secrets.keys(), pod


def test_the_versions_are_those_of_the_operators_for_all(operators):
    for name in RELEASES:
        addresses = [
            re.search(r"https://\S+", (folder / name / "kustomization.yaml").read_text(encoding="utf-8"))[0]
            for folder in (FOLDER, MANIFESTS / "operators")
        ]
        versions = {re.search(r"(?<=[/=])v\d+\.\d+\.\d+", address)[0] for address in addresses}
        assert len(versions) == 1, addresses


def test_who_installs_may_give_what_the_roles_of_the_stack_have(stack):
    """The API server lets nobody give more than they have: the role `installer` and Kubernetes' own `admin` have it."""
    (role,) = yaml.safe_load_all((FOLDER / "installer-role.yaml").read_text(encoding="utf-8"))
    given = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    core = {
        "pods",
        "pods/portforward",
        "pods/log",
        "services",
        "persistentvolumeclaims",
        "resourcequotas",
        "limitranges",
    }
    for one in stack:
        for rule in one["rules"] if one["kind"] == "Role" else []:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        wanted = (group, resource, verb)
                        held = given & {wanted, (group, "*", "*"), (group, resource, "*")}
                        assert held or (group == "" and resource in core and wanted != ("", "pods/log", "delete")), (
                            wanted
                        )

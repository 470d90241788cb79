"""The manifests of the cluster, built by kustomize: valid, closed, sized, and naming nothing that is not there.

Nothing here asks a cluster: docs/how-to/install-on-a-cluster.md says what was run on one.
"""

import json
import re
import shutil
import tomllib

import pytest
import yaml
from shopfloor.stack import team_manifests

from tests.contract import custom_resources
from tests.support import manifests
from tests.support.manifests import MANIFESTS, NAMES, OVERLAYS, REMOTE, containers, key_of
from tests.support.project import ROOT

pytestmark = pytest.mark.skipif(bool(manifests.why_none()), reason=manifests.why_none())
RESTORE = "components/backup/restore"
FOLDERS = [
    *(f"overlays/{name}" for name in OVERLAYS),
    "base",
    RESTORE,
    *(f"teams/{name}" for name in NAMES),
]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
LOCK = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE))
WRITTEN = [
    path
    for path in sorted(MANIFESTS.rglob("*.yaml"))
    if path.name != "kustomization.yaml" and path.parent != MANIFESTS / "teams"
]


@pytest.fixture(scope="module")
def judged():
    """Give the objects that were found right: most are in several folders."""
    return set()


def built(folder):
    return manifests.build(MANIFESTS / folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_valid_and_says_nothing_that_would_be_dropped(folder, kubernetes_schema, judged):
    for one in built(folder):
        text = json.dumps(one, sort_keys=True)
        if text in judged:
            continue
        judged.add(text)
        if one["kind"] in custom_resources.SCHEMAS:
            assert custom_resources.problems(one) == [], key_of(one)
        else:
            kubernetes_schema(one)


def test_an_unknown_field_is_noticed(kubernetes_schema):
    import kubernetes_validate

    team = built("teams/vision")
    queue = next(one for one in team if one["kind"] == "ClusterQueue")
    namespace = next(one for one in team if one["kind"] == "Namespace")

    assert custom_resources.problems({**queue, "spec": {**queue["spec"], "cohort": "x"}})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_schema({**namespace, "specs": {}})


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_two_objects_have_one_name_and_only_those_of_the_cluster_have_no_namespace(folder):
    keys = [key_of(one) for one in built(folder)]

    assert len(set(keys)) == len(keys)
    for kind, namespace, name in keys:
        assert bool(namespace) == (kind not in manifests.CLUSTER_WIDE), (kind, name)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_a_file_holds_one_object_and_is_named_after_it(path):
    (one,) = yaml.safe_load_all(path.read_text(encoding="utf-8"))

    assert path.stem.rpartition("-")[2] == one["kind"].lower()
    assert path.stem.rpartition("-")[0] == one["metadata"]["name"].replace(":", "-")
    assert one["kind"] != "Secret"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_can_do_little(folder):
    """The Pod Security standard `restricted`, a read-only root and an account of its own."""
    for pod in manifests.pods(built(folder)):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True, pod
        assert context["runAsUser"] > 0, pod
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        assert pod.spec["serviceAccountName"] not in {"", "default"}, pod
        assert pod.spec["automountServiceAccountToken"] is (pod.name == "prometheus"), pod
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod
        for volume in pod.spec.get("volumes", []):
            assert volume.keys() - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, pod
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": 0}), pod
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, (pod, container["name"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_container_says_what_it_takes_and_how_it_is(folder):
    for pod in manifests.pods(built(folder)):
        for container in containers(pod):
            for part in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][part].keys(), (pod, container["name"], part)
        for container in pod.spec["containers"] if pod.kind != "Job" else []:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), (pod, container["name"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_namespace_of_ours_enforces_the_standard_restricted(folder):
    labels = {one["metadata"]["name"]: one["metadata"]["labels"] for one in built(folder) if one["kind"] == "Namespace"}

    assert labels or folder == RESTORE
    assert {one["pod-security.kubernetes.io/enforce"] for one in labels.values()} <= {"restricted"}


def image_versions():
    images = yaml.safe_load((MANIFESTS / "images/kustomization.yaml").read_text(encoding="utf-8"))["images"]
    return {image["name"]: image["newTag"] for image in images}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_image_has_the_version_of_the_one_place(folder):
    versions = image_versions()
    for pod in manifests.pods(built(folder)):
        for container in containers(pod):
            name, _, tag = container["image"].partition(":")
            assert tag == versions[name], container["image"]


def test_the_versions_are_those_of_compose_of_the_package_and_of_the_lock(local):
    versions, project = image_versions(), tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    written = {
        service["image"].partition(":-")[2].rstrip("}")
        for name, service in COMPOSE["services"].items()
        if name != "node-exporter"
    }

    cluster_only = {"quay.io/oauth2-proxy/oauth2-proxy", "prom/pushgateway"}
    assert {f"{name}:{tag}" for name, tag in versions.items() if name not in cluster_only} == written
    assert versions["shopfloor/platform"] == project["project"]["version"]
    assert {one["spec"]["rayVersion"] for one in local if one["kind"] == "RayCluster"} == {LOCK["ray"]}
    profile = tomllib.loads((ROOT / "platform/profiles/cluster.toml").read_text(encoding="utf-8"))
    assert profile["cluster"]["image"] == f"shopfloor/platform:{versions['shopfloor/platform']}"


def test_nothing_is_unversioned_or_holds_a_secret():
    for path in [
        *WRITTEN,
        *MANIFESTS.rglob("kustomization.yaml"),
        *MANIFESTS.rglob("*.env"),
        *MANIFESTS.rglob("*.ini"),
    ]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"image: \S+:latest|newTag: latest|privileged: true", text), path
        assert not re.search(r"(?i)(password|secret_access_key|token|secret_key)\s*[=:]\s*[\w+/]{16,}\s*$", text), path


OPERATORS = sorted(path.parent for path in MANIFESTS.glob("operators/*/kustomization.yaml"))


@pytest.mark.parametrize("folder", OPERATORS, ids=lambda folder: folder.name)
def test_an_operator_is_one_release_of_its_makers_and_says_so_once(folder):
    """Nothing is fetched: whether it builds is not asked here."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    (release,) = (resource for resource in content["resources"] if REMOTE.fullmatch(resource))
    (version,) = re.findall(r"(?<=[/=])v(\d+\.\d+\.\d+)", release)

    guide = (MANIFESTS / "operators/README.md").read_text(encoding="utf-8")
    assert re.search(rf"\| `{folder.name}` \| .* \| {re.escape(version)} \|", guide)
    assert "images" not in content
    for resource in {*content["resources"]} - {release}:
        assert (folder / resource).is_file()


@pytest.mark.parametrize("folder", OPERATORS, ids=lambda folder: folder.name)
def test_what_is_changed_of_an_operator_is_what_kubernetes_knows(folder, kubernetes_schema):
    content = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    for patch in content.get("patches", []):
        changed = yaml.safe_load((folder / patch["path"]).read_text() if "path" in patch else patch["patch"])
        if isinstance(changed, list):
            assert {operation["op"] for operation in changed} <= {"add", "replace", "remove"}
        elif changed["kind"] == "Deployment":
            # A patch says a part: with what every Deployment has it is a whole one.
            pod = changed["spec"]["template"]
            changed["spec"].get("strategy", {}).pop("$retainKeys", None)
            pod["metadata"] = {}
            changed["spec"]["selector"] = {"matchLabels": {"a": "b"}}
            kubernetes_schema(changed)
            for container in pod["spec"]["containers"]:
                assert {"requests", "limits"} == container["resources"].keys()
        elif changed["kind"].endswith("WebhookConfiguration"):
            for webhook in changed["webhooks"]:
                webhook |= {
                    "clientConfig": {"url": "https://a"},
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                }
            kubernetes_schema(changed)
        else:
            assert changed.pop("$patch", "delete") == "delete"
            kubernetes_schema(changed)


def test_kueue_is_told_not_to_stop_jobs_by_shares_and_to_leave_other_namespaces_alone():
    file = MANIFESTS / "operators/kueue/kueue-manager-config-configmap.yaml"
    text = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]["controller_manager_config.yaml"]
    config = yaml.safe_load(text)

    assert "fairSharing" not in config, "with more than one flavor, jobs stop one another in vain"
    assert {"pod", "ray.io/rayjob"} <= set(config["integrations"]["frameworks"])
    (expression,) = config["managedJobsNamespaceSelector"]["matchExpressions"]
    assert expression == {"key": team_manifests.TEAM_LABEL, "operator": "Exists"}


WEBHOOKS = """
apiVersion: admissionregistration.k8s.io/v1
kind: {kind}WebhookConfiguration
metadata: {{name: kueue-{name}-webhook-configuration}}
webhooks:
  - {{name: {first}pod.kb.io, failurePolicy: Fail, namespaceSelector: {{matchLabels: {{a: b}}}}}}
  - {{name: {first}deployment.kb.io, failurePolicy: Fail}}
  - {{name: {first}job.kb.io, failurePolicy: Fail}}
  - {{name: {first}rayjob.kb.io, failurePolicy: Fail}}
  - {{name: {first}statefulset.kb.io, failurePolicy: Fail}}
---
"""
"""What the release of Kueue has of what is changed: the webhook of each kind, by its name."""


def test_what_names_no_queue_starts_while_kueue_is_away(tmp_path):
    config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kueue-manager-config, namespace: kueue-system}\n"
    parts = [
        WEBHOOKS.format(kind=kind, name=kind.lower(), first=kind[0].lower()) for kind in ("Mutating", "Validating")
    ]
    folder = shutil.copytree(MANIFESTS / "operators/kueue", tmp_path / "kueue")

    manifests.put_in_place(folder, "".join([*parts, config]))
    built = [one for one in manifests.build(folder) if one["kind"].endswith("WebhookConfiguration")]

    queued = {"matchExpressions": [{"key": "kueue.x-k8s.io/queue-name", "operator": "Exists"}]}
    for one in built:
        asked = {webhook["name"][1:]: webhook for webhook in one["webhooks"]}
        assert len(asked) == 5
        assert asked.pop("rayjob.kb.io").keys() == {"name", "failurePolicy"}
        assert [webhook["objectSelector"] for webhook in asked.values()] == [queued] * 4
        assert asked["pod.kb.io"]["namespaceSelector"] == {"matchLabels": {"a": "b"}}
    assert len(built) == 2

"""What the manifests build, read as the cluster would read it: pods, who may reach whom, who may do what."""

import fnmatch
import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from shopfloor.stack import secrets, team_ingress, team_manifests, teams

from tests.support.project import ROOT

MANIFESTS = ROOT / "manifests"
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
TEAMS = teams.load(ROOT)
NAMES = [team.name for team in TEAMS]
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "ClusterQueue", "Cohort", "ResourceFlavor"}
CLUSTER_WIDE |= {"WorkloadPriorityClass"}
ANY = "0.0.0.0/0"
REMOTE = re.compile(r"https://\S+")
"""Address of a release, as a kustomization names it."""
Json = dict[str, Any]


def why_none() -> str:
    """Return why nothing can be built here; empty where it can."""
    return "" if shutil.which("kubectl") else "kubectl is not installed"


@functools.cache
def build(path: Path) -> list[Json]:
    """Return the objects that kustomize makes of a folder."""
    command = ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if one]


def put_in_place(folder: Path, release: str) -> Path:
    """Put a text where a folder's kustomization names the address of a release, and return the folder.

    Args:
        folder: A copy, which is changed.
        release: What the release has of what the folder changes.
    """
    file = folder / "kustomization.yaml"
    text, number = REMOTE.subn("release.yml", file.read_text(encoding="utf-8"))
    assert number == 1, f"{file} names {number} releases"
    file.write_text(text, encoding="utf-8")
    (folder / "release.yml").write_text(release, encoding="utf-8")
    return folder


def overlay(name: str) -> list[Json]:
    """Return the objects of an overlay."""
    return build(MANIFESTS / "overlays" / name)


def secrets_in(place: Path) -> list[Json]:
    """Return the Secrets that `shopfloor secrets init` and kustomize make, in an empty directory."""
    secrets.init(place / ".secrets", place / ".env", NAMES)
    for name in ("oidc_client_secret", "oauth2_cookie_secret", "backup_store"):  # which the platform team puts there
        (place / ".secrets" / name).write_text(f"the {name}")
    folders = ("secrets", "teams/secrets", "components/ingress/secrets", "components/backup/secrets")
    for folder in folders:
        shutil.copytree(MANIFESTS / folder, place / "manifests" / folder)
    return [one for folder in folders for one in build(place / "manifests" / folder)]


def key_of(one: Json) -> tuple[str, str, str]:
    """Return an object's kind, namespace and name."""
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


@dataclass(frozen=True)
class Pod:
    """A kind of pod: what one object makes."""

    namespace: str
    name: str
    labels: Json = field(hash=False)
    spec: Json = field(hash=False, default_factory=dict)
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def pods(objects: list[Json]) -> Iterator[Pod]:
    """Yield the kinds of pods of the objects, those of a RayCluster with the labels that its operator gives them."""
    for one in objects:
        kind, namespace, name = key_of(one)
        if kind in {"Deployment", "StatefulSet", "Job", "CronJob"}:
            job = one["spec"]["jobTemplate"] if kind == "CronJob" else one
            template = job["spec"]["template"]
            made = "Job" if kind == "CronJob" else kind
            yield Pod(namespace, name, template["metadata"]["labels"], template["spec"], made)
        elif kind == "RayCluster":
            groups = [("head", one["spec"]["headGroupSpec"]), *(("worker", g) for g in one["spec"]["workerGroupSpecs"])]
            for role, group in groups:
                template = group["template"]
                labels = {"ray.io/cluster": name, "ray.io/node-type": role, "ray.io/is-ray-node": "yes"}
                labels |= (template.get("metadata") or {}).get("labels", {})
                yield Pod(namespace, f"{name}-{role}", labels, template["spec"], kind)


def visitors() -> list[Pod]:
    """Return the pods that are no objects of ours: steps and searches of teams, operators, strangers."""
    steps = [Pod(name, "step", {"workflows.argoproj.io/workflow": "w"}) for name in NAMES]
    ray = {"ray.io/cluster": "t", "ray.io/node-type": "head", "ray.io/is-ray-node": "yes"}
    searches = [Pod(name, "rayjob-head", ray) for name in NAMES]
    operators = [
        Pod("argo", "workflow-controller", {"app": "workflow-controller"}),
        Pod("argo", "argo-server", {"app": "argo-server"}),
        Pod("kuberay-system", "kuberay-operator", {"app.kubernetes.io/name": "kuberay"}),
        Pod("kube-system", "kube-dns", {"k8s-app": "kube-dns"}),
    ]
    stranger = Pod("somebody-else", "stranger", {"app.kubernetes.io/name": "mlflow"})
    return [*steps, *searches, *operators, stranger, Pod("ingress", "controller", {})]


def matches(selector: Json, labels: Json) -> bool:
    """Tell whether a label selector takes these labels."""
    for expression in selector.get("matchExpressions", []):
        present = expression["key"] in labels
        match expression["operator"]:
            case "Exists":
                right = present
            case "DoesNotExist":
                right = not present
            case "In":
                right = labels.get(expression["key"]) in expression["values"]
            case "NotIn":
                right = labels.get(expression["key"]) not in expression["values"]
        if not right:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


class Network:
    """Which pods reach which, by the NetworkPolicies: an edge needs one that lets it out and one that lets it in."""

    def __init__(self, objects: list[Json]) -> None:
        self._policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
        self._namespaces = {
            name: (one["metadata"].get("labels") or {}) | {"kubernetes.io/metadata.name": name}
            for one in objects
            for kind, _, name in [key_of(one)]
            if kind == "Namespace"
        } | {"ingress": {"kubernetes.io/metadata.name": "ingress", team_ingress.FROM_OUTSIDE: "true"}}

    def edges(self, source: Pod, target: Pod) -> set[int | str]:
        """Return the ports of `target` that `source` reaches; `any` for all of them."""
        out, into = self._ports("Egress", source, target), self._ports("Ingress", target, source)
        if "any" in out:
            return into
        return out if "any" in into else out & into

    def isolated(self, pod: Pod) -> bool:
        """Tell whether nothing goes in or out of a pod that no policy names."""
        return all(any(kind in one["spec"]["policyTypes"] for one in self._of(pod)) for kind in ("Ingress", "Egress"))

    def _of(self, pod: Pod) -> list[Json]:
        return [
            one
            for one in self._policies
            if one["metadata"]["namespace"] == pod.namespace and matches(one["spec"]["podSelector"], pod.labels)
        ]

    def _ports(self, direction: str, pod: Pod, other: Pod) -> set[int | str]:
        policies = [one["spec"] for one in self._of(pod) if direction in one["spec"]["policyTypes"]]
        if not policies:
            return {"any"}
        side, ports = ("to" if direction == "Egress" else "from"), set()
        for policy in policies:
            for rule in policy.get(direction.lower(), []):
                peers = rule.get(side)
                if not peers or any(self._is(peer, other, pod.namespace) for peer in peers):
                    ports |= {port["port"] for port in rule["ports"]} if "ports" in rule else {"any"}
        return ports

    def _is(self, peer: Json, pod: Pod, own_namespace: str) -> bool:
        if "ipBlock" in peer:  # whether it also means pods is the network's own business: we take it that it does
            return True
        if "namespaceSelector" in peer:
            labels = self._namespaces.get(pod.namespace, {"kubernetes.io/metadata.name": pod.namespace})
            if not matches(peer["namespaceSelector"], labels):
                return False
        elif pod.namespace != own_namespace:
            return False
        return matches(peer.get("podSelector", {}), pod.labels)


@dataclass(frozen=True)
class Right:
    """What a subject may do; an empty namespace means everywhere."""

    namespace: str
    group: str
    resource: str
    verb: str
    names: tuple[str, ...]


def rights(objects: list[Json], subject: Json) -> set[Right]:
    """Return all that a group or a service account may do by the objects."""
    roles = {key_of(one): one for one in objects if one["kind"] in {"Role", "ClusterRole"}}
    result = set()
    for one in objects:
        kind, namespace, _ = key_of(one)
        if kind not in {"RoleBinding", "ClusterRoleBinding"}:
            continue
        if not any(subject.items() <= other.items() for other in one["subjects"]):
            continue
        reference = one["roleRef"]
        role = roles[reference["kind"], namespace if reference["kind"] == "Role" else "", reference["name"]]
        for rule in role["rules"]:
            result |= {
                Right(namespace, group, resource, verb, tuple(rule.get("resourceNames", ())))
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return result


def may_by_identity(identity: Json, action: str, bucket: str, key: str) -> bool:
    """Tell whether SeaweedFS lets an identity act on a key, as its `CanDo` decides."""
    target = f"{action}:{bucket}/{key}"
    return any(
        one in {"Admin", action} or one == f"{action}:{bucket}" or ("*" in one and fnmatch.fnmatchcase(target, one))
        for one in identity["actions"]
    )


def may_by_policy(policy: Json, action: str, bucket: str, key: str) -> bool:
    """Tell whether a policy of AWS's kind allows an action on a key, or a listing of what begins with it."""
    for statement in policy["Statement"]:
        listing = action == "s3:ListBucket"
        resource = f"arn:aws:s3:::{bucket}" + ("" if listing else f"/{key}")
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        if (
            action in statement["Action"]
            and any(fnmatch.fnmatchcase(resource, one) for one in statement["Resource"])
            and (not listing or any(fnmatch.fnmatchcase(key, one) for one in prefixes))
        ):
            return True
    return False


def places(team: str) -> dict[str, str]:
    """Return the settings that name the team's prefix."""
    return team_manifests.places(team, team_manifests.cluster_profile(ROOT))


def containers(pod) -> list[dict]:
    """Return all containers of a pod, those that begin first included."""
    return [*pod.spec.get("initContainers", []), *pod.spec["containers"]]

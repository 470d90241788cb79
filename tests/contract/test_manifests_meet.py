"""What an object of the manifests names is there: keys, secrets, accounts, pods of services and policies, queues."""

import re
import tomllib

import pytest
import yaml

from tests.support import manifests
from tests.support.manifests import MANIFESTS, TEAMS, containers, key_of
from tests.support.project import ROOT

pytestmark = pytest.mark.skipif(bool(manifests.why_none()), reason=manifests.why_none())
EVERYWHERE = {"kubernetes.io/metadata.name"}


def references(pod):
    """Yield each ConfigMap and Secret that a pod names, its keys where it names them, and whether it may be missing."""
    for volume in pod.spec.get("volumes", []):
        for kind, name in (("configMap", "name"), ("secret", "secretName")):
            if kind in volume:
                keys = {item["key"] for item in volume[kind].get("items", [])}
                yield kind, volume[kind][name], keys, volume[kind].get("optional", False)
    for container in containers(pod):
        for source in container.get("envFrom", []):
            for kind in ("configMap", "secret"):
                if f"{kind}Ref" in source:
                    yield kind, source[f"{kind}Ref"]["name"], set(), False
        for variable in container.get("env", []):
            for kind in ("configMap", "secret"):
                if reference := variable.get("valueFrom", {}).get(f"{kind}KeyRef"):
                    yield kind, reference["name"], {reference["key"]}, False


def test_every_config_map_and_secret_that_a_pod_names_has_the_keys(objects, secret_objects):
    kinds = {"configMap": "ConfigMap", "secret": "Secret"}
    data = {key_of(one): one.get("data", {}).keys() for one in [*objects, *secret_objects]}
    for pod in manifests.pods(objects):
        for kind, name, keys, _ in references(pod):
            assert keys <= data[kinds[kind], pod.namespace, name], (pod, name)
    for one in objects:
        if one["kind"] == "RayCluster":
            namespace = one["metadata"]["namespace"]
            password = one["spec"]["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
            assert password["key"] in data["Secret", namespace, password["name"]]
            assert "auth_token" in data["Secret", namespace, one["spec"]["authOptions"]["secretName"]]


def test_a_container_finds_the_secrets_whose_files_it_reads(objects, secret_objects):
    texts = {key_of(one)[1:]: yaml.safe_dump(one["data"]) for one in objects if one["kind"] == "ConfigMap"}
    data = {key_of(one): one["data"].keys() for one in secret_objects}
    for pod in manifests.pods(objects):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for container in containers(pod):
            text = yaml.safe_dump({key: container[key] for key in container if key != "volumeMounts"})
            told = {
                source["configMapRef"]["name"] for source in container.get("envFrom", []) if "configMapRef" in source
            }
            told |= {
                volumes[m["name"]]["configMap"]["name"] for m in container["volumeMounts"] if m["name"] == "scripts"
            }
            text += "".join(texts[pod.namespace, name] for name in told)
            names = set(re.findall(r"/run/secrets/(\w+)", text))
            for variable in container.get("env", []):
                if variable["name"] == "FROM_SECRETS":
                    names |= {pair.partition("=")[2] for pair in variable["value"].split()}
            mounted = [m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/run/secrets"]
            keys = {key for m in mounted for key in data["Secret", pod.namespace, volumes[m]["secret"]["secretName"]]}
            assert names <= keys, (pod, container["name"])
            assert bool(names) == bool(mounted), (pod, container["name"])


def test_the_scripts_of_the_database_read_secrets_that_it_has(local, secret_objects):
    (scripts,) = (one["data"] for one in local if key_of(one)[0] == "ConfigMap" and "databases.sh" in one["data"])
    (secret,) = (one["data"] for one in secret_objects if key_of(one) == ("Secret", "shopfloor-system", "postgres"))

    assert scripts["databases.sh"] == (ROOT / "platform/compose/databases.sh").read_text(encoding="utf-8")
    assert set(re.findall(r"/run/secrets/(\w+)", "".join(scripts.values()))) < secret.keys()


def test_every_service_budget_account_and_volume_meets_a_pod(objects):
    accounts = {key_of(one)[1:] for one in objects if one["kind"] == "ServiceAccount"}
    pods = list(manifests.pods(objects))
    for pod in pods:
        assert (pod.namespace, pod.spec["serviceAccountName"]) in accounts, pod
    for one in objects:
        kind, namespace, name = key_of(one)
        if kind == "Service" and one["spec"].get("type") == "ExternalName":
            assert "selector" not in one["spec"], name
        elif kind == "Service":
            served = [
                p for p in pods if p.namespace == namespace and one["spec"]["selector"].items() <= p.labels.items()
            ]
            ports = {port["name"] for p in served for c in p.spec["containers"] for port in c["ports"]}
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports, name
        elif kind == "PodDisruptionBudget":
            assert any(
                p.namespace == namespace and manifests.matches(one["spec"]["selector"], p.labels) for p in pods
            ), name
        elif kind in {"Deployment", "StatefulSet"}:
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert manifests.matches(one["spec"]["selector"], labels), name
    for pod in pods:
        claims = {
            c["metadata"]["name"]
            for one in objects
            if one["kind"] == "StatefulSet"
            for c in one["spec"]["volumeClaimTemplates"]
        }
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | claims
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, pod


def test_every_policy_names_pods_that_there_are(objects):
    pods = [*manifests.pods(objects), *manifests.visitors()]
    for one in objects:
        if one["kind"] == "NetworkPolicy":
            selector = one["spec"]["podSelector"]
            assert any(
                pod.namespace == one["metadata"]["namespace"] and manifests.matches(selector, pod.labels)
                for pod in pods
            ), key_of(one)


def test_queues_flavors_and_classes_are_there(objects):
    keys = {key_of(one) for one in objects}
    for one in objects:
        if one["kind"] == "LocalQueue":
            assert ("ClusterQueue", "", one["spec"]["clusterQueue"]) in keys
            assert one["metadata"]["name"] != "default", "Kueue holds the pods of Redis and of endpoints for its quota"
        elif one["kind"] == "ClusterQueue":
            assert ("Cohort", "", one["spec"]["cohortName"]) in keys
            for group in one["spec"]["resourceGroups"]:
                assert {("ResourceFlavor", "", flavor["name"]) for flavor in group["flavors"]} <= keys
    for team in TEAMS:
        cluster = tomllib.loads((MANIFESTS / "teams" / team.name / "profile.toml").read_text())["cluster"]
        assert ("LocalQueue", team.name, cluster["queue"]) in keys
        assert ("WorkloadPriorityClass", "", cluster["priority_class"]) in keys
        assert ("ServiceAccount", team.name, cluster["service_account"]) in keys


def test_a_teams_queue_is_its_part_of_the_pool_and_lends_it(local):
    queues = {one["metadata"]["name"]: one["spec"] for one in local if one["kind"] == "ClusterQueue"}

    (group,) = queues["vision"]["resourceGroups"]
    cpu, spot, ondemand = group["flavors"]
    assert [flavor["name"] for flavor in group["flavors"]] == ["cpu", "gpu-spot", "gpu-ondemand"]
    assert cpu["resources"][2] == {"name": "nvidia.com/gpu", "nominalQuota": "0", "borrowingLimit": "0"}
    assert [resource["nominalQuota"] for resource in spot["resources"]] == ["288", "1152Gi", "24"]
    assert [resource["borrowingLimit"] for resource in ondemand["resources"]] == ["96", "384Gi", "8"]

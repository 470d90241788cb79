"""Ways to share GPUs on a cluster: each on nodes of its own, and what one object says another takes.

The release of NVIDIA's plug-in and the chart of its driver are not fetched here; what was run of them is in
docs/how-to/install-on-a-cluster.md.
"""

import re
import shutil

import pytest
import yaml

from tests.support import manifests
from tests.support.manifests import MANIFESTS, NAMES, OVERLAYS
from tests.support.project import ROOT

pytestmark = pytest.mark.skipif(bool(manifests.why_none()), reason=manifests.why_none())
DRA = MANIFESTS / "components/gpu-dra"
PLUGIN = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: plugin, namespace: kube-system}
spec:
  selector: {matchLabels: {name: plugin}}
  template:
    metadata: {labels: {name: plugin}}
    spec:
      containers:
        - name: plugin
          image: example.org/plugin:v1
          env: [{name: FAIL_ON_INIT_ERROR, value: "false"}]
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: devices, mountPath: /var/lib/kubelet/device-plugins}]
      volumes: [{name: devices, hostPath: {path: /var/lib/kubelet/device-plugins}}]
"""
"""What the release of NVIDIA's plug-in has of what is changed."""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """Give what the plug-in and the ways to share a GPU build, the release's file put in the place of its address."""
    root = tmp_path_factory.mktemp("plugins")
    for folder in ("operators/nvidia-device-plugin", "components"):
        shutil.copytree(MANIFESTS / folder, root / folder)
    whole = manifests.put_in_place(root / "operators/nvidia-device-plugin", PLUGIN)
    folders = {"whole": whole} | {name: root / "components" / f"gpu-{name}" for name in ("time-slicing", "mig")}
    return {name: manifests.build(folder) for name, folder in folders.items()}


def test_each_way_to_share_a_gpu_has_a_plug_in_or_driver_of_its_own_on_nodes_of_its_own(plugins, kubernetes_schema):
    names, wanted = set(), {}
    for way, objects in plugins.items():
        (plugin,) = (one for one in objects if one["kind"] == "DaemonSet")
        kubernetes_schema(plugin)
        names.add((plugin["metadata"]["name"], *plugin["spec"]["selector"]["matchLabels"].values()))
        assert plugin["spec"]["selector"]["matchLabels"] == plugin["spec"]["template"]["metadata"]["labels"]
        affinity = plugin["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        wanted[way] = term["matchExpressions"]
        assert wanted[way][0] == {"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}

    assert len(names) == 3
    expressions = {way: {"matchExpressions": [one[1]]} for way, one in wanted.items()}
    ways = expressions | {"dra": {"matchLabels": driver_values()["kubeletPlugin"]["nodeSelector"]}}
    for way in ways:
        labels = {} if way == "whole" else {"shopfloor.io/gpu-sharing": way}
        assert [one for one, selector in ways.items() if manifests.matches(selector, labels)] == [way]


@pytest.mark.parametrize("way", ["time-slicing", "mig"])
def test_a_plug_in_that_shares_reads_its_own_file(plugins, way):
    (config,) = (one for one in plugins[way] if one["kind"] == "ConfigMap")
    (plugin,) = (one for one in plugins[way] if one["kind"] == "DaemonSet")
    pod = plugin["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume.get("configMap", {}).get("name") for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    (file,) = (variable["value"] for variable in container["env"] if variable["name"] == "CONFIG_FILE")

    place, _, name = file.rpartition("/")
    assert mounted[place] == config["metadata"]["name"]
    content = yaml.safe_load(config["data"][name])
    if way == "mig":
        assert content == {"version": "v1", "flags": {"migStrategy": "mixed"}}
    else:
        slicing = content["sharing"]["timeSlicing"]
        assert slicing["renameByDefault"] is slicing["failRequestsGreaterThanOne"] is True


def driver_values():
    """Values for the chart of NVIDIA's driver for DRA."""
    return yaml.safe_load((DRA / "driver.yml").read_text(encoding="utf-8"))


def test_a_teams_claim_is_of_the_class_and_takes_the_namespace_that_it_is_applied_in(kubernetes_schema):
    (shared,), (claim,) = manifests.build(DRA), manifests.build(DRA / "team")
    for one in (shared, claim):
        kubernetes_schema(one)

    (request,) = claim["spec"]["devices"]["requests"]
    assert request["exactly"] == {"deviceClassName": shared["metadata"]["name"]}
    assert "namespace" not in claim["metadata"]
    guide = (ROOT / "docs/how-to/install-on-a-cluster.md").read_text(encoding="utf-8")
    (pod,) = (
        yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "resourceClaims" in one
    )
    assert pod["spec"]["resourceClaims"] == [{"name": "gpu", "resourceClaimName": claim["metadata"]["name"]}]
    assert pod["spec"]["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    kubernetes_schema({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **pod})


def test_the_driver_heeds_the_turns_that_the_class_asks_for():
    """The words are those of its API `resource.nvidia.com/v1beta1`; Kubernetes passes them on unread."""
    (shared,) = manifests.build(DRA)
    (config,) = shared["spec"]["config"]

    assert config["opaque"] == {
        "driver": "gpu.nvidia.com",
        "parameters": {
            "apiVersion": "resource.nvidia.com/v1beta1",
            "kind": "GpuConfig",
            "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Short"}},
        },
    }
    assert driver_values()["featureGates"] == {"TimeSlicingSettings": True}
    assert driver_values()["gpuResourcesEnabledOverride"] is True


def test_the_driver_is_installed_in_one_version_with_these_values():
    guide = (ROOT / "docs/how-to/install-on-a-cluster.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"helm upgrade --install (?:.*\\\n)+.*", guide)

    assert re.search(r"--version \d+\.\d+\.\d+ ", command)
    assert f"--values {(DRA / 'driver.yml').relative_to(ROOT)}" in command


@pytest.mark.parametrize("folder", [*(f"overlays/{name}" for name in OVERLAYS), *(f"teams/{name}" for name in NAMES)])
def test_nobody_in_a_team_may_make_a_claim(folder):
    for one in manifests.build(MANIFESTS / folder):
        for rule in one.get("rules") or [] if one["kind"] in {"Role", "ClusterRole"} else []:
            assert not {"resource.k8s.io", "*"} & set(rule.get("apiGroups", [])), one["metadata"]["name"]

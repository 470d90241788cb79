"""The manifests of the cluster, built by kustomize: valid, closed, sized, and naming nothing that is not there.

Nothing here asks a cluster: docs/how-to/install-on-a-cluster.md says what was run on one.
"""

import functools
import json
import re
import shutil
import tomllib
from urllib.parse import urlsplit

import pytest
import yaml
from shopfloor.stack import secrets, team_manifests
from shopfloor.stack.secrets import BUCKETS

from tests.contract import custom_resources
from tests.support import manifests
from tests.support.manifests import MANIFESTS, NAMES, OVERLAYS, TEAMS, key_of
from tests.support.project import ROOT

pytestmark = pytest.mark.skipif(bool(manifests.why_none()), reason=manifests.why_none())
KUBERNETES = "1.34"
FOLDERS = [
    *(f"overlays/{name}" for name in OVERLAYS),
    "base",
    *(f"teams/{name}" for name in NAMES),
]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
LOCK = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE))
WRITTEN = [
    path
    for path in sorted(MANIFESTS.rglob("*.yaml"))
    if path.name != "kustomization.yaml" and path.parent != MANIFESTS / "teams"
]
EVERYWHERE = {"kubernetes.io/metadata.name"}
VARIABLES = {"FROM_SECRETS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"}


@pytest.fixture(scope="module")
def judged():
    """Give the objects that were found right: most are in several folders."""
    return set()


def built(folder):
    return manifests.build(MANIFESTS / folder)


@pytest.fixture(scope="module")
def local():
    return manifests.overlay("local")


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request):
    """Give the objects of each overlay."""
    return manifests.overlay(request.param)


@pytest.fixture(scope="module")
def secret_objects(tmp_path_factory):
    return manifests.secrets_in(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def kubernetes_schema():
    """Give Kubernetes' own judge of its objects, which reads its schemas once."""
    import kubernetes_validate
    from kubernetes_validate import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield lambda one: kubernetes_validate.validate(one, KUBERNETES, strict=True)


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


def containers(pod):
    return [*pod.spec.get("initContainers", []), *pod.spec["containers"]]


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

    assert labels
    assert {one["pod-security.kubernetes.io/enforce"] for one in labels.values()} == {"restricted"}


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

    assert {f"{name}:{tag}" for name, tag in versions.items()} == written
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
    data = {key_of(one): one["data"].keys() for one in secret_objects}
    for pod in manifests.pods(objects):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for container in containers(pod):
            text = yaml.safe_dump({key: container[key] for key in container if key != "volumeMounts"})
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


def services(local):
    """Return the services by namespace and name, each with its ports; KubeRay makes two of a RayCluster."""
    names = {}
    for one in local:
        kind, namespace, name = key_of(one)
        if kind == "Service":
            names[namespace, name] = {port["port"] for port in one["spec"].get("ports", [])}
        elif kind == "RayCluster":
            (head,) = one["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
            ports = {port["name"]: port["containerPort"] for port in head["ports"]}
            assert one["metadata"]["annotations"]["ray.io/enable-serve-service"] == "true"
            names[namespace, f"{name}-head-svc"] = set(ports.values())
            names[namespace, f"{name}-serve-svc"] = {ports["serve"]}
    return names


@pytest.mark.parametrize("team", NAMES)
def test_every_address_of_a_teams_profile_is_a_service(team, objects):
    names = services(objects)
    profile = tomllib.loads((MANIFESTS / "teams" / team / "profile.toml").read_text(encoding="utf-8"))
    addresses = [
        profile[key] for key in ("tracking_uri", "s3_endpoint_url", "online_store", "ray_dashboard_url", "serve_url")
    ]
    (environment,) = (one["data"] for one in objects if key_of(one) == ("ConfigMap", team, "services"))
    addresses += [value for value in environment.values() if "://" in value]

    for address in addresses:
        url = urlsplit(address)
        name, _, namespace = url.hostname.partition(".")
        assert url.port in names[namespace or team, name], address
    (worker,) = (pod for pod in manifests.pods(objects) if pod.namespace == team and pod.name.endswith("-worker"))
    (tokens,) = (mount for mount in worker.spec["containers"][0]["volumeMounts"] if mount["name"] == "tokens")
    assert f"{tokens['mountPath']}/endpoints" == profile["serve_tokens_file"]
    assert environment["MLFLOW_TRACKING_URI"] == profile["tracking_uri"]
    assert environment["AWS_ENDPOINT_URL"] == profile["s3_endpoint_url"]
    assert profile["cluster"]["argo_url"].startswith("https://argo-server.argo:")


def test_what_the_stack_on_one_server_is_told_is_told_here_too(local):
    """The same variables with the same values, but for the addresses and whom they are for."""
    inside, ray = COMPOSE["x-inside"], COMPOSE["x-ray"]["environment"]
    (ours,) = (one["data"] for one in local if key_of(one) == ("ConfigMap", "vision", "services"))
    theirs = {key: value for key, value in {**inside, **ray}.items() if not key.startswith("SHOPFLOOR_")}
    for name in theirs.keys() & ours.keys():
        assert ours[name] == theirs[name] or "://" in ours[name], name
    assert theirs.keys() - ours.keys() - VARIABLES <= {
        "AWS_ACCESS_KEY_ID",
        "MLFLOW_TRACKING_USERNAME",
        "RAY_AUTH_TOKEN_PATH",
        "<<",
    }

    (mlflow,) = (pod.spec["containers"][0] for pod in manifests.pods(local) if pod.name == "mlflow")
    service = COMPOSE["services"]["mlflow"]
    variables = {variable["name"]: variable["value"] for variable in mlflow["env"]}
    assert variables.keys() == service["environment"].keys()
    assert {name for name in variables if variables[name].split() != service["environment"][name].split()} == {
        "MLFLOW_S3_ENDPOINT_URL",
        "MLFLOW_SERVER_ALLOWED_HOSTS",
    }
    assert [a for a in mlflow["args"] if "workers" not in a] == [a for a in service["command"] if "workers" not in a]


def test_the_object_store_starts_as_on_one_server_and_opens_s3_alone(local):
    (store,) = (pod.spec["containers"][0] for pod in manifests.pods(local) if pod.name == "object-store")
    command = COMPOSE["services"]["object-store"]["command"]

    assert set(command) - set(store["args"]) == {"-ip=object-store", "-ip.bind=0.0.0.0"}
    assert set(store["args"]) - set(command) == {
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3.ip.bind=0.0.0.0",
        "-metricsIp=0.0.0.0",
    }


def test_mlflows_users_differ_from_those_of_one_server_by_one_line():
    def lines(path):
        return {line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith(";")}

    here, there = lines(MANIFESTS / "base/system/mlflow/auth.ini"), lines(ROOT / "platform/compose/mlflow-auth.ini")
    assert here ^ there == {"default_permission = NO_PERMISSIONS", "default_permission = READ"}


def test_prometheus_and_grafana_are_told_what_they_are_on_one_server():
    data = {
        key_of(one)[2].rpartition("-")[0]: one["data"] for one in manifests.overlay("dev") if one["kind"] == "ConfigMap"
    }
    there = yaml.safe_load((ROOT / "platform/compose/prometheus.yml").read_text(encoding="utf-8"))
    here = yaml.safe_load(data["prometheus"]["prometheus.yml"])

    jobs, other_jobs = ({job["job_name"]: job for job in one["scrape_configs"]} for one in (here, there))
    assert jobs.keys() == other_jobs.keys() - {"node-exporter"}
    for name in ("prometheus", "alertmanager", "mlflow"):
        assert jobs[name]["static_configs"] == other_jobs[name]["static_configs"]
    for name in ("ray", "ray-worker"):
        assert jobs[name]["metric_relabel_configs"] == other_jobs[name]["metric_relabel_configs"]
    (store,) = jobs["object-store"]["static_configs"]
    assert [store] == yaml.safe_load((ROOT / "platform/compose/object-store-targets.yml").read_text(encoding="utf-8"))
    for name, folder in (("prometheus-rules", "rules"), ("grafana-dashboards", "grafana/dashboards")):
        files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "platform/compose" / folder).iterdir()}
        files.pop("backup.yml", None)
        assert data[name] == files


def test_what_argo_is_told_can_be_read(objects):
    (data,) = (one["data"] for one in objects if key_of(one)[2] == "workflow-controller-configmap")
    parsed = {key: yaml.safe_load(value) for key, value in data.items()}

    assert parsed["executor"]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} == parsed["executor"]["resources"].keys()
    assert parsed["persistence"]["postgresql"]["host"] == "postgres.shopfloor-system"
    assert parsed["persistence"]["archive"] is True


def test_the_archive_of_argo_has_a_secret_with_the_databases_password(objects, secret_objects):
    (data,) = (one["data"] for one in objects if key_of(one)[2] == "workflow-controller-configmap")
    postgresql = yaml.safe_load(data["persistence"])["postgresql"]
    secret = {key_of(one): one["data"] for one in secret_objects}
    archive, postgres = secret["Secret", "argo", "argo-archive"], secret["Secret", "shopfloor-system", "postgres"]

    assert {postgresql["userNameSecret"]["name"], postgresql["passwordSecret"]["name"]} == {"argo-archive"}
    assert archive[postgresql["passwordSecret"]["key"]] == postgres["argo_db_password"]
    assert postgresql["userNameSecret"]["key"] in archive


def test_a_teams_artifact_repository_is_the_one_of_its_profile(local, secret_objects):
    secret = {key_of(one): one["data"] for one in secret_objects}
    for team in NAMES:
        (data,) = (one["data"] for one in local if key_of(one) == ("ConfigMap", team, "artifact-repositories"))
        repository = yaml.safe_load(data["default"])
        store = repository["s3"]
        assert repository["archiveLogs"] is True
        assert (
            f"http://{store['endpoint']}"
            == tomllib.loads((MANIFESTS / "teams" / team / "profile.toml").read_text(encoding="utf-8"))[
                "s3_endpoint_url"
            ]
        )
        assert store["bucket"] in BUCKETS
        for one in (store["accessKeySecret"], store["secretKeySecret"]):
            assert one["key"] in secret["Secret", team, one["name"]]


def test_what_is_committed_of_the_teams_is_what_their_files_say():
    assert team_manifests.stale(ROOT, TEAMS) == [], "Write it anew: shopfloor teams render"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """Give the objects and the Secrets of a cluster whose store is S3 of AWS."""
    root = tmp_path_factory.mktemp("cloud")
    for folder in ("manifests", "platform/profiles", "platform/compose"):
        shutil.copytree(ROOT / folder, root / folder)
    profile = root / "platform/profiles/cluster.toml"
    text = profile.read_text(encoding="utf-8").replace(
        "http://object-store.shopfloor-system:9000", "https://s3.eu-central-1.amazonaws.com"
    )
    profile.write_text(text.replace("s3://shopfloor/", "s3://acme/").replace("s3://shopfloor-data/", "s3://acme-data/"))
    team_manifests.write(root, TEAMS)
    overlay = root / "manifests/overlays/cloud/kustomization.yaml"
    overlay.parent.mkdir()
    overlay.write_text("resources: [../../base, ../../teams]\ncomponents: [../../components/cloud-s3]\n")
    secrets.init(root / ".secrets", root / ".env", NAMES)
    return manifests.build(overlay.parent), manifests.build(root / "manifests/teams/secrets")


def test_with_s3_of_a_cloud_nothing_of_the_clusters_own_store_and_no_key_of_it_is_left(cloud, kubernetes_schema):
    objects, secret_objects = cloud
    text = yaml.safe_dump(objects)

    assert "object-store.shopfloor-system" not in text
    assert "object-store:9000" not in text
    assert not re.search(r"AWS_ACCESS_KEY_ID|AWS_SECRET_ACCESS_KEY|object_store_secret", text)
    assert not any(key.startswith("AWS_") for one in secret_objects for key in one["data"])
    assert not any(key_of(one)[2] == "object-store" for one in objects)
    for one in objects:
        if one["kind"] not in custom_resources.SCHEMAS and key_of(one)[1] in {"shopfloor-system", "argo", NAMES[0]}:
            kubernetes_schema(one)


def test_with_s3_of_a_cloud_a_team_finds_its_prefix_in_the_buckets_that_the_profile_names(cloud):
    objects, _ = cloud
    for team in NAMES:
        data = {key_of(one)[2]: one["data"] for one in objects if key_of(one)[:2] == ("ConfigMap", team)}
        store = yaml.safe_load(data["artifact-repositories"]["default"])["s3"]
        assert (store["endpoint"], store["region"]) == ("s3.eu-central-1.amazonaws.com", "eu-central-1")
        assert (store["bucket"], store["useSDKCreds"], store["insecure"]) == ("acme", True, False)
        assert data["places"]["SHOPFLOOR_DATA_REMOTE"] == f"s3://acme-data/{team}/dvc"
        assert data["services"]["AWS_ENDPOINT_URL"] == "https://s3.eu-central-1.amazonaws.com"


REMOTE = re.compile(r"https://\S+")
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
        else:
            kubernetes_schema(changed)


def test_kueue_is_told_to_share_fairly_and_to_leave_other_namespaces_alone():
    file = MANIFESTS / "operators/kueue/kueue-manager-config-configmap.yaml"
    text = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]["controller_manager_config.yaml"]
    config = yaml.safe_load(text)

    assert config["fairSharing"]["preemptionStrategies"]
    assert {"pod", "ray.io/rayjob"} <= set(config["integrations"]["frameworks"])
    (expression,) = config["managedJobsNamespaceSelector"]["matchExpressions"]
    assert expression == {"key": team_manifests.TEAM_LABEL, "operator": "Exists"}


def test_a_shared_gpu_has_a_name_of_its_own():
    file = MANIFESTS / "components/gpu-time-slicing/nvidia-device-plugin-configs-configmap.yaml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
    configs = {name: yaml.safe_load(text) for name, text in data.items()}

    assert configs["default"] == {"version": "v1"}
    slicing = configs["shared"]["sharing"]["timeSlicing"]
    assert slicing["renameByDefault"] is slicing["failRequestsGreaterThanOne"] is True

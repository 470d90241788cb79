"""What the services of the cluster are told is what the profile, the stack on one server and the cloud say."""

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
from tests.support.manifests import MANIFESTS, NAMES, TEAMS, key_of
from tests.support.project import ROOT

pytestmark = pytest.mark.skipif(bool(manifests.why_none()), reason=manifests.why_none())
VARIABLES = {"FROM_SECRETS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def services(local):
    """Return the services by namespace and name, each with its ports; KubeRay makes one of a RayCluster."""
    names = {}
    for one in local:
        kind, namespace, name = key_of(one)
        if kind == "Service":
            names[namespace, name] = {port["port"] for port in one["spec"].get("ports", [])}
        elif kind == "RayCluster":
            (head,) = one["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
            ports = {port["name"]: port["containerPort"] for port in head["ports"]}
            names[namespace, f"{name}-head-svc"] = set(ports.values())
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
    # It signs addresses for clients, and those of teams are in other namespaces.
    assert "//object-store.shopfloor-system:" in variables["MLFLOW_S3_ENDPOINT_URL"]
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
    assert jobs.keys() - {"pushgateway"} == other_jobs.keys() - {"node-exporter"}
    for name in ("prometheus", "alertmanager", "mlflow"):
        assert jobs[name]["static_configs"] == other_jobs[name]["static_configs"]
    for name in ("ray", "ray-worker"):
        assert jobs[name]["metric_relabel_configs"] == other_jobs[name]["metric_relabel_configs"]
    (store,) = jobs["object-store"]["static_configs"]
    assert [store] == yaml.safe_load((ROOT / "platform/compose/object-store-targets.yml").read_text(encoding="utf-8"))
    for name, folder in (("prometheus-rules", "rules"), ("grafana-dashboards", "grafana/dashboards")):
        files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "platform/compose" / folder).iterdir()}
        assert {key: text for key, text in data[name].items() if key != "backup.yml"} == {
            key: text for key, text in files.items() if key != "backup.yml"
        }
    assert yaml.safe_load(data["prometheus-rules"]["backup.yml"])["groups"][0]["name"] == "backup"


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

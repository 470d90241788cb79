"""A team reaches nothing of another: every edge that the rendered objects allow, enumerated.

By the network, by Kubernetes' rights, in the object store. What MLflow lets a team see is a setting of its server:
`auth.ini` gives nobody what others made.
"""

import base64
import itertools
import json
import tomllib

import pytest
import yaml
from shopfloor.engines.argo import quota
from shopfloor.engines.argo.asks import quantity
from shopfloor.stack import team_ingress
from shopfloor.stack.secrets import TEAM_BUCKETS

from tests.support import manifests
from tests.support.manifests import MANIFESTS, NAMES, TEAMS, Network, key_of

pytestmark = pytest.mark.skipif(bool(manifests.why_none()), reason=manifests.why_none())
PAIRS = list(itertools.permutations(NAMES, 2))
PODS_OF_A_TEAM = {"step", "rayjob-head", "redis", "shopfloor-serve-head", "shopfloor-serve-worker"}
TO_SERVICES = {
    ("shopfloor-system/mlflow", 5000),
    ("shopfloor-system/object-store", 8333),
    ("argo/argo-server", 2746),
    ("kube-system/kube-dns", 53),
}
"""What every pod of a team reaches outside of it."""
ACTIONS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket")


@pytest.fixture(scope="module")
def network(objects):
    return Network(objects)


@pytest.fixture(scope="module")
def pods(objects):
    return [*manifests.pods(objects), *manifests.visitors()]


def monitored(pods):
    """Tell whether the overlay has components/monitoring."""
    return any(pod.name == "prometheus" for pod in pods)


def of(team, pods):
    return [pod for pod in pods if pod.namespace == team]


@pytest.mark.parametrize(("team", "other"), PAIRS)
def test_no_pod_of_a_team_reaches_a_pod_of_another(team, other, network, pods):
    assert {pod.name for pod in of(team, pods)} == PODS_OF_A_TEAM
    edges = {
        (str(source), str(target)): network.edges(source, target)
        for source in of(team, pods)
        for target in of(other, pods)
    }

    assert len(edges) == len(PODS_OF_A_TEAM) ** 2
    assert {pair: ports for pair, ports in edges.items() if ports} == {}


@pytest.mark.parametrize("team", NAMES)
def test_a_team_reaches_the_services_that_are_for_all_and_nothing_else(team, network, pods):
    others = [pod for pod in pods if pod.namespace != team]
    for source in of(team, pods):
        reached = {(str(target), port) for target in others for port in network.edges(source, target)}
        # Nothing else listens in those namespaces to whoever asks for the Kubernetes API.
        elsewhere = ("kuberay-system", "kube-system", "ingress", "somebody-else")
        open_elsewhere = {edge for edge in reached if edge[0].startswith(elsewhere)}
        assert reached - open_elsewhere == TO_SERVICES - {("kube-system/kube-dns", 53)}
        assert {port for _, port in open_elsewhere} <= {53, 443, 6443}
        assert ("kube-system/kube-dns", 53) in open_elsewhere
        assert source.name in {"step"} or {port for _, port in open_elsewhere} == {53}


@pytest.mark.parametrize("team", NAMES)
def test_only_the_team_and_the_operator_of_ray_get_into_a_team(team, network, pods):
    into = {
        (str(source), target.name): network.edges(source, target)
        for source in pods
        if source.namespace != team
        for target in of(team, pods)
    }

    scraped = ("rayjob-head", "shopfloor-serve-head", "shopfloor-serve-worker") if monitored(pods) else ()
    assert {pair: ports for pair, ports in into.items() if ports} == {
        ("kuberay-system/kuberay-operator", "rayjob-head"): {8265, 52365},
        ("kuberay-system/kuberay-operator", "shopfloor-serve-head"): {8265, 52365},
        **{("shopfloor-system/prometheus", name): {8080} for name in scraped},
    }


def test_the_inner_services_are_reached_by_whom_they_are_for(network, pods):
    targets = [pod for pod in pods if pod.namespace == "shopfloor-system"]
    inner = {
        (str(source), target.name): network.edges(source, target)
        for source in pods
        if source.namespace not in NAMES
        for target in targets
    }

    backed_up = any(target.name == "backup" for target in targets)
    ours = any(target.name == "postgres" for target in targets)  # and not one of a cloud, which is no pod
    databases = {
        ("shopfloor-system/mlflow", "postgres"): {5432},
        ("argo/workflow-controller", "postgres"): {5432},
        ("argo/argo-server", "postgres"): {5432},
    }
    monitoring = {
        ("shopfloor-system/prometheus", "mlflow"): {5000},
        ("shopfloor-system/prometheus", "object-store"): {9327},
        ("shopfloor-system/prometheus", "alertmanager"): {9093},
        ("shopfloor-system/grafana", "prometheus"): {9090},
    }
    if monitored(pods):
        monitoring["shopfloor-system/prometheus", "pushgateway"] = {9091}
    copied = {
        ("shopfloor-system/backup", "pushgateway"): {9091},
        ("shopfloor-system/backup", "postgres"): {5432},
        ("shopfloor-system/backup", "object-store"): {8333},
    }
    copied |= {("shopfloor-system/backup-verify", target): ports for (_, target), ports in copied.items()}
    door = {
        ("ingress/controller", "oauth2-proxy"): {4180},
        ("shopfloor-system/oauth2-proxy", "mlflow"): {5000},
    }
    assert {pair: ports for pair, ports in inner.items() if ports} == {
        **(databases if ours else {}),
        **(monitoring if monitored(pods) else {}),
        **({edge: ports for edge, ports in copied.items() if edge[1] != "postgres" or ours} if backed_up else {}),
        **(door if any(target.name == "oauth2-proxy" for target in targets) else {}),
        ("shopfloor-system/mlflow", "object-store"): {8333},
        ("shopfloor-system/bootstrap", "object-store"): {8333},
        ("argo/argo-server", "object-store"): {8333},
        ("shopfloor-system/bootstrap", "mlflow"): {5000},
    }


def test_every_pod_of_ours_is_closed_where_no_policy_opens_it(network, objects):
    assert all(network.isolated(pod) for pod in manifests.pods(objects))


def test_a_host_lets_the_ingress_controller_in_to_the_endpoints_of_that_team_alone(objects, pods, kubernetes_schema):
    team = TEAMS[0].model_copy(update={"host": "models.example.org"})
    ingress, policy = team_ingress.objects(team)
    for one in (ingress, policy):
        kubernetes_schema(one)
        one["metadata"]["namespace"] = team.name  # as kustomize puts it there
    (controller,) = of("ingress", pods)
    opened = Network([*objects, policy])

    into = {str(target): opened.edges(controller, target) for target in pods if target.namespace in NAMES}
    assert {name: ports for name, ports in into.items() if ports} == {f"{team.name}/shopfloor-serve-worker": {8000}}
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    service = next(one for one in objects if key_of(one) == ("Service", team.name, path["backend"]["service"]["name"]))
    assert path["backend"]["service"]["port"]["number"] in {port["port"] for port in service["spec"]["ports"]}
    assert team_ingress.objects(TEAMS[0]) == []


def test_the_judge_of_the_network_sees_an_edge_that_somebody_opens(objects, pods):
    hole = {
        "kind": "NetworkPolicy",
        "metadata": {"name": "hole", "namespace": NAMES[0]},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "redis"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 6443}]}],
        },
    }
    (redis,) = (pod for pod in of(NAMES[0], pods) if pod.name == "redis")
    (step,) = (pod for pod in of(NAMES[1], pods) if pod.name == "step")

    assert Network([*objects, hole]).edges(step, redis) == {6443}


def subjects(team):
    group = next(one.members for one in TEAMS if one.name == team)
    accounts = ("shopfloor-run", "serve", "redis")
    return [
        {"kind": "Group", "name": group},
        *({"kind": "ServiceAccount", "name": name, "namespace": team} for name in accounts),
    ]


@pytest.mark.parametrize("team", NAMES)
def test_nobody_of_a_team_has_a_right_outside_of_it(team, objects):
    own = next(one for one in TEAMS if one.name == team)
    visible = {"clusterqueues": {team}, "cohorts": {"shopfloor"}, "resourceflavors": set(own.quota)}
    for subject in subjects(team):
        for right in manifests.rights(objects, subject):
            if right.namespace:
                assert right.namespace == team, (subject, right)
            elif right.resource == "workloadpriorityclasses":
                assert right.verb in {"get", "list"}, (subject, right)
            else:
                assert right.verb == "get", (subject, right)
                assert right.names, (subject, right)
                assert set(right.names) <= visible[right.resource], (subject, right)


@pytest.mark.parametrize("team", NAMES)
def test_what_the_others_could_lend_a_team_is_told_as_a_sum(team, objects):
    queues = {one["metadata"]["name"]: one for one in objects if one["kind"] == "ClusterQueue"}
    told = json.loads(queues[team]["metadata"]["annotations"][quota.LENT])
    others = [quota.quota_of(one, None, {}).groups[0].flavors for name, one in queues.items() if name != team]

    for flavor, resources in told.items():
        for resource, amount in resources.items():
            own = [f.shares[resource].nominal for flavors in others for f in flavors if f.name == flavor]
            assert quantity(amount) == sum(own), (flavor, resource)


@pytest.mark.parametrize("team", NAMES)
def test_nobody_of_a_team_reads_secrets_or_gives_himself_more(team, objects):
    for subject in subjects(team):
        for right in manifests.rights(objects, subject):
            assert "*" not in {right.group, right.resource, right.verb}, (subject, right)
            assert right.verb not in {"escalate", "bind", "impersonate"}, (subject, right)
            assert right.resource.partition("/")[0] not in {
                "secrets",
                "configmaps",
                "roles",
                "rolebindings",
                "serviceaccounts",
                "networkpolicies",
            }, (subject, right)
            assert right.resource not in {"pods/exec", "pods/attach", "pods/ephemeralcontainers"}, (subject, right)
            assert (right.resource, right.verb) != ("pods", "create"), (subject, right)


@pytest.mark.parametrize("team", NAMES)
def test_members_and_runs_have_the_rights_that_the_commands_need(team, objects):
    group, run, serve, redis = (
        {(right.resource, right.verb) for right in manifests.rights(objects, subject)} for subject in subjects(team)
    )

    assert serve == redis == set()
    assert {("workflowtaskresults", "patch"), ("rayjobs", "create"), ("pods", "list"), ("pods/log", "get")} <= run
    assert {("workflows", verb) for verb in ("create", "get", "list", "watch", "patch", "update")} <= group
    assert {("workloads", "list"), ("localqueues", "get"), ("localqueues/pendingworkloads", "get")} <= group
    assert {("clusterqueues", "get"), ("cohorts", "get"), ("resourceflavors", "get"), ("limitranges", "list")} <= group
    assert ("workloads", "list") in run
    assert {("cronworkflows", "create"), ("pods", "delete"), ("pods/log", "get"), ("events", "watch")} <= group


def test_the_rights_are_those_that_were_tried_on_a_cluster(objects):
    """What tests/e2e/team.yaml has, which runs on a real one, the manifests have too."""
    tried = [one for one in yaml.safe_load_all((MANIFESTS.parent / "tests/e2e/team.yaml").read_text()) if one]
    for one in tried:
        one["metadata"]["namespace"] = NAMES[0]
        for subject in one.get("subjects", []):
            subject["namespace"] = NAMES[0]
    member, run = subjects(NAMES[0])[:2]
    account = {"kind": "ServiceAccount", "name": "member", "namespace": NAMES[0]}

    assert manifests.rights(tried, run) <= manifests.rights(objects, run)
    assert manifests.rights(tried, account) <= manifests.rights(objects, member)


def identities(secret_objects):
    (secret,) = (one for one in secret_objects if key_of(one)[2] == "object-store-identities")
    content = json.loads(base64.b64decode(secret["data"]["object_store"]))
    return {one["name"]: one for one in content["identities"]}


@pytest.mark.parametrize("team", NAMES)
def test_a_key_of_the_object_store_opens_the_teams_own_prefix(team, secret_objects):
    identity = identities(secret_objects)[team]
    policy = json.loads((MANIFESTS / "teams" / team / "s3-policy.json").read_text(encoding="utf-8"))
    for bucket in TEAM_BUCKETS:
        for action in ("Read", "Write", "List", "Tagging"):
            assert manifests.may_by_identity(identity, action, bucket, f"{team}/artifacts/x")
        for action in ACTIONS:
            assert manifests.may_by_policy(policy, action, bucket, f"{team}/artifacts/x"), action


FOREIGN = [
    "",
    "x",
    "{other}/",
    "{other}/artifacts/x",
    "{team}2/x",
    "{team}",
    "{team}x",
    "../{team}/x",
    "{other}/{team}/x",
]


@pytest.mark.parametrize(("team", "other"), PAIRS)
@pytest.mark.parametrize("key", FOREIGN)
def test_a_key_of_the_object_store_opens_nothing_else(team, other, key, secret_objects):
    identity, name = identities(secret_objects)[team], key.format(team=team, other=other)
    policy = json.loads((MANIFESTS / "teams" / team / "s3-policy.json").read_text(encoding="utf-8"))
    for bucket in (*TEAM_BUCKETS, "shopfloor-mlflow", "shopfloor-backups"):
        for action in ("Read", "Write", "List", "Tagging", "Admin"):
            assert not manifests.may_by_identity(identity, action, bucket, name), (action, bucket)
        for action in ACTIONS:
            assert not manifests.may_by_policy(policy, action, bucket, name), (action, bucket)
    assert not manifests.may_by_identity(identity, "Read", "shopfloor-mlflow", f"{team}/x")


@pytest.mark.parametrize("team", NAMES)
def test_everything_that_a_team_is_told_to_write_lies_under_its_prefix(team, objects):
    profile = tomllib.loads((MANIFESTS / "teams" / team / "profile.toml").read_text(encoding="utf-8"))
    prefixes = [f"s3://{bucket}/{team}/" for bucket in TEAM_BUCKETS]
    data = {key_of(one): one.get("data") for one in objects}
    repository = yaml.safe_load(data["ConfigMap", team, "artifact-repositories"]["default"])["s3"]
    places = [*manifests.places(team).values(), *data["ConfigMap", team, "places"].values()]
    places += [profile[key] for key in manifests.places(team)]
    places.append(f"s3://{repository['bucket']}/{repository['keyFormat']}")

    assert all(place.startswith(tuple(prefixes)) for place in places), places


@pytest.mark.parametrize(("team", "other"), PAIRS)
def test_no_secret_of_a_team_is_that_of_another(team, other, secret_objects):
    def values(namespace):
        data = [one["data"] for one in secret_objects if one["metadata"]["namespace"] == namespace]
        names = {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "REDIS_PASSWORD", "RAY_AUTH_TOKEN", "SERVE_TOKEN"}
        return {value for one in data for key, value in one.items() if key in names}

    assert len(values(team)) == 5
    assert values(team).isdisjoint(values(other))


def test_a_pod_of_a_team_gets_no_secret_of_the_platform(secret_objects):
    def values(chosen):
        return {
            value for one in secret_objects if chosen(one["metadata"]["namespace"]) for value in one["data"].values()
        }

    shared = values(lambda namespace: namespace in NAMES) & values(lambda namespace: namespace not in NAMES)
    # The bootstrap knows each team's password of MLflow, as it makes the users.
    (passwords,) = (one["data"].values() for one in secret_objects if key_of(one)[2] == "teams")
    assert shared == set(passwords)

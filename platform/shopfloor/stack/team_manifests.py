"""What a shared cluster needs for its teams, made of their files: everything but what all teams have alike.

That is `manifests/base/team`, which each team's folder takes in by kustomize. What is written here is committed and
reviewed as all else; `stale` names what no longer is what the files say.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from shopfloor.errors import UsageError
from shopfloor.settings import LIMITS
from shopfloor.stack import team_ingress
from shopfloor.stack.secrets import TEAM_SECRETS, TEAMS
from shopfloor.stack.teams import FOLDER, SYSTEM, Flavor, Team, flavors

COHORT = "shopfloor"
TEAM_LABEL = "shopfloor.io/team"
"""Label of a team's namespace: policies let the teams in by it, and tell them apart."""
QUEUE = "runs"
"""Not `default`: Kueue puts every pod of a namespace into a queue of that name, Redis and the endpoints' too."""
SERVE_TOKENS = "/run/tokens/endpoints"
"""File with the hashes of the endpoints' tokens, where `manifests/base/team/serve` mounts it."""
LENT = "shopfloor.io/lent-by-others"
"""Annotation of a team's ClusterQueue: what the other teams have as their own, by flavor and resource, as JSON."""
UNQUEUED = {"cpu": 64, "memory": 256}
"""CPUs and GiB that a team may have beside what queues: its endpoints and its Redis."""
NOTE = "# Written by `shopfloor teams render`: change manifests/teams/{name}.yaml and not this.\n"
SECRETS_NOTE = """\
# Written by `shopfloor teams render`. `shopfloor secrets init --team NAME` makes the values, no part of the project.
#   kubectl kustomize --load-restrictor LoadRestrictionsNone manifests/teams/secrets | kubectl apply -f -
"""
_WRITTEN = b"# Written by `shopfloor teams render`"
"""Beginning of every file that is written here, but for the policies, whose format has no comments."""
_POLICY = "s3-policy.json"
Json = dict[str, Any]


def buckets(profile: Mapping[str, Any]) -> tuple[str, str]:
    """Return the buckets of artifacts and of data in which each team has the prefix of its name."""
    return urlsplit(str(profile["artifact_root"])).netloc, urlsplit(str(profile["data_remote"])).netloc


def places(team: str, profile: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a team that name its own prefix, whose name is the team's."""
    artifacts, data = buckets(profile)
    return {
        "artifact_root": f"s3://{artifacts}/{team}/artifacts",
        "data_remote": f"s3://{data}/{team}/dvc",
        "feature_registry": f"s3://{artifacts}/{team}/feast/registry.db",
    }


def cluster_profile(root: Path) -> dict[str, Any]:
    """Return the profile that those of the teams are made of."""
    return tomllib.loads((root / "platform/profiles/cluster.toml").read_text(encoding="utf-8"))


def rendered(root: Path, teams: Sequence[Team]) -> dict[Path, str]:
    """Return every file of the teams, by its path in `manifests/teams`.

    Args:
        root: Of the project.
        teams: All of them, from `teams.load`.
    """
    profile, pool, actions = cluster_profile(root), flavors(root), _object_actions(root)
    result = {
        Path("kustomization.yaml"): _kustomization("<a team>", resources=[team.name for team in teams]),
        Path("secrets/kustomization.yaml"): SECRETS_NOTE + _yaml(_secrets(teams, profile)),
    }
    for team in teams:
        others = [one for one in teams if one is not team]
        for path, text in _files_of(team, others, pool, profile, actions).items():
            result[Path(team.name) / path] = text
    return result


def write(root: Path, teams: Sequence[Team]) -> list[Path]:
    """Write every file of the teams, and remove what was written for teams that are gone; what others put there stays.

    Returns:
        What changed, relative to the project.
    """
    texts, changed = rendered(root, teams), stale(root, teams)
    for path in changed:
        place, text = root / path, texts.get(path.relative_to(FOLDER))
        if text is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        else:
            place.unlink()
            for parent in place.parents:
                if parent == root / FOLDER or any(parent.iterdir()):
                    break
                parent.rmdir()
    return changed


def stale(root: Path, teams: Sequence[Team]) -> list[Path]:
    """Return the files that are not what the teams' files say, relative to the project."""
    folder, texts = root / FOLDER, rendered(root, teams)
    different = [
        path
        for path, text in texts.items()
        if not (folder / path).is_file() or (folder / path).read_text(encoding="utf-8") != text
    ]
    written = [
        place.relative_to(folder)
        for kustomization in sorted(folder.glob("*/kustomization.yaml"))
        if kustomization.read_bytes().startswith(_WRITTEN)
        for place in sorted(kustomization.parent.rglob("*"))
        if place.is_file() and (place.name == _POLICY or place.read_bytes().startswith(_WRITTEN))
    ]
    return [FOLDER / path for path in (*different, *(path for path in written if path not in texts))]


def require_fresh(root: Path, teams: Sequence[Team]) -> None:
    """Refuse manifests that are not what the teams' files say.

    Raises:
        UsageError: Some are not.
    """
    if paths := stale(root, teams):
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise UsageError(f"{paths[0]}{more} is not what the teams' files say.", "shopfloor teams render")


def _files_of(
    team: Team,
    others: Sequence[Team],
    pool: Mapping[str, Flavor],
    profile: Mapping[str, Any],
    actions: Sequence[str],
) -> dict[str, str]:
    cluster_wide = [_namespace(team), _cluster_queue(team, others, pool), *_pool_reader(team)]
    inside = [_local_queue(team), _resource_quota(team, pool), _members(team), _places(team, profile)]
    inside += [_artifact_repositories(team, profile), *_limits(team), *team_ingress.objects(team)]
    texts = {_file(one): NOTE.format(name=team.name) + _yaml(one) for one in cluster_wide}
    texts |= {f"inside/{_file(one)}": NOTE.format(name=team.name) + _yaml(one) for one in inside}
    return {
        "kustomization.yaml": _kustomization(team.name, resources=[*map(_file, cluster_wide), "inside"]),
        "inside/kustomization.yaml": _kustomization(
            team.name, namespace=team.name, resources=["../../../base/team", *map(_file, inside)]
        ),
        **texts,
        "profile.toml": NOTE.format(name=team.name) + _toml(_profile(team, profile)),
        _POLICY: json.dumps(_s3_policy(team.name, buckets(profile), actions), indent=2) + "\n",
    }


def _namespace(team: Team) -> Json:
    labels = {
        TEAM_LABEL: team.name,
        "app.kubernetes.io/part-of": "shopfloor",
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
        "pod-security.kubernetes.io/warn": "restricted",
    }
    budget = {"shopfloor.io/gpu-hours": f"{team.budget.gpu_hours:g}"}
    return _object("v1", "Namespace", team.name, labels=labels, annotations=budget)


def _cluster_queue(team: Team, others: Sequence[Team], pool: Mapping[str, Flavor]) -> Json:
    """Return the team's part of the cohort, and as an annotation what the others could lend it together.

    Members see no queue but their own, and without that sum nobody could tell them what can never be admitted.

    A pod is tried on the flavors in their order, and borrows before it goes to the next: heads of Ray clusters, which
    need no GPU, do not end up on nodes that have some.

    Jobs are stopped for one reason alone: another team takes back what is its own. A second reason, such as urgency
    within the team, can make circles: a borrower yields to the owner's small job, that to the owner's urgent large one,
    which then lacks what the borrower, back again, has taken (`tests/simulation/test_circles.py`).
    """
    without, covered = [name for name in pool if not pool[name].gpu], ["cpu", "memory", "nvidia.com/gpu"]
    order = sorted(team.quota, key=lambda name: name not in without)
    spec = {
        "cohortName": COHORT,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": team.name}},
        "queueingStrategy": "BestEffortFIFO",
        "flavorFungibility": {"whenCanBorrow": "MayStopSearch", "whenCanPreempt": "TryNextFlavor"},
        "preemption": {"reclaimWithinCohort": "Any", "withinClusterQueue": "Never"},
        "resourceGroups": [
            {
                "coveredResources": covered,
                "flavors": [
                    {
                        "name": name,
                        "resources": _shares(pool[name], team.quota[name].nominal, team.quota[name].borrowing),
                    }
                    for name in order
                ],
            }
        ],
    }
    lent = {name: _own_of(others, name, pool[name]) for name in order}
    annotations = {LENT: json.dumps(lent, sort_keys=True)}
    return _object("kueue.x-k8s.io/v1beta2", "ClusterQueue", team.name, annotations=annotations, spec=spec)


def _own_of(teams: Sequence[Team], flavor: str, pool: Flavor) -> dict[str, str]:
    """Return what teams have of a flavor as their own, together."""
    own = [pool.resources(team.quota[flavor].nominal) for team in teams if flavor in team.quota]
    units = {"memory": "Gi"}
    return {
        name: f"{sum(int(one[name].removesuffix(units.get(name, ''))) for one in own)}{units.get(name, '')}"
        for name in pool.resources(0)
    }


def _shares(flavor: Flavor, nominal: int, borrowing: int) -> list[Json]:
    own, more = flavor.resources(nominal), flavor.resources(borrowing)
    return [{"name": name, "nominalQuota": own[name], "borrowingLimit": more[name]} for name in own]


def _pool_reader(team: Team) -> list[Json]:
    """Return what lets members see their own queue, its cohort and its flavors by name, and no other team's queue."""
    name = f"shopfloor:{team.name}:queue"
    visible = {"clusterqueues": [team.name], "cohorts": [COHORT], "resourceflavors": list(team.quota)}
    kueue = "kueue.x-k8s.io"
    rules = [
        {"apiGroups": [kueue], "resources": [resource], "resourceNames": names, "verbs": ["get"]}
        for resource, names in visible.items()
    ]
    rules.append({"apiGroups": [kueue], "resources": ["workloadpriorityclasses"], "verbs": ["get", "list"]})
    return [
        _object("rbac.authorization.k8s.io/v1", "ClusterRole", name, rules=rules),
        _object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", name, **_binding("ClusterRole", name, team)),
    ]


def _members(team: Team) -> Json:
    return _object("rbac.authorization.k8s.io/v1", "RoleBinding", "member", **_binding("Role", "member", team))


def _binding(kind: str, role: str, team: Team) -> Json:
    group = "rbac.authorization.k8s.io"
    return {
        "roleRef": {"apiGroup": group, "kind": kind, "name": role},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": team.members}],
    }


def _local_queue(team: Team) -> Json:
    return _object("kueue.x-k8s.io/v1beta2", "LocalQueue", QUEUE, spec={"clusterQueue": team.name})


def _resource_quota(team: Team, pool: Mapping[str, Flavor]) -> Json:
    """Return the end of what the namespace may hold: all that its queue could ever admit, and what does not queue."""
    parts = [pool[name].resources(share.nominal + share.borrowing) for name, share in team.quota.items()]
    hard = {
        "requests.cpu": str(UNQUEUED["cpu"] + sum(int(part["cpu"]) for part in parts)),
        "requests.memory": f"{UNQUEUED['memory'] + sum(int(part['memory'][:-2]) for part in parts)}Gi",
        "requests.nvidia.com/gpu": str(sum(int(part["nvidia.com/gpu"]) for part in parts)),
        "requests.storage": "1Ti",
        "persistentvolumeclaims": "50",
        "pods": "500",
        # Nothing of a team's is open to the outside but through the platform's ingress.
        "services.loadbalancers": "0",
        "services.nodeports": "0",
    }
    return _object("v1", "ResourceQuota", "team", spec={"hard": hard})


def _places(team: Team, profile: Mapping[str, Any]) -> Json:
    return _object(
        "v1",
        "ConfigMap",
        "places",
        data={f"SHOPFLOOR_{key.upper()}": value for key, value in places(team.name, profile).items()},
    )


def _limits(team: Team) -> list[Json]:
    """Return how many of the team's runs go on at a time, which Argo's semaphores count."""
    numbers = {name: str(number) for name, number in team.limits.items()}
    return [_object("v1", "ConfigMap", LIMITS, data=numbers)] if numbers else []


def _artifact_repositories(team: Team, profile: Mapping[str, Any]) -> Json:
    """Return where Argo keeps the logs of steps; what they hand on lies under the namespace's name too, by its key."""
    endpoint, region = str(profile["s3_endpoint_url"]), _region(profile)
    keys: Json = {"name": "object-store"}
    access = {
        "accessKeySecret": keys | {"key": "AWS_ACCESS_KEY_ID"},
        "secretKeySecret": keys | {"key": "AWS_SECRET_ACCESS_KEY"},
    }
    repository = {
        "archiveLogs": True,
        "s3": {
            "endpoint": urlsplit(endpoint).netloc,
            "insecure": not endpoint.startswith("https:"),
            "bucket": buckets(profile)[0],
            # Said here, it is not asked of the bucket, which a key for a prefix may not.
            "region": region or "us-east-1",
            "keyFormat": f"{team.name}/workflows/{{{{workflow.name}}}}/{{{{pod.name}}}}",
            **({"useSDKCreds": True} if region else access),
        },
    }
    return _object("v1", "ConfigMap", "artifact-repositories", data={"default": _yaml(repository)})


def _region(profile: Mapping[str, Any]) -> str | None:
    """Return the region of an S3 of AWS, where accounts of Kubernetes get in without keys; `None` for every other."""
    host = urlsplit(str(profile["s3_endpoint_url"])).hostname or ""
    match = re.fullmatch(r"s3\.([a-z0-9-]+)\.amazonaws\.com", host)
    return match[1] if match else None


def _profile(team: Team, profile: Mapping[str, Any]) -> Json:
    cluster = {**profile["cluster"], "namespace": team.name, "queue": QUEUE, "priority_class": team.priority}
    if team.limits:
        cluster["limits"] = list(team.limits)
    if prices := cluster.pop("prices", None):
        cluster["prices"] = {flavor: _price(flavor, prices) for flavor in team.quota}
    return {**profile, **places(team.name, profile), "serve_tokens_file": SERVE_TOKENS, "cluster": cluster}


def _price(flavor: str, prices: Mapping[str, Any]) -> dict[str, float]:
    """Return what an hour on a flavor costs.

    Raises:
        UsageError: The table does not say.
    """
    if flavor not in prices:
        raise UsageError(
            f"The price table (cluster.prices in platform/profiles/cluster.toml) has no flavor {flavor!r}.",
            f"Add it: {flavor} = {{gpu = PRICE OF AN HOUR}}, or {{cpu = ...}} where it has no GPU.",
        )
    return dict(prices[flavor])


def _object_actions(root: Path) -> list[str]:
    """Return what the platform's user may do with an object, by the policy that stands for every S3."""
    policy = json.loads((root / "platform/compose" / _POLICY).read_text(encoding="utf-8"))
    return next(one["Action"] for one in policy["Statement"] if "s3:GetObject" in one["Action"])


def _s3_policy(team: str, buckets_of_teams: Sequence[str], actions: Sequence[str]) -> Json:
    """Return the team's rights in an S3 that takes AWS's policies: what lies under its prefix, and nothing else."""
    buckets = [f"arn:aws:s3:::{bucket}" for bucket in buckets_of_teams]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": buckets,
                "Condition": {"StringLike": {"s3:prefix": [f"{team}/*"]}},
            },
            {
                "Effect": "Allow",
                "Action": list(actions),
                "Resource": [f"{bucket}/{team}/*" for bucket in buckets],
            },
        ],
    }


def _secrets(teams: Sequence[Team], profile: Mapping[str, Any]) -> Json:
    cloud = _region(profile) is not None
    generators = [
        _secret("teams", SYSTEM, [f"{team.name}={_file_of(team, 'mlflow_password')}" for team in teams]),
    ]
    for team in teams:
        literals = [f"MLFLOW_TRACKING_USERNAME={team.name}", "RAY_AUTH_MODE=token"]
        literals += [] if cloud else [f"AWS_ACCESS_KEY_ID={team.name}"]
        variables = [
            f"{variable}={_file_of(team, name)}"
            for name, variable in TEAM_SECRETS.items()
            if not (cloud and variable.startswith("AWS_"))
        ]
        generators += [
            _secret("object-store", team.name, variables) | {"literals": literals},
            _secret("redis", team.name, [_file_of(team, "redis_password")]),
            _secret("ray-token", team.name, [f"auth_token={_file_of(team, 'ray_token')}"]),
            _secret("serve-tokens", team.name, [_file_of(team, "tokens/endpoints")]),
        ]
    return _kustomize(generatorOptions={"disableNameSuffixHash": True}, secretGenerator=generators)


def _secret(name: str, namespace: str, sources: list[str]) -> Json:
    return {"name": name, "namespace": namespace, "files": sources}


def _file_of(team: Team, name: str) -> str:
    return f"../../../.secrets/{TEAMS}/{team.name}/{name}"


def _object(version: str, kind: str, name: str, /, **content: Any) -> Json:
    metadata: Json = {"name": name} | {key: content.pop(key) for key in ("labels", "annotations") if key in content}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _file(one: Json) -> str:
    return f"{one['metadata']['name'].replace(':', '-')}-{one['kind'].lower()}.yaml"


def _kustomization(team: str, **content: Any) -> str:
    return NOTE.format(name=team) + _yaml(_kustomize(**content))


def _kustomize(**content: Any) -> Json:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **content}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as lines."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _yaml(content: Json) -> str:
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True))


def _toml(content: Mapping[str, Any]) -> str:
    """Return strings, numbers and truth values as TOML, and one level of tables; what is in those stands in a line."""
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    lines = [f"{key} = {_value(value)}" for key, value in content.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join([*lines, ""])


def _value(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    return f"{{ {', '.join(f'{key} = {_value(inner)}' for key, inner in value.items())} }}"

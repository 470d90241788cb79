"""The stack of `manifests/` on a real cluster, as a platform team applies it, and members of its teams.

The cluster is the one that KUBECONFIG names, with Argo Workflows, KubeRay and Kueue in it, and with the images that
`manifests/images` names; the platform image may have another name, CLUSTER_IMAGE. What a run searches stands in that
image: on two processors its use case has to ask for less, as `SMALLER` says. Members find the services by the
names that these have in the cluster, so this machine has to reach its pods and its DNS server. CLUSTER_KEEP is a
directory for the stack's copy of the project: its stack stays, and the next run goes on with it.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import yaml
from shopfloor.stack import secrets

from tests.support import cluster as clusters
from tests.support.cluster import kubectl
from tests.support.project import bare_environment, copy_project, git
from tests.support.waiting import wait_until

TEAMS = ("flights", "vision")
SYSTEM = "shopfloor-system"
START_S = 1200
"""How long the services may take to come up on two cores."""
RUN_S = 1800
"""How long a run of the training pipeline may take at most."""
SUBMIT = ("submit", "pipelines/training.py", "--use-case", "flight_delays")
SMALLER = {"trials: 16": "trials: 3", "max_concurrent: 2": "max_concurrent: 1", "cpus: 1, gpus": "cpus: 0.5, gpus"}
"""What the search asks for here, by what stands in the use case."""
HEAD = 'ray_head_cpu = "100m"\nray_head_memory = "2Gi"\n'
_WITH_ITS_DNS = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
Json = dict[str, Any]


def why_none() -> str:
    """Return why the stack cannot be applied here; empty where it can."""
    if why := clusters.why_none():
        return why
    try:
        kubectl("get", "--request-timeout", "10s", "crd", "rayclusters.ray.io", "clusterqueues.kueue.x-k8s.io")
        subprocess.run([*_namespace(), "true"], check=True, capture_output=True, timeout=10)
    except (OSError, AssertionError, subprocess.SubprocessError) as error:
        return f"the cluster lacks an operator, or this account may not mount: {error}"
    return ""


def objects(kind: str, namespace: str, *chosen: str) -> list[Json]:
    """Return the objects of a kind in a namespace."""
    items: list[Json] = json.loads(kubectl("-n", namespace, "get", kind, "-o", "json", *chosen))["items"]
    return items


class Stack:
    """A copy of the project whose `local` overlay is on the cluster, and the secrets that were made for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.times_s: dict[str, float] = {}
        """How long what was waited for took."""

    def prepare(self) -> None:
        """Copy the project, make its search small and its secrets, and name the platform image as the cluster does."""
        copy_project(self.root)
        case = self.root / "pipelines/flight_delays/use_case.yaml"
        text = case.read_text()
        for before, after in SMALLER.items():
            assert before in text, f"{before} does not stand in {case}"
            text = text.replace(before, after)
        case.write_text(text)
        git(self.root, "init", "-q")
        git(self.root, "add", "-A")
        git(self.root, "commit", "-qm", "The project")
        teams = [word for team in TEAMS for word in ("--team", team)]
        self.command("secrets", "init", *teams)
        name, _, tag = clusters.IMAGE.rpartition(":")
        image = {"name": "shopfloor/platform", "newName": name, "newTag": tag}
        overlay = {"resources": ["../local"], "images": [image]}
        place = self.root / "manifests/overlays/test/kustomization.yaml"
        place.parent.mkdir()
        place.write_text(yaml.safe_dump(overlay))

    def command(self, *arguments: str) -> str:
        """Run the command as the platform team, which asks no service by it."""
        environment = bare_environment() | {"PYTHONPATH": f"{self.root}{os.pathsep}{self.root / 'platform'}"}
        done = subprocess.run(
            [sys.executable, "-m", "shopfloor", *arguments],
            cwd=self.root, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def apply(self, folder: str, *options: str) -> None:
        """Build a folder of `manifests/` and apply it."""
        text = kubectl("kustomize", "--load-restrictor", "LoadRestrictionsNone", str(self.root / "manifests" / folder))
        kubectl("apply", *options, "-f", "-", text=text)

    def settle_operators(self) -> None:
        """Change the operators as `manifests/operators` does, but for their requests, and start them anew."""
        configuration = self.root / "manifests/operators/kueue/kueue-manager-config-configmap.yaml"
        kubectl("apply", "--server-side", "--force-conflicts", "-f", str(configuration))
        for name in ("workflow-controller", "argo-server"):
            file = self.root / f"manifests/operators/argo-workflows/{name}-deployment.yaml"
            patch = yaml.safe_load(file.read_text())
            for container in patch["spec"]["template"]["spec"]["containers"]:
                container.pop("resources")
            kubectl("-n", "argo", "patch", "deployment", name, "--patch", json.dumps(patch))
        for kind in ("mutating", "validating"):
            name = f"kueue-{kind}-webhook-configuration"
            patch = yaml.safe_load(
                (self.root / f"manifests/operators/kueue/{name}-{kind}webhookconfiguration.yaml").read_text()
            )
            kubectl("patch", f"{kind}webhookconfiguration", name, "--type=strategic", "--patch", json.dumps(patch))
        # Two processors hold the search beside the services of two teams, and nothing more.
        requests = {"name": "manager", "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}}
        recreate = {"type": "Recreate", "rollingUpdate": None}
        patch = {"spec": {"strategy": recreate, "template": {"spec": {"containers": [requests]}}}}
        kubectl("-n", "kueue-system", "patch", "deployment", "kueue-controller-manager", "--patch", json.dumps(patch))
        for namespace, name in (
            ("kueue-system", "kueue-controller-manager"),
            ("argo", "workflow-controller"),
            ("argo", "argo-server"),
        ):
            kubectl("-n", namespace, "rollout", "restart", "deployment", name)

    def wait_for(self, what: str, namespace: str, *arguments: str) -> None:
        """Wait as `kubectl` does, and remember how long it took."""
        start_s = time.monotonic()
        command = ["kubectl", "-n", namespace, *arguments, f"--timeout={START_S}s"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.times_s[what] = time.monotonic() - start_s
        assert done.returncode == 0, f"{what}: {done.stderr}\n{kubectl('-n', namespace, 'get', 'pods', '-o', 'wide')}"

    def install(self) -> None:
        """Do what docs/how-to/install-on-a-cluster.md says, and wait until every service does its work."""
        self.apply("overlays/test", "--server-side", "--force-conflicts")
        self.apply("secrets")
        self.apply("teams/secrets")
        self.settle_operators()
        self.wait_for("postgres", SYSTEM, "rollout", "status", "statefulset/postgres")
        self.wait_for("object store", SYSTEM, "rollout", "status", "statefulset/object-store")
        self.wait_for("mlflow", SYSTEM, "rollout", "status", "deployment/mlflow")
        wait_until(self._bootstrapped, START_S, every_s=1)
        self.wait_for("kueue", "kueue-system", "rollout", "status", "deployment/kueue-controller-manager")
        for name in ("workflow-controller", "argo-server"):
            self.wait_for(name, "argo", "rollout", "status", f"deployment/{name}")
        for team in TEAMS:
            self.wait_for(f"redis of {team}", team, "rollout", "status", "statefulset/redis")
            # By its path: KubeRay says of a change that alters no pod nothing, and `condition` waits for that.
            ready = '--for=jsonpath={.status.conditions[?(@.type=="HeadPodReady")].status}=True'
            self.wait_for(f"head of {team}", team, "wait", ready, "raycluster/shopfloor-serve")

    def _bootstrapped(self) -> bool:
        """Tell whether the job has succeeded; ten minutes later it is gone."""
        jobs = objects("jobs", SYSTEM)
        return all(job.get("status", {}).get("succeeded") for job in jobs)

    def remove(self) -> None:
        """Take away what was applied, with all that it keeps, as docs/how-to/add-a-team.md says."""
        for team in TEAMS:  # KubeRay empties the team's Redis, and cannot in a namespace that is going
            kubectl("-n", team, "delete", "raycluster", "--all", "--ignore-not-found", "--timeout=100s")
        kubectl("delete", "namespace", SYSTEM, *TEAMS, "--wait=false", "--ignore-not-found")
        kubectl("delete", "clusterqueue", *TEAMS, "--wait=false", "--ignore-not-found")
        # Its archive is gone; a controller that looks for it does not start.
        patch = json.dumps({"data": {"persistence": None}})
        kubectl("-n", "argo", "patch", "configmap", "workflow-controller-configmap", "--patch", patch)
        kubectl("-n", "argo", "rollout", "restart", "deployment", "workflow-controller")


@contextlib.contextmanager
def applied(root: Path) -> Iterator[Stack]:
    """Apply the stack, and take it away at the end; that of CLUSTER_KEEP stays, and is taken up where it is there."""
    kept = os.environ.get("CLUSTER_KEEP")
    stack = Stack(Path(kept) if kept else root)
    if not (stack.root / ".secrets").exists():
        stack.prepare()
    try:
        stack.install()
        yield stack
    finally:
        if not kept:
            stack.remove()


class Member:
    """A member of a team at a machine of their own, with the team's profile and secrets and a token of few rights."""

    def __init__(self, stack: Stack, team: str) -> None:
        self.stack, self.team = stack, team
        place = stack.root / "members" / team
        place.mkdir(parents=True, exist_ok=True)
        profile = (stack.root / f"manifests/teams/{team}/profile.toml").read_text()
        assert profile.rstrip().rpartition("\n[")[2].startswith("cluster]"), "the table [cluster] stands last"
        # A thousand times the price, so that a minute on two processors costs something.
        profile = profile.replace("cpu = { cpu = 0.045 }", "cpu = { cpu = 45.0 }")
        (place / "profile.toml").write_text(profile.replace("shopfloor/platform:0.1.0", clusters.IMAGE) + HEAD)
        self.resolver = place / "resolv.conf"
        self.resolver.write_text(kubectl("-n", team, "exec", "redis-0", "--", "cat", "/etc/resolv.conf"))
        kept = stack.root / ".secrets"
        own = {variable: (kept / "teams" / team / name).read_text() for name, variable in secrets.TEAM_SECRETS.items()}
        own |= {"AWS_ACCESS_KEY_ID": team, "MLFLOW_TRACKING_USERNAME": team, "AWS_DEFAULT_REGION": "us-east-1"}
        self.environment = bare_environment("MLFLOW_", "AWS_", "ARGO_", "RAY_") | own | {
            "RAY_AUTH_MODE": "token",
            "ARGO_TOKEN": self._token(),
            "REQUESTS_CA_BUNDLE": str(kept / secrets.ARGO_CERTIFICATE),
            "SHOPFLOOR_PROFILE": str(place / "profile.toml"),
            "SHOPFLOOR_STATE_DIR": str(place / "state"),
            "PYTHONPATH": f"{stack.root}{os.pathsep}{stack.root / 'platform'}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def _token(self) -> str:
        """Return a token of an account with a member's rights: a cluster without an identity provider has no groups."""
        document = kubectl("create", "serviceaccount", "member", "-n", self.team, "--dry-run=client", "-o", "yaml")
        kubectl("apply", "-f", "-", text=document)
        account = f"--serviceaccount={self.team}:member"
        for words in (
            ("rolebinding", "member-account", "-n", self.team, "--role=member", account),
            ("clusterrolebinding", f"{self.team}-account", f"--clusterrole=shopfloor:{self.team}:queue", account),
        ):
            kubectl("apply", "-f", "-", text=kubectl("create", *words, "--dry-run=client", "-o", "yaml"))
        return kubectl("-n", self.team, "create", "token", "member", "--duration", "8h").strip()

    def run(self, *command: str, code: int = 0, timeout_s: float = RUN_S) -> str:
        """Run a command where the cluster's names are known, and return what it printed."""
        done = subprocess.run(
            [*_namespace(), "sh", "-c", _WITH_ITS_DNS, str(self.resolver), *command],
            cwd=self.stack.root, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def shopfloor(self, *arguments: str, code: int = 0) -> str:
        """Run the command and return what it printed."""
        return self.run(sys.executable, "-m", "shopfloor", *arguments, code=code)

    def answer(self, *arguments: str, code: int = 0) -> Any:
        """Run the command and return the document that it printed."""
        return json.loads(self.shopfloor(*arguments, "--json", code=code))

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        """Tell whether the cluster lets the member's account do something."""
        account = f"system:serviceaccount:{self.team}:member"
        command = ["kubectl", "auth", "can-i", verb, resource, "-n", namespace, "--as", account]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0

    def endpoint(self) -> str:
        """Return where the team's endpoint answers, by its service's address, which this machine reaches."""
        service = json.loads(kubectl("-n", self.team, "get", "service", "shopfloor-serve-serve-svc", "-o", "json"))
        return f"http://{service['spec']['clusterIP']}:8000/flight_delays"

    def bearer(self) -> dict[str, str]:
        """Return the header that holds the team's own token of its endpoints."""
        return {"Authorization": f"Bearer {self.environment['SERVE_TOKEN']}"}

    def predict(self) -> requests.Response:
        """Ask the endpoint the row that its page shows."""
        document = requests.get(f"{self.endpoint()}/openapi.json", timeout=10, headers=self.bearer())
        document.raise_for_status()
        path = next(item for name, item in document.json()["paths"].items() if name.endswith("/predict"))
        content = path["post"]["requestBody"]["content"]["application/json"]
        row = content.get("example") or next(iter(content["examples"].values()))["value"]
        return requests.post(f"{self.endpoint()}/predict", json=row, timeout=10, headers=self.bearer())

    def champion(self) -> str | None:
        """Return the version that answers, `None` where nothing does."""
        try:
            answer = self.predict()
        except requests.RequestException:
            return None
        return str(answer.json()["version"]) if answer.ok else None

    def pod_of(self, run: Json, step: str, phase: str = "Running", timeout_s: float = RUN_S) -> str:
        """Return the pod of a run's step once it is in a phase."""
        name = run["engine_run"].rpartition("/")[2]

        def found() -> str | None:
            for pod in objects("pods", self.team, "-l", f"workflows.argoproj.io/workflow={name}"):
                node = pod["metadata"]["annotations"].get("workflows.argoproj.io/node-name", "")
                if step in node and pod["status"]["phase"] == phase:
                    return str(pod["metadata"]["name"])
            return None

        pod = wait_until(found, timeout_s, every_s=1)
        assert pod is not None
        return pod


def _namespace() -> list[str]:
    """Return the command that gives what follows mounts of its own."""
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]

"""Teams' queues on a real cluster as a test uses them: a cohort, flavors and namespaces of its own, and jobs in them.

The jobs never run: their nodes do not exist. What Kueue admits and stops is the same for it, and costs nothing.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import yaml
from shopfloor.stack import team_manifests, teams

from tests.simulation.kueue import Cohort, thousandths
from tests.simulation.kueue import Job as Simulated
from tests.support.cluster import kubectl
from tests.support.project import ROOT
from tests.support.waiting import wait_until

QUIET_S = 90
Json = dict[str, Any]


def why_none() -> str:
    """Return why nothing can be tried on Kueue here; empty where it can."""
    import os

    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    try:
        kubectl("get", "--request-timeout", "10s", "crd", "clusterqueues.kueue.x-k8s.io")
    except (OSError, AssertionError) as error:
        return f"no cluster with Kueue answers: {error}"
    return ""


def fair_sharing() -> list[str]:
    """Return the strategies of fair sharing that Kueue runs with; none where it does not share fairly."""
    text = kubectl("-n", "kueue-system", "get", "configmap", "kueue-manager-config", "-o", "json")
    content = yaml.safe_load(json.loads(text)["data"]["controller_manager_config.yaml"])
    sharing = content.get("fairSharing")
    return [] if sharing is None else sharing.get("preemptionStrategies") or ["both"]


class Queues:
    """Teams with shares of GPUs, rendered as `shopfloor teams render` does, under names of their own."""

    def __init__(self, shares: dict[str, tuple[int, int]]) -> None:
        """Render teams with an own and a borrowed share of one kind of GPUs each."""
        self.prefix = f"queue-test-{secrets.token_hex(2)}"
        self.flavor, self.cohort = f"{self.prefix}-gpu", self.prefix
        listed = [
            teams.validated(
                {
                    "name": self.namespace(name),
                    "members": f"{name}-engineers",
                    "quota": {"gpu-spot": {"nominal": own, "borrowing": more}},
                    "budget": {"gpu_hours": 1},
                },
                name,
            )
            for name, (own, more) in shares.items()
        ]
        texts = team_manifests.rendered(ROOT, listed)
        chosen = ("-namespace.yaml", "-clusterqueue.yaml", "-localqueue.yaml", "-clusterrole.yaml")
        self.objects = [
            self._renamed(text, path.parts[0]) for path, text in texts.items() if path.name.endswith(chosen)
        ]
        self.queues = [one for one in self.objects if one["kind"] == "ClusterQueue"]
        self.simulated = Cohort(self.queues)
        self.jobs: dict[str, Simulated] = {}
        self._last = 0

    def namespace(self, team: str) -> str:
        """Return the namespace, and the queue, of a team."""
        return f"{self.prefix}-{team}"

    def _renamed(self, text: str, namespace: str) -> Json:
        own = text.replace("gpu-spot", self.flavor).replace("cohortName: shopfloor", f"cohortName: {self.cohort}")
        one: Json = yaml.safe_load(own.replace("- shopfloor\n", f"- {self.cohort}\n"))
        if one["kind"] == "LocalQueue":
            one["metadata"]["namespace"] = namespace
        return one

    def apply(self) -> None:
        """Make the objects, and a member of each team."""
        api = "kueue.x-k8s.io/v1beta2"
        objects: list[Json] = [
            {"apiVersion": api, "kind": "Cohort", "metadata": {"name": self.cohort}},
            {
                "apiVersion": api,
                "kind": "ResourceFlavor",
                "metadata": {"name": self.flavor},
                "spec": {"nodeLabels": {"shopfloor.io/pool": self.flavor}},
            },
        ]
        for name, value in (("low", 100), ("high", 1000)):
            priority = {
                "apiVersion": api,
                "kind": "WorkloadPriorityClass",
                "metadata": {"name": f"{self.prefix}-{name}"},
            }
            objects.append(priority | {"value": value})
        for one in self.objects:
            if one["kind"] == "Namespace":
                one["metadata"]["labels"] = {"shopfloor.io/team": one["metadata"]["name"]}
        roles = [yaml.safe_load((ROOT / "manifests/base/team/rbac/member-role.yaml").read_text())]
        rbac = "rbac.authorization.k8s.io"
        for queue in self.queues:
            namespace = queue["metadata"]["name"]
            account = {"kind": "ServiceAccount", "name": "member", "namespace": namespace}
            place = {"name": "member", "namespace": namespace}
            objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": place})
            objects += [one | {"metadata": {**one["metadata"], "namespace": namespace}} for one in roles]
            for kind, where in (("RoleBinding", {"namespace": namespace}), ("ClusterRoleBinding", {})):
                role = "member" if where else f"shopfloor:{namespace}:queue"
                objects.append(
                    {
                        "apiVersion": f"{rbac}/v1",
                        "kind": kind,
                        "metadata": {"name": role, **where},
                        "roleRef": {"apiGroup": rbac, "kind": kind.removesuffix("Binding"), "name": role},
                        "subjects": [account],
                    }
                )
        namespaces = [one for one in self.objects if one["kind"] == "Namespace"]
        rest = [one for one in self.objects if one["kind"] != "Namespace"]
        kubectl("apply", "-f", "-", text=yaml.safe_dump_all([*namespaces, *objects, *rest]))
        self._created = objects

    def remove(self) -> None:
        """Take everything away."""
        namespaces = [queue["metadata"]["name"] for queue in self.queues]
        for kind, names in (
            ("namespace", namespaces),
            ("clusterqueue", namespaces),
            ("cohort", [self.cohort]),
            ("resourceflavor", [self.flavor]),
            ("workloadpriorityclass", [f"{self.prefix}-low", f"{self.prefix}-high"]),
            ("clusterrole", [f"shopfloor:{name}:queue" for name in namespaces]),
            ("clusterrolebinding", [f"shopfloor:{name}:queue" for name in namespaces]),
        ):
            kubectl("delete", kind, *names, "--wait=false", "--ignore-not-found")

    # What happens, here and there.

    def submit(self, name: str, team: str, gpus: int, priority: str = "low") -> None:
        """Submit a job to both; its one pod set has as many pods as GPUs."""
        wait_until(lambda: int(time.time()) > self._last, 5)  # Kueue orders by whole seconds
        self._last = int(time.time())
        pod = {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "main",
                    "image": "localhost/nobody-has-this",
                    "imagePullPolicy": "Never",
                    "resources": {
                        "requests": {"cpu": "1m", "memory": "1Mi", "nvidia.com/gpu": "1"},
                        "limits": {"nvidia.com/gpu": "1"},
                    },
                }
            ],
        }
        labels = {
            "kueue.x-k8s.io/queue-name": "runs",
            "kueue.x-k8s.io/priority-class": f"{self.prefix}-{priority}",
            "shopfloor/run-id": f"run-of-{name}",
        }
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self.namespace(team), "labels": labels},
            "spec": {"suspend": True, "parallelism": gpus, "completions": gpus, "template": {"spec": pod}},
        }
        kubectl("create", "-f", "-", text=json.dumps(job))
        requests = {"cpu": thousandths("1m"), "memory": thousandths("1Mi"), "nvidia.com/gpu": 1000}
        own = Simulated(
            name, self.namespace(team), [(gpus, requests)], float(self._last), {"low": 100, "high": 1000}[priority]
        )
        self.jobs[name] = own
        self.simulated.now = own.created
        self.simulated.submit(own)
        self.simulated.settle()

    def end(self, name: str) -> None:
        """End a job that is admitted, in both."""
        job = self.jobs.pop(name)
        kubectl("-n", job.team, "delete", "job", name, "--wait=true")
        self.simulated.now = time.time()
        self.simulated.finish(job)

    def expected(self) -> set[str]:
        """Return the jobs that the simulation admits."""
        self.simulated.settle()
        return {job.name for queue in self.simulated.queues.values() for job in queue.jobs.values()}

    def workloads(self, team: str) -> list[Json]:
        """Return the Workloads of a team."""
        text = kubectl("-n", self.namespace(team), "get", "workloads.kueue.x-k8s.io", "-o", "json")
        return list(json.loads(text)["items"])

    def admitted(self) -> set[str]:
        """Return the jobs that Kueue has admitted."""
        names = set()
        for queue in self.queues:
            for one in self.workloads(queue["metadata"]["name"].removeprefix(f"{self.prefix}-")):
                held = {c["type"] for c in one.get("status", {}).get("conditions", []) if c["status"] == "True"}
                if "Admitted" in held and "Evicted" not in held:
                    names.add(one["metadata"]["ownerReferences"][0]["name"])
        return names

    def agree(self) -> set[str]:
        """Wait until Kueue has admitted what the simulation says, and return that."""
        expected = self.expected()
        found: list[set[str]] = []

        def alike() -> bool:
            found.append(self.admitted())
            return found[-1] == expected

        try:
            wait_until(alike, QUIET_S, every_s=0.5)
        except AssertionError as error:
            raise AssertionError(f"Kueue admits {sorted(found[-1])}, the simulation {sorted(expected)}") from error
        return expected


@contextlib.contextmanager
def queues(**shares: tuple[int, int]) -> Iterator[Queues]:
    """Make queues for the time of the block."""
    made = Queues(shares)
    try:
        made.apply()
        yield made
    finally:
        made.remove()

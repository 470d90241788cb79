"""A real cluster as a test uses it: a namespace of its own, and servers of this machine that its pods reach.

It takes the cluster that KUBECONFIG names, with Argo Workflows and the platform image in it:

    CLUSTER_IMAGE   the platform image as the cluster has it
    CLUSTER_HOST    address under which pods reach this machine; without it the node's own, where that is this machine's
"""

import contextlib
import json
import os
import secrets
import socket
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shopfloor.settings import ClusterSettings, Settings

from tests.support.endpoints import stop
from tests.support.project import BIN, ROOT
from tests.support.waiting import free_port, wait_for, wait_for_port, wait_until

IMAGE = os.environ.get("CLUSTER_IMAGE", "shopfloor/platform:0.1.0")
ANOTHERS_IMAGE = f"docker.io/{IMAGE}"
"""The same image under a name by which nobody takes it for the platform's."""
TEAM = ROOT / "tests/e2e/team.yaml"
ENDED = {"Succeeded", "Failed", "Error"}
RUN_S = 600
"""How long a run may take at most, on two cores and beside others."""
Json = dict[str, Any]


def kubectl(*arguments: str, text: str | None = None) -> str:
    """Ask the cluster as its administrator."""
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def why_none(kind: str = "workflows.argoproj.io") -> str:
    """Return why nothing can be tried on a cluster here; empty where it can.

    Args:
        kind: Custom resource that the cluster must have beside Argo's.
    """
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    try:
        kubectl("get", "--request-timeout", "10s", "crd", "workflows.argoproj.io", kind)
    except (OSError, AssertionError, subprocess.TimeoutExpired) as error:
        return f"no cluster with Argo Workflows and {kind} answers: {error}"
    return ""


class Cluster:
    """A team's namespace, and what its runs leave in a bucket that lies on this machine."""

    def __init__(self, place: Path, host: str, port: int, tracking_port: int) -> None:
        self.namespace = f"shopfloor-test-{secrets.token_hex(3)}"
        self.bucket = place / "store" / "workflows"
        self.store_key = {"key": "ours", "secret": secrets.token_urlsafe(24)}
        self.host = host
        self.endpoint = f"{host}:{port}"
        self.settings = Settings(
            project_root=ROOT,
            state_dir=place / "state",
            tracking_uri=f"http://{host}:{tracking_port}",
            artifact_root="s3://shopfloor/artifacts",
            s3_endpoint_url=f"http://{self.endpoint}",
            cluster=ClusterSettings(namespace=self.namespace, image=IMAGE, environment_secret="object-store"),
        )

    def create(self, manifest: Json) -> str:
        """Create a workflow and return its name."""
        return str(
            json.loads(kubectl("create", "-o", "json", "-f", "-", text=json.dumps(manifest)))["metadata"]["name"]
        )

    def workflow(self, name: str) -> Json:
        """Return a workflow as the cluster has it."""
        workflow: Json = json.loads(kubectl("-n", self.namespace, "get", "workflow", name, "-o", "json"))
        compressed = workflow.get("status", {}).get("compressedNodes")
        assert not compressed, f"{name} is too large to be read from here"
        return workflow

    def ended(self, name: str) -> Json:
        """Return a workflow once it has ended."""

        def its_end() -> Json | None:
            workflow = self.workflow(name)
            return workflow if workflow.get("status", {}).get("phase") in ENDED else None

        workflow = wait_until(its_end, RUN_S, every_s=1)
        assert workflow is not None
        return workflow

    def log(self, name: str) -> str:
        """Return the end of what the pods of a workflow printed that are still there."""
        chosen = ("--selector", f"workflows.argoproj.io/workflow={name}", "--container", "main")
        return kubectl("-n", self.namespace, "logs", *chosen, "--prefix", "--tail", "20", "--ignore-errors")

    def token(self, account: str) -> str:
        """Return a token of an account of the namespace."""
        return kubectl("-n", self.namespace, "create", "token", account, "--duration", "2h").strip()


def _host() -> str:
    """Return the address under which pods reach this machine."""
    host = os.environ.get("CLUSTER_HOST") or kubectl(
        "get", "nodes", "-o", "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}"
    )
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise AssertionError(
                f"{host} is no address of this machine: name one that pods reach in CLUSTER_HOST"
            ) from error
    return host


@contextlib.contextmanager
def team(place: Path) -> Iterator[Cluster]:
    """Make a namespace and an object store beside it, and take both away at the end."""
    cluster = Cluster(place, _host(), free_port(), free_port())
    for bucket in (cluster.bucket, cluster.bucket.with_name("shopfloor")):
        bucket.mkdir(parents=True)
    keys = ",".join(cluster.store_key.values())
    store = subprocess.Popen(
        [
            str(BIN / "rclone"),
            "serve",
            "s3",
            "--auth-key",
            keys,
            "--addr",
            cluster.endpoint,
            str(cluster.bucket.parent),
        ],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        document = string.Template(TEAM.read_text()).substitute(
            cluster.store_key, namespace=cluster.namespace, endpoint=cluster.endpoint
        )
        kubectl("apply", "-f", "-", text=document)
        yield cluster
    finally:
        kubectl("delete", "namespace", cluster.namespace, "--wait=false", "--ignore-not-found")
        stop(store)


@contextlib.contextmanager
def tracking(place: Path, cluster: Cluster) -> Iterator[None]:
    """Start an MLflow server that pods reach."""
    address = urlsplit(cluster.settings.tracking_uri)
    command = [str(BIN / "mlflow"), "server", "--host", cluster.host, "--port", str(address.port), "--workers", "1"]
    command += ["--allowed-hosts", address.netloc, "--backend-store-uri", f"sqlite:///{place}/mlflow.db"]
    command += ["--serve-artifacts", "--artifacts-destination", str(place / "mlartifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"{cluster.settings.tracking_uri}/health", server)
        yield
    finally:
        stop(server)


@contextlib.contextmanager
def argo_server() -> Iterator[int]:
    """Let Argo's server be reached as `localhost`, for which its certificate is; give the port."""
    port = free_port()
    forward = subprocess.Popen(
        ["kubectl", "-n", "argo", "port-forward", "service/argo-server", f"{port}:2746"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port)
        yield port
    finally:
        stop(forward)

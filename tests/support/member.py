"""A member of a team on a real cluster: the command `shopfloor` with a profile and a token of few rights."""

import contextlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import cluster as clusters
from tests.support.project import ROOT, bare_environment
from tests.support.waiting import wait_until

PIPELINES = "tests/e2e/cluster_pipelines.py"
PROFILE = """
default_engine = "argo"
tracking_uri = "{tracking_uri}"
artifact_root = "{artifact_root}"
s3_endpoint_url = "{s3_endpoint_url}"
[cluster]
namespace = "{namespace}"
image = "{image}"
environment_secret = "object-store"
argo_url = "https://localhost:{argo_port}"
"""


class Member:
    """A member of the team at a machine of their own."""

    def __init__(self, place: Path, cluster: clusters.Cluster, argo_port: int) -> None:
        self.cluster = cluster
        profile = place / "team.toml"
        settings = {name: getattr(cluster.settings, name) for name in ("tracking_uri", "artifact_root")}
        settings |= {"s3_endpoint_url": cluster.settings.s3_endpoint_url, "namespace": cluster.namespace}
        profile.write_text(PROFILE.format(**settings, image=clusters.IMAGE, argo_port=argo_port))
        certificate = place / "argo.pem"
        certificate.write_text(ssl.get_server_certificate(("localhost", argo_port)))
        self.environment = bare_environment("MLFLOW_", "AWS_", "ARGO_") | {
            "SHOPFLOOR_PROFILE": str(profile),
            "SHOPFLOOR_STATE_DIR": str(place / "state"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
            "ARGO_TOKEN": cluster.token("member"),
            "REQUESTS_CA_BUNDLE": str(certificate),
            "AWS_ACCESS_KEY_ID": cluster.store_key["key"],
            "AWS_SECRET_ACCESS_KEY": cluster.store_key["secret"],
        }

    def shopfloor(self, *arguments, code=0):
        """Run the command and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "shopfloor", *arguments],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=clusters.RUN_S, check=False,
        )  # fmt: skip
        problem = f"{arguments}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == code, problem
        assert done.stdout or "--json" not in arguments, problem
        return done.stdout

    def answer(self, *arguments, code=0):
        """Run the command and return the document that it printed."""
        return json.loads(self.shopfloor(*arguments, "--json", code=code))

    def submit(self, pipeline, *arguments, file=PIPELINES, code=0):
        """Submit one of our pipelines and return what the command says of it."""
        return self.answer("submit", str(file), "--function", pipeline, *arguments, code=code)

    def show(self, run):
        """Return what is known of a run."""
        return self.answer("runs", "show", run["run_id"])

    def state(self, run):
        """Return how a run stands."""
        return self.show(run)["state"]

    def pod(self, run):
        """Return the running pod of a run's step, once it has printed something."""
        name = run["engine_run"].rpartition("/")[2]
        chosen = ("-n", self.cluster.namespace, "-l", f"workflows.argoproj.io/workflow={name}")

        def printing():
            pods = clusters.kubectl("get", "pods", *chosen, "--field-selector", "status.phase=Running", "-o", "name")
            running = pods.split()
            if running and clusters.kubectl("-n", self.cluster.namespace, "logs", running[0], "-c", "main"):
                return running[0].rpartition("/")[2]
            return None

        return wait_until(printing, clusters.RUN_S, every_s=1)


@contextlib.contextmanager
def member_of_a_team(place: Path) -> Iterator[Member]:
    """Make a team with an MLflow server, and a member of it who reaches Argo's server."""
    with clusters.team(place) as cluster, clusters.tracking(place, cluster), clusters.argo_server() as port:
        yield Member(place, cluster, port)

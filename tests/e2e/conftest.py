"""One stack of docker-compose.yml, and one of `manifests/` on a cluster, for all that is tried on each."""

import json
import subprocess

import pytest

from tests.support import cluster_stack as clusters
from tests.support.compose import SUBMIT, Stack
from tests.support.project import copy_project


def pytest_collection_modifyitems(items):
    """Let what needs the stack of a cluster come last: beside it a node of two processors has no room for the rest."""
    items.sort(key=lambda item: "cluster_stack" in item.fixturenames)


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    root = tmp_path_factory.mktemp("compose") / "project"
    copy_project(root)
    use_case = root / "pipelines/flight_delays/use_case.yaml"
    use_case.write_text(use_case.read_text().replace("trials: 16", "trials: 4"))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    stack = Stack(root)
    stack.shopfloor("secrets", "init")
    try:
        stack.compose("up", "-d", "--wait")
        yield stack
    finally:
        stack.compose("--profile", "monitoring", "down", "--volumes", "--remove-orphans", "--timeout", "5")


@pytest.fixture(scope="session")
def first(stack):
    """Give the first run as `submit` told it."""
    stack.shopfloor("data", "prepare", "flight_delays")
    return json.loads(stack.shopfloor(*SUBMIT))


@pytest.fixture(scope="session")
def cluster_stack(tmp_path_factory):
    """Give the overlay `local`, applied; it goes at the end with all that it keeps."""
    with clusters.applied(tmp_path_factory.mktemp("stack") / "project") as stack:
        yield stack


@pytest.fixture(scope="session")
def flights(cluster_stack):
    return clusters.Member(cluster_stack, "flights")


@pytest.fixture(scope="session")
def vision(cluster_stack):
    return clusters.Member(cluster_stack, "vision")


@pytest.fixture(scope="session")
def trained(flights):
    """Give the first run of the stack on the cluster, which was followed to its end."""
    flights.shopfloor("data", "prepare", "flight_delays")
    flights.shopfloor(*clusters.SUBMIT, "--watch")
    return flights.answer("runs", "show", "latest")

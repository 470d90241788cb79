"""One stack of docker-compose.yml for all that is tried on it."""

import json
import subprocess

import pytest

from tests.support.compose import SUBMIT, Stack
from tests.support.project import copy_project


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

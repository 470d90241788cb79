"""One MLflow server and one Ray cluster for the tests that need an endpoint and leave the servers as they are."""

import pytest
from shopfloor.serving.deploy.rollout import undeploy

from tests.support.endpoints import MODEL, serving_cluster


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    with serving_cluster(tmp_path_factory.mktemp("servers")) as settings:
        yield settings


@pytest.fixture(scope="module")
def project(servers, tmp_path_factory):
    """Give a function that makes settings of a project with these use cases; their endpoints are removed at the end."""
    made = []

    def make(**use_cases):
        directory = tmp_path_factory.mktemp("project")
        for name, text in use_cases.items():
            case = directory / "pipelines" / name
            case.mkdir(parents=True)
            (case / "use_case.yaml").write_text(text)
            (case / "model.py").write_text(MODEL)
        settings = servers.model_copy(update={"project_root": directory})
        made.extend((settings, name) for name in use_cases)
        return settings

    yield make
    for settings, name in made:
        undeploy(settings, name)

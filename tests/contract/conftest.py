"""What several modules ask of the manifests: their objects, and Kubernetes' own judge of them."""

import functools

import pytest

from tests.support import manifests
from tests.support.manifests import OVERLAYS

KUBERNETES = "1.34"


@pytest.fixture(scope="module")
def local():
    return manifests.overlay("local")


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request):
    """Give the objects of each overlay."""
    return manifests.overlay(request.param)


@pytest.fixture(scope="module")
def secret_objects(tmp_path_factory):
    return manifests.secrets_in(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def kubernetes_schema():
    """Give Kubernetes' own judge of its objects, which reads its schemas once."""
    import kubernetes_validate
    from kubernetes_validate import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield lambda one: kubernetes_validate.validate(one, KUBERNETES, strict=True)

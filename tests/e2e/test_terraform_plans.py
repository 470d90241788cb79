"""All of terraform/ planned by Terraform itself in an account that does not exist: `make test-terraform`.

What a plan has to hold stands in terraform/tests/, a sentence a run. The provider's schema and its checks are the real
ones; what AWS would answer is made up.
"""

import pytest

from tests.support import terraform

pytestmark = pytest.mark.skipif(bool(terraform.absence(provider=False)), reason=terraform.absence(provider=False))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    copy = terraform.copy(tmp_path_factory.mktemp("terraform"))
    terraform.initialize(copy)
    return copy


@pytest.mark.parametrize("file", sorted(terraform.SOURCES.glob("tests/*.tftest.hcl")), ids=lambda file: file.name)
def test_a_plan_holds_what_its_tests_say(root, file):
    result = terraform.terraform(root, "test", "-no-color", f"-filter=tests/{file.name}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 failed" in result.stdout

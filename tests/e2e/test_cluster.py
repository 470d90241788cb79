"""Pipelines on a real cluster: Argo's own controller makes of each what `kfp.local` does, with the same outputs.

`make test-cluster KUBECONFIG=...` runs it; `tests/support/cluster.py` says what the cluster must have.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.argo import argo_runs, cluster_runs, local_runs
from tests.argo.steps import differences, outputs_of
from tests.argo.theirs import (
    FAILING,
    FAILING_ON_ARGO,
    FILES,
    NOT_RUN,
    ON_ARGO_ALONE,
    PATHS,
    SECRETS,
    read,
    theirs,
)
from tests.pipelines import CASES
from tests.support import cluster as clusters
from tests.support.project import ROOT

pytestmark = [
    pytest.mark.skipif(bool(clusters.why_none()), reason=clusters.why_none()),
    pytest.mark.timeout(4 * clusters.RUN_S),
]
AT_ONCE = 6
"""Workflows that run beside one another: Argo's pods are small, and wait more than they work."""
SEED = "import random\nrandom.seed(7)\n"
AT_ITS_OWN_TIME = {"times_of_a_run"}
"""Gives the time at which a run was made, which each engine's has at its own."""
NOT_ON_A_CLUSTER = {
    "container_io": "its program is in nobody's image",
    "container_with_concat_placeholder": "its program is in nobody's image",
    "container_with_placeholder_in_fstring": "its program is in nobody's image",
    "local_execution_pipeline_with_k8s_only_methods": "asks for a GPU",
    "local_execution_pipeline_with_retry": "counts its attempts in a file of one machine",
    "parameters_simple": "its program is in nobody's image",
    "pipeline_with_string_machine_fields_task_output": "asks for what is no resource of Kubernetes",
}


def in_our_image(ir):
    """Let every step run in the one image that the cluster has, and every step that throws dice throw the same."""
    for executor in ir["deploymentSpec"]["executors"].values():
        container = executor.get("container", {})
        if container.get("image") and not container["image"].startswith("argostub/"):
            container["image"] = clusters.ANOTHERS_IMAGE
        words = container.get("command", [])
        if words and "import random" in words[-1]:
            words[-1] = SEED + words[-1]
    return ir


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables of the steps on this machine."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with clusters.team(tmp_path_factory.mktemp("cluster")) as cluster:
        for name, values in SECRETS.items():
            literals = [f"--from-literal={key}={value}" for key, value in values.items()]
            clusters.kubectl("-n", cluster.namespace, "create", "secret", "generic", name, *literals)
        yield cluster


@pytest.fixture(scope="module")
def on_cluster(request, cluster, tmp_path_factory):
    """Give a function that tells what became of a pipeline; those that will be asked for run beside one another."""
    names = [item.callspec.params["name"] for item in request.session.items if "on_cluster" in item.fixturenames]
    place = tmp_path_factory.mktemp("arguments")

    def run(name):
        if name in CASES:
            case = CASES[name]
            return cluster_runs.run(in_our_image(case.ir), case.platforms, case.arguments, cluster)
        ir, platforms, arguments = read(name, place / name)
        return cluster_runs.run(in_our_image(ir), platforms, arguments, cluster)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = {name: pool.submit(run, name) for name in names}
        yield lambda name: runs[name].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.runs])
def test_a_pipeline_of_our_own_gives_what_kfp_means(name, on_cluster, cluster, environment, tmp_path):
    case = CASES[name]

    outcome = on_cluster(name)

    outputs = outputs_of(outcome)
    assert {key: outputs.get(key) for key in case.gives} == case.gives, outcome.logs
    assert outcome.succeeded != case.fails, outcome.logs
    here, _ = argo_runs.run(
        case.ir, case.platforms, case.arguments, cluster.settings, tmp_path / "argo", SECRETS, environment
    )
    if name not in AT_ITS_OWN_TIME:
        assert not differences(outcome, here), outcome.logs
    if case.on_local:
        assert not differences(outcome, local_runs.run(case.ir, case.arguments, tmp_path / "local", environment))


@pytest.mark.parametrize("name", ["workspace"])  # a claim of KFP's own begins without a class, for volumes without one
def test_a_pipeline_that_makes_a_volume_succeeds(name, on_cluster):
    outcome = on_cluster(name)

    assert outcome.succeeded, outcome.logs


@pytest.mark.parametrize("case", ["nested", "outputs_as_a_shell_writes_them"])
def test_a_step_runs_as_any_user_and_with_a_read_only_root(case, cluster):
    own = {"name": "main", "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 12345}}

    outcome = cluster_runs.run(in_our_image(CASES[case].ir), {}, {}, cluster, {"containers": [own]})

    outputs = outputs_of(outcome)
    assert {key: outputs.get(key) for key in CASES[case].gives} == CASES[case].gives, outcome.logs


@theirs
@pytest.mark.parametrize(
    "name",
    [file.stem for file in FILES if file.stem not in {*ON_ARGO_ALONE, *NOT_RUN, *NOT_ON_A_CLUSTER}],
)
def test_a_translated_pipeline_gives_what_kfp_gives(name, on_cluster, environment, tmp_path):
    ir, _, arguments = read(name, tmp_path / "files")

    outcome = on_cluster(name)

    local = local_runs.run(in_our_image(ir), arguments, tmp_path / "local", environment)
    assert not differences(outcome, local, PATHS.get(name, "")), outcome.logs
    assert outcome.succeeded == (name not in FAILING), outcome.logs


@theirs
@pytest.mark.parametrize("name", ON_ARGO_ALONE)
def test_a_pipeline_that_kfp_cannot_run_here_succeeds(name, on_cluster):
    outcome = on_cluster(name)

    failed = {path[-1] for path, step in outcome.steps.items() if not step.succeeded}
    assert failed == FAILING_ON_ARGO.get(name, set()), outcome.logs
    assert outcome.succeeded == (name not in FAILING_ON_ARGO), outcome.logs

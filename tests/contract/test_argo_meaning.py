"""A translated Workflow does what `kfp.local` does with the same pipeline: every step gives the same outputs.

The Workflow runs in an interpreter (`tests/argo`) with real processes for its containers; `kfp.local` runs with its
known faults put right (`tests/argo/local_runs.py`).
"""

import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from shopfloor.settings import load_settings

from tests.argo import argo_runs, local_runs
from tests.argo.pods import PROJECT
from tests.argo.steps import differences, outputs_of
from tests.argo.theirs import (
    ARGUMENTS,
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
from tests.contract.random_dags import PIPELINES, compiled
from tests.pipelines import CASES


@pytest.fixture(scope="module")
def cluster():
    return load_settings("cluster", project_root=PROJECT)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables of every step: one that throws dice throws the same in both engines, and `my_program` is there."""
    place = tmp_path_factory.mktemp("machine")
    (place / "sitecustomize.py").write_text(
        "import json, random, sys\n"
        "word = '--executor_input'\n"
        "given = sys.orig_argv[sys.orig_argv.index(word) + 1] if word in sys.orig_argv else '{\"inputs\": {}}'\n"
        "values = json.loads(given, parse_int=float)['inputs'].get('parameterValues', {})\n"
        "random.seed(json.dumps(values, sort_keys=True))\n"
    )
    program = place / "my_program"
    program.write_text(
        '#!/bin/sh\nfor last; do :; done\nmkdir -p "$(dirname "$last")"\nprintf "%s of %s" "${1%%/*}" "$#" > "$last"\n'
    )
    program.chmod(0o755)
    return {
        "PATH": os.pathsep.join([str(place), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(place), str(PROJECT), str(PROJECT / "platform")]),
    }


def both(on_argo, on_local):
    """Run two engines at the same time, each on a core of its own."""
    outcomes = {}

    def run():
        try:
            outcomes["outcome"] = on_local()
        except Exception as error:
            outcomes["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    try:
        argo = on_argo()
    finally:
        thread.join()
    if "error" in outcomes:
        raise outcomes["error"]
    return argo, outcomes["outcome"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.runs])
def test_a_pipeline_of_our_own_gives_what_kfp_means(name, cluster, environment, tmp_path):
    case = CASES[name]

    argo, _ = argo_runs.run(case.ir, case.platforms, case.arguments, cluster, tmp_path / "argo", SECRETS, environment)

    outputs = outputs_of(argo)
    assert {key: outputs.get(key) for key in case.gives} == case.gives, argo.logs
    assert argo.succeeded != case.fails
    if case.on_local:
        assert not differences(argo, local_runs.run(case.ir, case.arguments, tmp_path / "local", environment))


@theirs
def test_every_name_here_is_a_pipeline():
    names = {*ON_ARGO_ALONE, *NOT_RUN, *ARGUMENTS, *PATHS, *FAILING}

    assert names <= {file.stem for file in FILES}


@theirs
@pytest.mark.parametrize("name", [file.stem for file in FILES if file.stem not in {*ON_ARGO_ALONE, *NOT_RUN}])
def test_a_translated_pipeline_gives_what_kfp_gives(name, cluster, environment, tmp_path):
    ir, platforms, arguments = read(name, tmp_path / "argo-files")
    local_arguments = read(name, tmp_path / "local-files")[2]

    (argo, _), local = both(
        lambda: argo_runs.run(ir, platforms, arguments, cluster, tmp_path / "argo", SECRETS, environment),
        lambda: local_runs.run(ir, local_arguments, tmp_path / "local", environment),
    )

    assert not differences(argo, local, PATHS.get(name, ""))
    assert argo.succeeded == (name not in FAILING)


@theirs
@pytest.mark.parametrize("name", ON_ARGO_ALONE)
def test_a_pipeline_that_kfp_cannot_run_here_succeeds(name, cluster, environment, tmp_path):
    ir, platforms, arguments = read(name, tmp_path)

    argo, _ = argo_runs.run(ir, platforms, arguments, cluster, tmp_path / "argo", SECRETS, environment)

    assert {path[-1] for path, step in argo.steps.items() if not step.succeeded} == FAILING_ON_ARGO.get(name, set())
    assert argo.succeeded == (name not in FAILING_ON_ARGO), argo.logs


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(PIPELINES)
def test_a_random_pipeline_gives_what_kfp_gives(cluster, environment, block):
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        compiled(block, str(place / "pipeline.yaml"))
        ir = yaml.load((place / "pipeline.yaml").read_text(), yaml.CSafeLoader)
        (argo, _), local = both(
            lambda: argo_runs.run(ir, {}, {}, cluster, place / "argo", environment=environment),
            lambda: local_runs.run(ir, {}, place / "local", environment),
        )

    assert not differences(argo, local)
    assert argo.succeeded

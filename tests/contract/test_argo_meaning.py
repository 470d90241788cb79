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
from tests.argo.steps import Artifact, plain
from tests.contract.random_dags import PIPELINES, compiled
from tests.pipelines import CASES
from tests.support.project import SHARED

DIRECTORY = SHARED / "kfp-ir"
FILES = sorted(DIRECTORY.glob("*.yaml"))
theirs = pytest.mark.skipif(not FILES, reason=f"no compiled pipelines in {DIRECTORY}")

TRICKY = 'it\'s "quoted", {{inputs.x}} {{=1}} $$ $(HOME) \\n\n\té'
"""Text in which Argo, the kubelet, a shell or JSON could see more than text."""
VALUES = {
    "NUMBER_INTEGER": 1,
    "NUMBER_DOUBLE": 1.5,
    "BOOLEAN": True,
    "LIST": [1, "a", TRICKY],
    "STRUCT": {"a": [TRICKY]},
}

ON_ARGO_ALONE = {
    "create_pod_metadata_complex": "its steps check their pod's labels, which kfp.local does not have",
    "parallel_for_secret": "its steps take a secret, which kfp.local does not have",
    "pipeline_with_placeholders": "kfp.local fills no placeholder in that stands in an input",
}
FAILING_ON_ARGO = {"create_pod_metadata_complex": {"validate-no-pod-metadata"}}
"""Wants empty variables that nobody sets."""
NOT_RUN = {
    "artifacts_simple": "a container opens the address in a bucket as a file",
    "component_with_metadata_fields": "needs an artifact from outside; refused",
    "components_with_optional_artifacts": "imports from gs://; refused",
    "input_artifact": "needs an artifact from outside; refused",
    "long-running": "sleeps for five minutes",
    "notebook_component_mixed": "needs nbclient and ipykernel, which are not installed",
    "notebook_component_simple": "needs nbclient and ipykernel, which are not installed",
    "pipeline_with_artifact_upload_download": "downloads a data set",
    "pipeline_with_dynamic_importer_metadata": "imports from gs://; refused",
    "pipeline_with_google_artifact_type": "imports from gs://; refused",
    "pipeline_with_importer_and_gcpc_types": "imports from gs://; refused",
    "pipeline_with_importer_workspace": "imports into the workspace; refused",
    "pipeline_with_metadata_fields": "needs an artifact from outside; refused",
    "pipeline_with_secret_as_volume": "reads a volume at a path that is fixed in its source",
    "pipeline_with_volume": "reads a volume at a path that is fixed in its source",
    "pythonic_artifact_with_single_return": "imports from gs://; refused",
    "sequential_v2": "downloads with gsutil",
    "upload_download_compiled": "talks to an object store",
}
ARGUMENTS = {
    "pipeline_with_parallelfor_parallelism": {"loop_parameter": ["a", TRICKY, ""]},
    "take_nap_pipeline_root_compiled": {"naptime_secs": 0},
}
PATHS = {"loop_consume_upstream": "read-file", "pipeline_with_workspace": "write-to-workspace"}
"""Steps that give a path, which each engine has at its own place."""
SECRETS = {"test-secret-1": {"username": "user"}}
FAILING = {
    "fail_v2",
    "pipeline_as_exit_task",
    "pipeline_with_concat_placeholder",
    "pipeline_with_multiple_exit_handlers",
}


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


def without_installation(ir):
    """Take out of every step the part that installs packages; what they need is here."""
    for executor in ir["deploymentSpec"]["executors"].values():
        command = executor.get("container", {}).get("command", [])
        if len(command) > 2 and command[:2] == ["sh", "-c"] and "pip install" in command[2]:
            command[2] = '"$0" "$@"'
    return ir


def read(name, place):
    documents = list(yaml.load_all((DIRECTORY / f"{name}.yaml").read_text(), yaml.CSafeLoader))
    ir = without_installation(documents[0])
    plain_text = any(
        not any("{{$}}" in word for word in executor["container"].get("args", []))
        for executor in ir["deploymentSpec"]["executors"].values()
    )
    values = VALUES | {"STRING": "text" if plain_text else TRICKY}
    arguments = {
        parameter: values[definition["parameterType"]]
        for parameter, definition in ir["root"].get("inputDefinitions", {}).get("parameters", {}).items()
        if "defaultValue" not in definition and not definition.get("isOptional")
    }
    if "counter_path" in arguments:
        place.mkdir()
        arguments["counter_path"] = str(place / "counter")
    return ir, documents[1] if len(documents) > 1 else {}, arguments | ARGUMENTS.get(name, {})


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


def differences(argo, local, without=""):
    """Return what two outcomes differ in; of the step `without` only whether it succeeded is compared."""
    lines = []
    if argo.succeeded != local.succeeded:
        lines.append(f"succeeded: {argo.succeeded}, locally {local.succeeded}")
    if plain(argo.outputs) != plain(local.outputs):
        lines.append(f"the pipeline gives {argo.outputs}, locally {local.outputs}")
    for path in sorted(argo.steps.keys() | local.steps.keys()):
        one, other = argo.steps.get(path), local.steps.get(path)
        if one is None or other is None:
            lines.append(f"{'/'.join(path)} ran only {'locally' if one is None else 'on Argo'}")
        elif one.succeeded != other.succeeded:
            lines.append(f"{'/'.join(path)} succeeded: {one.succeeded}, locally {other.succeeded}")
        elif path[-1] != without and plain(one.outputs) != plain(other.outputs):
            lines.append(f"{'/'.join(path)} gives {one.outputs}, locally {other.outputs}")
    return lines


def outputs_of(outcome):
    """Return what each step gave, as the cases of our own pipelines have it."""
    return {
        f"{'/'.join(path)}.{name}": value.content if isinstance(value, Artifact) else value
        for path, step in outcome.steps.items()
        for name, value in step.outputs.items()
    }


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

"""Pipelines that the KFP project compiled, where the workplace has them: a second judge, on which no promise rests."""

import pytest
import yaml

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
    "pipeline_with_secret_as_volume": "reads a volume at a path that is fixed in its source, and wants one value in it",
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

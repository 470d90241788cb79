"""The launcher runs a component as KFP's own does, in a process that has nothing but Python."""

import ast
import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shopfloor.engines.argo import launcher

from tests.support.waiting import wait_until

ARTIFACT = {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}
SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"


def task(command, **changes):
    defaults = {
        "command": command,
        "environment": {},
        "inputs": {"parameters": {}, "artifacts": {}},
        "outputs": {"parameters": {}, "artifacts": {}},
        "cache": False,
        "platform": False,
        "key": "abc",
    }
    return defaults | changes


def environment(root, task, inputs=None):
    return {
        "PATH": os.environ["PATH"],
        "SHOPFLOOR_TASK": base64.b64encode(json.dumps(task).encode()).decode(),
        "SHOPFLOOR_ROOT": str(root),
        "SHOPFLOOR_STEP": "the-step",
        "SHOPFLOOR_WORKFLOW": "run-x7",
        "SHOPFLOOR_POD": "run-x7-pod-1",
        "SHOPFLOOR_FACT_pipeline_job_name": "run-x7",
        "SHOPFLOOR_FACT_pipeline_job_uuid": "0-1-2",
        **{f"SHOPFLOOR_PARAMETER_{name}": text for name, text in (inputs or {}).items()},
    }


def launch(root, task, inputs=None):
    # -I: neither this project nor KFP can be imported, as in an image that holds Python alone.
    return subprocess.run(
        [sys.executable, "-I", launcher.__file__],
        env=environment(root, task, inputs),
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def arguments(root, words, texts=None, fails=False, **changes):
    result = launch(root, task([sys.executable, "-c", SHOW, *words], **changes), texts)
    assert (result.returncode != 0) == fails, result.stderr
    return json.loads(result.stdout)


def test_every_placeholder_is_filled_in(tmp_path):
    words = [
        "{{$.inputs.parameters['text']}}",
        "n={{$.inputs.parameters['number']}};",
        "{{$.inputs.parameters['items']}}",
        '{"Concat": ["a-", "{{$.inputs.parameters[\'text\']}}", "-z"]}',
        '{"IfPresent": {"InputName": "text", "Then": ["--text", "{{$.inputs.parameters[\'text\']}}"], "Else": "no"}}',
        '{"IfPresent": {"InputName": "missing", "Then": "yes"}}',
        '{"IfPresent": {"InputName": "missing", "Then": "yes", "Else": "absent"}}',
        "{{$.inputs.artifacts['data'].path}}",
        "{{$.inputs.artifacts['data'].metadata['rows']}}",
        "{{$.inputs.artifacts['data'].metadata}}",
        "{{$.outputs.artifacts['model'].metadata}}",
        "{{$.outputs.artifacts['model'].uri}}/weights",
        "{{$.outputs.parameters['score'].output_file}}",
        "{{$.pipeline_job_name}} {{$.pipeline_task_name}} {{$.pipeline_job_uuid}} {{$.pipeline_task_uuid}}",
        "{{ inputs.x }} {{$.unknown}} {{=1+1}}",
    ]
    place = tmp_path / "inputs/artifacts/data"
    place.parent.mkdir(parents=True)
    place.write_text("bytes")
    envelope = {"name": "data", "type": ARTIFACT, "uri": "/elsewhere", "metadata": {"rows": 3}, "key": "k/data/pod"}

    texts = arguments(
        tmp_path,
        words,
        {"text": "it is\n'x'", "number": "3", "items": "[1, 2]", "data-artifact": json.dumps(envelope)},
        inputs={
            "parameters": {"text": "STRING", "number": "NUMBER_INTEGER", "items": "LIST"},
            "artifacts": {"data": False},
        },
        outputs={"parameters": {"score": "STRING"}, "artifacts": {"model": ARTIFACT}},
        fails=True,
    )

    assert texts == [
        "it is\n'x'",
        "n=3;",
        "[1, 2]",
        "a-it is\n'x'-z",
        "--text",
        "it is\n'x'",
        "absent",
        str(place),
        "3",
        '{"rows": 3}',
        "{}",
        f"{tmp_path}/outputs/artifacts/model/weights",
        f"{tmp_path}/outputs/parameters/score",
        "run-x7 the-step 0-1-2 run-x7-pod-1",
        "{{ inputs.x }} {{$.unknown}} {{=1+1}}",
    ]


def test_the_executor_input_has_values_of_the_declared_types(tmp_path):
    kinds = {
        "text": "STRING",
        "whole": "NUMBER_INTEGER",
        "real": "NUMBER_DOUBLE",
        "flag": "BOOLEAN",
        "items": "LIST",
        "struct": "STRUCT",
    }
    texts = {"text": "3", "whole": "3.0", "real": "2", "flag": "True", "items": "[1]", "struct": '{"a": {"b": 1}}'}

    shown = arguments(tmp_path, ["{{$}}"], texts, inputs={"parameters": kinds, "artifacts": {}})

    values = json.loads(shown[0])["inputs"]["parameterValues"]
    assert values == {"text": "3", "whole": 3, "real": 2.0, "flag": True, "items": [1], "struct": {"a": {"b": 1}}}
    assert [type(values[name]) for name in ("whole", "real")] == [int, float]


def test_an_artifact_whose_bytes_did_not_come_keeps_its_remote_address(tmp_path):
    envelope = {"name": "m", "type": ARTIFACT, "uri": "s3://b/m", "metadata": {"content_hash": "h"}, "key": "k/m/p"}
    # Argo leaves an empty directory for an optional artifact that is not there.
    (tmp_path / "inputs/artifacts/model").mkdir(parents=True)

    texts = arguments(
        tmp_path,
        ["{{$.inputs.artifacts['model'].uri}}"],
        {"model-artifact": json.dumps(envelope)},
        inputs={"parameters": {}, "artifacts": {"model": False}},
    )

    assert texts == ["s3://b/m"]


def test_a_collected_list_names_the_place_of_each_artifact(tmp_path):
    place = tmp_path / "inputs/artifacts/parts"
    place.mkdir(parents=True)
    items = []
    for pod in ("pod-b", "pod-a"):
        (place / pod).write_text(pod)
        items.append({"name": "part", "type": ARTIFACT, "uri": "/x", "metadata": {"pod": pod}, "key": f"k/part/{pod}"})
    envelope = {"prefix": "k/part", "items": [{"prefix": "k/part", "items": items[:1]}, items[1]]}

    texts = arguments(
        tmp_path,
        ["{{$.inputs.artifacts['parts']}}"],
        {"parts-artifact": json.dumps(envelope)},
        inputs={"parameters": {}, "artifacts": {"parts": True}},
    )

    assert [(item["uri"], item["metadata"]["pod"]) for item in json.loads(texts[0])] == [
        (str(place / "pod-b"), "pod-b"),
        (str(place / "pod-a"), "pod-a"),
    ]


def test_outputs_become_one_file_each_and_metadata_travels(tmp_path):
    program = """
import json, sys
made = json.loads(sys.argv[1])["outputs"]
open(made["parameters"]["flag"]["outputFile"], "w").write("True")
open(made["artifacts"]["data"]["artifacts"][0]["uri"], "w").write("bytes")
metadata = {"rows": 3, "auc": float("nan"), "all": {"loss": [float("inf")]}}
artifact = {"name": "data", "uri": made["artifacts"]["data"]["artifacts"][0]["uri"], "metadata": metadata}
json.dump({"parameterValues": {"text": "ends\\n", "whole": 3.0, "real": 2, "items": ["{{x}}"]},
           "artifacts": {"data": {"artifacts": [artifact]}}}, open(made["outputFile"], "w"))
"""
    kinds = {
        "flag": "BOOLEAN",
        "text": "STRING",
        "whole": "NUMBER_INTEGER",
        "real": "NUMBER_DOUBLE",
        "items": "LIST",
    }

    result = launch(
        tmp_path,
        task([sys.executable, "-c", program, "{{$}}"], outputs={"parameters": kinds, "artifacts": {"data": ARTIFACT}}),
    )

    assert result.returncode == 0, result.stderr
    assert "data: auc is nan, and left out." in result.stderr
    files = {file.name: file.read_text() for file in (tmp_path / "outputs/parameters").iterdir()}
    envelope = json.loads(files.pop("data-artifact"))
    # Argo takes one newline from the end.
    assert files == {
        "flag": "true",
        "text": "ends\n\n",
        "whole": "3",
        "real": "2.0",
        "items": '["{\u2060{x}}"]',
    }
    assert envelope == {
        "name": "data",
        "type": ARTIFACT,
        "uri": f"{tmp_path}/outputs/artifacts/data",
        "metadata": {"rows": 3},
        "key": "abc/data/run-x7-pod-1",
    }


def test_what_stands_at_a_path_of_its_own_choice_is_brought_where_argo_collects(tmp_path):
    program = """
import json, sys, pathlib
made = json.loads(sys.argv[1])["outputs"]
own = pathlib.Path("elsewhere"); own.mkdir(); (own / "file").write_text("bytes")
artifact = {"name": "data", "uri": "", "metadata": {}, "custom_path": str(own.resolve())}
json.dump({"artifacts": {"data": {"artifacts": [artifact]}}}, open(made["outputFile"], "w"))
"""
    result = launch(
        tmp_path,
        task([sys.executable, "-c", program, "{{$}}"], outputs={"parameters": {}, "artifacts": {"data": ARTIFACT}}),
    )

    assert result.returncode == 0, result.stderr
    assert (tmp_path / "outputs/artifacts/data/file").read_text() == "bytes"


@pytest.mark.parametrize("code", [3, 64])
def test_the_components_exit_code_is_the_steps(tmp_path, code):
    assert launch(tmp_path, task([sys.executable, "-c", f"raise SystemExit({code})"])).returncode == code


@pytest.mark.parametrize("kind", ["STRING", "LIST"])
def test_an_output_that_was_never_written_fails_the_step(tmp_path, kind):
    result = launch(tmp_path, task(["true"], outputs={"parameters": {"n": kind}, "artifacts": {}}))

    assert (result.returncode, result.stderr) == (1, "Output 'n' was not written.\n")


@pytest.mark.parametrize(
    ("kind", "text", "read"),
    [
        ("STRING", "ends \n", "ends \n\n"),
        ("BOOLEAN", " True\n", "true"),
        ("BOOLEAN", "f", "false"),
        ("NUMBER_INTEGER", "5 \n", "5"),
        ("NUMBER_DOUBLE", "5\n", "5.0"),
        ("LIST", "[1]\n", "[1]"),
        ("NUMBER_INTEGER", "5.5", None),
        ("BOOLEAN", "yes", None),
        ("STRING", None, None),
    ],
)
def test_what_the_program_of_another_image_wrote_is_read_as_kfp_reads_it(tmp_path, kind, text, read):
    file = tmp_path / "outputs/parameters/n"
    file.parent.mkdir(parents=True)
    if text is not None:
        file.write_text(text)

    result = launch(tmp_path, task([], native=True, outputs={"parameters": {"n": kind}, "artifacts": {}}))

    assert (file.read_text() if result.returncode == 0 else None) == read


def test_an_input_whose_producer_gave_nothing_is_not_there(tmp_path):
    nobody = {"name": "", "type": {}, "uri": "", "metadata": {}, "key": "none"}

    texts = arguments(
        tmp_path,
        ["{{$}}", '{"IfPresent": {"InputName": "text", "Then": "yes", "Else": "no"}}'],
        {"text": launcher.ABSENT, "data-artifact": json.dumps(nobody)},
        inputs={"parameters": {"text": "STRING"}, "artifacts": {"data": False}},
    )

    assert json.loads(texts[0])["inputs"] == {"parameterValues": {}, "artifacts": {}}
    assert texts[1] == "no"


def test_an_importer_of_what_nobody_can_read_fails_with_its_address(tmp_path):
    result = launch(
        tmp_path,
        task(
            [],
            importer={"uri": "{{$.inputs.parameters['uri']}}", "metadata": {}},
            inputs={"parameters": {"uri": "STRING"}, "artifacts": {}},
            outputs={"parameters": {}, "artifacts": {"artifact": ARTIFACT}},
        ),
        {"uri": "gs://b/k"},
    )

    assert (result.returncode, result.stderr) == (1, "The argo engine does not import gs:// artifacts: gs://b/k\n")


def test_a_wrong_output_fails_the_step_in_one_line(tmp_path):
    program = (
        "import json, sys; open(json.loads(sys.argv[1])['outputs']['parameters']['n']['outputFile'], 'w').write('x')"
    )

    result = launch(
        tmp_path,
        task([sys.executable, "-c", program, "{{$}}"], outputs={"parameters": {"n": "LIST"}, "artifacts": {}}),
    )

    assert (result.returncode, result.stderr) == (1, "Output 'n' is no LIST.\n")


def test_an_input_of_the_wrong_type_fails_the_step_in_one_line(tmp_path):
    result = launch(tmp_path, task(["true"], inputs={"parameters": {"n": "STRUCT"}, "artifacts": {}}), {"n": "{"})

    assert (result.returncode, result.stderr) == (1, "Input 'n' is no STRUCT: '{'.\n")


def test_the_component_sees_its_own_variables_and_none_of_the_launchers(tmp_path):
    program = (
        "import json, os; print(json.dumps([os.environ.get('MINE'), [n for n in os.environ if 'PARAMETER' in n]]))"
    )

    result = launch(
        tmp_path,
        task(
            [sys.executable, "-c", program],
            environment={"MINE": "{{x}} $$"},
            inputs={"parameters": {"a": "STRING"}, "artifacts": {}},
        ),
        {"a": "x"},
    )

    assert json.loads(result.stdout) == ["{{x}} $$", []]


def test_a_request_to_end_reaches_the_component(tmp_path):
    program = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
pathlib.Path("ready").touch()
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-I", launcher.__file__],
        env=environment(tmp_path, task([sys.executable, "-c", program])),
        cwd=tmp_path,
    )
    wait_until((tmp_path / "ready").exists)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=30) == 7


@pytest.mark.parametrize("platform", [False, True])
def test_a_request_to_end_reaches_a_component_behind_a_shell_which_may_clear_up(tmp_path, platform):
    program = """
import pathlib, signal, sys, time
def clear_up(*_):
    time.sleep(0.2)
    pathlib.Path("cleared").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, clear_up)
pathlib.Path("ready").touch()
time.sleep(60)
"""
    command = ["sh", "-c", 'true && "$0" "$@"', "sh", "-ec", 'true\n"$0" "$@"\ntrue', sys.executable, "-c", program]
    call = "import json, sys; from shopfloor.engines.argo import launcher; "
    call += "sys.exit(launcher.run_command(*json.load(sys.stdin)))"
    folder = tmp_path / "outputs"
    folder.mkdir()
    executor_input = {"inputs": {}, "outputs": {"outputFile": str(folder / "output.json")}}
    process = subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path, stdin=subprocess.PIPE, text=True)
    process.stdin.write(json.dumps([task(command, platform=platform), executor_input, {}]))
    process.stdin.close()
    wait_until((tmp_path / "ready").exists)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (tmp_path / "cleared").exists()


def test_an_importer_says_what_the_artifact_is(tmp_path):
    result = launch(
        tmp_path,
        task(
            [],
            importer={
                "uri": "{{$.inputs.parameters['uri']}}",
                "metadata": {"{{$.inputs.parameters['uri']}}": ["v-{{$.inputs.parameters['n']}}"], "n": 1},
            },
            inputs={"parameters": {"uri": "STRING", "n": "NUMBER_INTEGER"}, "artifacts": {}},
            outputs={"parameters": {}, "artifacts": {"artifact": ARTIFACT}},
        ),
        {"uri": "s3://b/k", "n": "2"},
    )

    assert result.returncode == 0, result.stderr
    envelope = json.loads((tmp_path / "outputs/parameters/artifact-artifact").read_text())
    assert (envelope["uri"], envelope["metadata"]) == ("s3://b/k", {"s3://b/k": ["v-2"], "n": 1})


@given(st.text(alphabet="a{}$\u2060=.\n", max_size=30))
def test_protected_text_holds_nothing_to_substitute_and_comes_back_whole(text):
    protected = launcher.protect(text)

    assert "{{" not in protected
    assert protected != launcher.ABSENT
    assert launcher.reveal(protected) == text


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=8,
    )
)
def test_a_json_value_comes_back_from_its_text(value):
    assert launcher.decode(launcher.encode(value, "STRUCT"), "STRUCT") == value


def test_whole_numbers_in_lists_and_dicts_are_integers():
    assert launcher.encode([0.0, 1.5, {"a": 2.0}], "LIST") == '[0, 1.5, {"a": 2}]'
    assert launcher.encode(1e300, "STRUCT") == "1e+300"


def test_the_file_stands_alone():
    source = Path(launcher.__file__).read_text()
    imports = {
        line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))
    }

    assert imports <= {*sys.stdlib_module_names, "__future__"}


def test_the_file_runs_in_the_pythons_that_older_images_have():
    # python:3.7 was the SDK's default image for long.
    tree = ast.parse(Path(launcher.__file__).read_text(), feature_version=(3, 7))

    newer = {"removeprefix", "removesuffix", "is_relative_to", "readlink", "with_stem", "pairwise", "batched"}
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    merged = [node for node in ast.walk(tree) if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr)]
    assert not names & newer
    assert not merged

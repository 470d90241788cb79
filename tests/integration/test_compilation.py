"""What counts as a pipeline: Python or compiled YAML, with its platform configuration; one line for what does not."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from shopfloor.engines.argo.translation import translate
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.flows import dispatch
from shopfloor.flows.submission import Submission
from shopfloor.pipeline import ir
from shopfloor.pipeline.compilation import compile_pipeline, parse_parameters, refuse_artifacts, run_key
from shopfloor.settings import load_settings

from tests.support.project import SHARED

ROOT = Path(__file__).parents[2]
IR = SHARED / "kfp-ir"
PYTHON = """
from kfp import dsl, kubernetes

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def shout(text: str, times: int) -> str:
    return text.upper() * times

@dsl.pipeline(name="shouting")
def shouting(text: str, times: int = 2, loud: bool = True, words: list = ["a"]):
    first = shout(text=text, times=times)
    second = shout(text=first.output, times=1)
    kubernetes.add_node_selector(second, "gpu", "h100")
"""


@pytest.fixture
def settings():
    return load_settings(project_root=ROOT)


@pytest.fixture
def python_file(tmp_path):
    file = tmp_path / "shouting.py"
    file.write_text(PYTHON)
    return file


def compiled_yaml(python_file):
    """Compile as a user does, with KFP's own command."""
    output = python_file.with_suffix(".yaml")
    subprocess.run(
        [Path(sys.executable).parent / "kfp", "dsl", "compile", "--py", python_file, "--output", output],
        check=True,
        capture_output=True,
    )
    return output


def test_compiled_yaml_is_the_same_pipeline_as_the_python_that_it_was_made_of(settings, python_file):
    from_python = compile_pipeline(settings, str(python_file))
    output = compiled_yaml(python_file)
    assert len(list(yaml.safe_load_all(output.read_text()))) == 2

    from_yaml = compile_pipeline(settings, str(output))

    assert from_yaml.name == "shouting"
    assert from_yaml.ir == from_python.ir
    assert from_yaml.steps == ["shout", "shout-2"]
    assert from_yaml.edges == [("shout", "shout-2")]
    selectors = from_yaml.platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-shout-2"]
    assert selectors == {"nodeSelector": {"labels": {"gpu": "h100"}}}
    assert from_yaml.platforms == from_python.platforms
    assert from_yaml.file == output.resolve()
    assert run_key(settings, from_yaml, {"text": "a"}) == run_key(settings, from_python, {"text": "a"})


SEVERAL = """
from kfp import dsl
from names_of_several import NAME

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def echo(text: str) -> str:
    return text

@dsl.pipeline(name="inner one")
def inner(text: str) -> str:
    return echo(text=text).output

@dsl.pipeline(name=NAME)
def outer(text: str = "a"):
    inner(text=text)
    inner(text="b")
"""
OTHER = """
@dsl.pipeline(name="other")
def other():
    echo(text="c")
"""


def test_of_several_pipelines_the_one_that_uses_the_others_or_is_named_is_taken(settings, tmp_path):
    file = tmp_path / "several.py"
    file.write_text(SEVERAL)
    (tmp_path / "names_of_several.py").write_text('NAME = "outer"\n')

    assert compile_pipeline(settings, str(file)).name == "outer"
    assert compile_pipeline(settings, str(file), "inner").name == "inner-one"
    assert "names_of_several" not in sys.modules
    assert str(tmp_path) not in sys.path

    file.write_text(SEVERAL + OTHER)
    with pytest.raises(UsageError, match=r"defines 2 pipelines: outer, other. Choose one with --function."):
        compile_pipeline(settings, str(file))
    with pytest.raises(NotFoundError, match="defines no pipeline 'echo'"):
        compile_pipeline(settings, str(file), "echo")
    assert compile_pipeline(settings, str(file), "other").name == "other"


GROUP = """
from typing import Dict, List
from kfp import dsl

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def say(text: str):
    print(text)

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def tell(status: dsl.PipelineTaskFinalStatus):
    print(status.state)

@dsl.pipeline(name="group")
def group(items: List[Dict[str, str]] = [{"region": "a"}]):
    with dsl.ExitHandler(exit_task=tell()):
        with dsl.ParallelFor(items) as item:
            say(text=f"{item.region}!")
"""


def test_a_loop_in_an_exit_handler_is_given_its_list_and_a_text_the_field_of_an_item(settings, tmp_path):
    (tmp_path / "group.py").write_text(GROUP)

    spec = compile_pipeline(settings, str(tmp_path / "group.py")).ir

    assert spec["root"]["dag"]["tasks"]["exit-handler-1"]["inputs"]["parameters"] == {
        "pipelinechannel--items": {"componentInputParameter": "items"}
    }
    say = spec["components"]["comp-for-loop-2"]["dag"]["tasks"]["say"]["inputs"]["parameters"]
    assert say["pipelinechannel--items-loop-item-subvar-region"] == {
        "componentInputParameter": "pipelinechannel--items-loop-item",
        "parameterExpressionSelector": 'parseJson(string_value)["region"]',
    }
    assert translate(spec, {}, {}, settings)["kind"] == "Workflow"

    (tmp_path / "group.py").write_text(GROUP.replace('f"{item.region}!"', '"each"'))
    spec = compile_pipeline(settings, str(tmp_path / "group.py")).ir
    assert translate(spec, {}, {}, settings)["kind"] == "Workflow"


LOOPS = """
from typing import Dict, List
from kfp import dsl

@dsl.component
def say(text: str):
    pass

@dsl.pipeline(name="loops")
def loops(items: List[Dict[str, str]] = [{"region": "a"}], word: str = "w"):
    with dsl.ParallelFor(items) as item:
        with dsl.If(word == "w"):
            with dsl.ParallelFor([1, 2]) as number:
                say(text=f"{item.region} {number} {word}")
"""


def test_a_text_in_a_loop_in_a_loop_is_given_the_items_of_both_also_where_kfp_hands_neither_on(settings, tmp_path):
    (tmp_path / "loops.py").write_text(LOOPS)

    compiled = compile_pipeline(settings, str(tmp_path / "loops.py"))

    assert set(compiled.parameters) == {"items", "word"}
    ir.checked(compiled.pipeline.spec)
    assert translate(compiled.ir, {}, {}, settings)["kind"] == "Workflow"


def test_a_pipeline_is_compiled_without_kfps_client_which_is_there_all_the_same():
    script = (
        "import sys; from shopfloor.settings import load_settings; from shopfloor.pipeline import compilation\n"
        f"compilation.compile_pipeline(load_settings(project_root={str(ROOT)!r}), 'pipelines/training.py')\n"
        "assert 'kubernetes' not in sys.modules\n"
        "import kfp; from kfp import Client; import kfp.client\n"
        "assert kfp.Client is Client is kfp.client.Client and not hasattr(kfp, 'other')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


@pytest.mark.skipif(not IR.is_dir(), reason="the compiled pipelines of the KFP project are not here")
def test_every_compiled_pipeline_of_the_kfp_project_is_read_with_its_platform_configuration(settings):
    files = sorted(IR.glob("*.yaml"))
    with_platform = 0

    for file in files:
        documents = list(yaml.safe_load_all(file.read_text()))
        compiled = compile_pipeline(settings, str(file))
        assert compiled.name == documents[0]["pipelineInfo"]["name"]
        assert len(compiled.steps) >= len([t for t in documents[0]["root"]["dag"]["tasks"] if t]) > 0
        assert compiled.platforms == (documents[1] if len(documents) == 2 else {})
        assert len(run_key(settings, compiled, {})) == 64
        with_platform += len(documents) == 2

    assert len(files) > 60
    assert with_platform > 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("notes.txt", "hello", "is neither Python nor YAML"),
        ("empty.yaml", "", "is not a compiled pipeline."),
        ("list.yaml", "- a\n- b\n", "is not a compiled pipeline."),
        ("broken.yaml", "a: [1, 2\nb: {", "is not YAML: "),
        (
            "flow.yaml",
            "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\n",
            "is not a compiled pipeline but a Workflow.",
        ),
        ("v1.yaml", "name: a\nimplementation: {container: {}}\n", "is not a compiled pipeline but a KFP v1 component."),
        ("odd.yaml", "root: {dag: {tusks: {}}}\npipelineInfo: {name: a}\n", 'no field named "tusks"'),
        (
            "none.yaml",
            "root: {dag: {tasks: {}}}\npipelineInfo: {name: a}\n",
            "is broken: it has no tasks.",
        ),
        (
            "lost.yaml",
            "root: {dag: {tasks: {t: {componentRef: {name: comp-x}}}}}\npipelineInfo: {name: a}\n",
            "task 't' has no component 'comp-x'",
        ),
        (
            "itself.yaml",
            "root: {dag: {tasks: {t: {componentRef: {name: x}}}}}\npipelineInfo: {name: a}\n"
            "components: {x: {dag: {tasks: {t: {componentRef: {name: x}}}}}}\n",
            "component 'x' contains itself",
        ),
        (
            "path.yaml",
            "root: {dag: {tasks: {../../t: {componentRef: {name: x}}}}}\npipelineInfo: {name: a}\n"
            "components: {x: {executorLabel: x}}\ndeploymentSpec: {executors: {x: {container: {image: a}}}}\n",
            "'../../t' is no name of a task",
        ),
        ("none.py", "x = 1\n", "defines 0 pipelines, not one."),
        ("syntax.py", "def (:\n", "cannot be loaded: SyntaxError"),
    ],
)
def test_what_is_not_a_pipeline_is_refused_in_one_line(settings, tmp_path, name, text, said):
    file = tmp_path / name
    file.write_text(text)

    with pytest.raises(UsageError) as refused:
        compile_pipeline(settings, str(file))

    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_answered_with_the_pipelines_that_are(settings):
    with pytest.raises(NotFoundError, match=r"There is no pipeline file nowhere.yaml. Known pipelines: .*training.py"):
        compile_pipeline(settings, "nowhere.yaml")


def test_parameters_take_the_types_that_the_pipeline_declares(settings, python_file):
    compiled = compile_pipeline(settings, str(python_file))

    values = parse_parameters(compiled, ["text=1", "times=3", "loud=false", 'words=["x", 1]'])

    assert values == {"text": "1", "times": 3, "loud": False, "words": ["x", 1]}
    for wrong in ("times=two", "loud=maybe", "words={}", "nobody=1", "text"):
        with pytest.raises(UsageError):
            parse_parameters(compiled, [wrong])


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_engines_without_schedules_name_the_line_for_the_crontab(settings, python_file, engine):
    submission = Submission(file=str(python_file), use_case=None, given=["text=a b"])

    with pytest.raises(UsageError) as refused:
        dispatch.start(settings, engine, submission, view=None, cron="0 3 * * *")

    assert refused.value.message == f"The {engine} engine keeps no schedule."
    assert refused.value.remedy == (
        f"Put this into your crontab: 0 3 * * * cd {ROOT} && "
        f"shopfloor submit {python_file} -p 'text=a b' --engine {engine}"
    )


def test_a_schedule_must_have_five_fields(settings, python_file):
    submission = Submission(file=str(python_file), use_case=None, given=["text=a"])
    with pytest.raises(UsageError, match="'hourly' is not a schedule"):
        dispatch.start(settings, "argo", submission, view=None, cron="hourly")


def test_an_input_artifact_is_given_by_its_address_to_the_engine_that_can_hand_it_on(tmp_path):
    compiled = compile_pipeline(load_settings(project_root=ROOT), str(write_artifact_pipeline(tmp_path)))

    arguments = parse_parameters(compiled, ["data=s3://bucket/data"])

    assert arguments == {"data": "s3://bucket/data"}
    refuse_artifacts(compiled, arguments, "argo")
    with pytest.raises(UsageError, match="The local engine takes no artifact for the pipeline's input 'data'"):
        refuse_artifacts(compiled, arguments, "local")
    with pytest.raises(UsageError, match="has no parameter 'x'. It has data"):
        parse_parameters(compiled, ["x=1"])


def write_artifact_pipeline(place):
    file = place / "artifact.py"
    file.write_text(
        "from kfp import dsl\n\n\n"
        "@dsl.component(base_image='python:3.11')\n"
        "def read(data: dsl.Input[dsl.Dataset]) -> str:\n    return data.uri\n\n\n"
        "@dsl.pipeline\ndef one(data: dsl.Input[dsl.Dataset]):\n    read(data=data)\n"
    )
    return file


def test_a_profile_may_be_a_file_of_a_teams_own(tmp_path):
    file = tmp_path / "team.toml"
    file.write_text('[cluster]\nnamespace = "team-a"\n')

    settings = load_settings(str(file), project_root=ROOT)

    assert (settings.cluster.namespace, settings.profile) == ("team-a", str(file))
    with pytest.raises(NotFoundError, match="There is no profile '.*nowhere.toml'"):
        load_settings(str(tmp_path / "nowhere.toml"), project_root=ROOT)

"""What stands in a translated Workflow of parameters, order, conditions and loops; KFP's SDK compiles here."""

import json
from typing import Optional

import pytest
from google.protobuf import json_format
from kfp import dsl
from shopfloor.engines.argo import launcher
from shopfloor.engines.argo.source import UnsupportedFeature
from shopfloor.engines.argo.translation import cron_workflow, translate
from shopfloor.engines.argo.values import from_input, selected
from shopfloor.errors import UsageError

from tests.argo.compiled import (
    ALWAYS,
    IMAGE,
    Maybe,
    cluster,
    given,
    join,
    make,
    report,
    say,
    static,
    task,
    template,
    workflow,
)


def test_source_that_looks_like_argos_tags_is_out_of_argos_sight():
    @dsl.pipeline
    def one():
        say()

    manifest = workflow(one)

    assert 'template = "{{ inputs.x }} {{workflow.name}} {{=1+1}} $$ $(HOME)"' in "".join(
        static(template(manifest, "comp-say"))["command"]
    )
    text = json.dumps(manifest)
    assert "{{ inputs.x }}" not in text
    assert "1+1" not in text


def test_text_that_looks_like_argos_tags_travels_apart():
    @dsl.pipeline
    def one(given: str = "x"):
        say(text="{{ inputs.x }} costs $$").set_display_name("first")
        say(text=given)

    manifest = workflow(one, {"given": "{{workflow.name}}"})

    assert given(manifest, "one", "say")["text"] == "{\u2060{ inputs.x }} costs $$"
    assert manifest["spec"]["arguments"]["parameters"] == [{"name": "given", "value": "{\u2060{workflow.name}}"}]


def test_parameters_come_from_constants_defaults_inputs_tasks_and_texts_around_them():
    @dsl.pipeline
    def one(name: str, count: int = 7):
        first = say(text=name, number=count)
        say(text=f"{name}: {first.output} of {count}").after(first)
        say(number=1)

    manifest = workflow(one, {"name": "é"})

    assert manifest["spec"]["arguments"]["parameters"] == [
        {"name": "count", "value": "7"},
        {"name": "name", "value": "é"},
    ]
    assert given(manifest, "one", "say") == {
        "text": "{{inputs.parameters.name}}",
        "number": "{{inputs.parameters.count}}",
        "task-name": "say",
    }
    assert given(manifest, "one", "say-2") == {
        "text": "{{inputs.parameters.name}}: {{tasks.say.outputs.parameters.Output}} of {{inputs.parameters.count}}",
        "task-name": "say-2",
    }
    assert given(manifest, "one", "say-3") == {"number": "1", "task-name": "say-3"}
    assert template(manifest, "comp-say")["inputs"]["parameters"] == [
        {"name": "number", "default": "3"},
        {"name": "text", "default": "hello"},
        {"name": "task-name"},
    ]
    assert [task(manifest, "one", name).get("depends") for name in ("say", "say-2", "say-3")] == [
        None,
        "say.Succeeded",
        None,
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "needs name"),
        ({"name": 3}, "must be STRING"),
        ({"name": "x", "count": True}, "must be NUMBER_INTEGER"),
        ({"name": "x", "other": 1}, "no parameter 'other'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, problem):
    @dsl.pipeline
    def one(name: str, count: int = 7):
        say(text=name, number=count)

    with pytest.raises(UsageError, match=problem):
        workflow(one, arguments)


def test_one_component_has_one_template_and_a_thousand_tasks_stay_small():
    @dsl.pipeline
    def many():
        before = say(text="0")
        say(text=f"{before.output}")

    ir = json_format.MessageToDict(many.pipeline_spec)
    tasks = ir["root"]["dag"]["tasks"]
    last = json.dumps(tasks["say-2"])
    tasks |= {
        f"say-{number}": json.loads(last.replace('"say-2"', f'"say-{number}"').replace('"say"', f'"say-{number - 1}"'))
        for number in range(3, 1001)
    }
    manifest = translate(ir, {}, {}, cluster())

    assert [len(item["dag"]["tasks"]) for item in manifest["spec"]["templates"] if "dag" in item] == [1000]
    assert len(manifest["spec"]["templates"]) == 2
    assert len(json.dumps(manifest)) < 500_000


def test_a_workflow_that_etcd_would_not_store_is_refused():
    @dsl.pipeline
    def large():
        for number in range(12):
            say(text=f"{number}" + "x" * 100_000)

    with pytest.raises(UsageError, match=r"1\.2 MiB, over the 1 MiB"):
        workflow(large)


def test_a_source_too_long_for_a_variable_is_refused():
    @dsl.pipeline
    def one():
        say()

    ir = json_format.MessageToDict(one.pipeline_spec)
    ir["deploymentSpec"]["executors"]["exec-say"]["container"]["command"].append("#" * 120_000)

    with pytest.raises(UnsupportedFeature, match="KiB of source"):
        translate(ir, {}, {}, cluster())


def test_retries_are_argos_own():
    @dsl.pipeline
    def one():
        say().set_retry(3, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration="60s")
        say(text="x").set_retry(2)
        say(text="y")

    manifest = workflow(one)

    used = [template(manifest, task(manifest, "one", name)["template"]) for name in ("say", "say-2", "say-3")]
    assert [item.get("retryStrategy") for item in used] == [
        {
            "limit": "3",
            "retryPolicy": "Always",
            "backoff": {"duration": "10s", "factor": "2", "maxDuration": "60s"},
        },
        {"limit": "2", "retryPolicy": "Always"},
        None,
    ]


def test_a_backoff_that_argo_cannot_keep_is_rounded_up_and_said(caplog):
    @dsl.pipeline
    def one():
        say().set_retry(3, backoff_duration="10s", backoff_factor=1.5)

    manifest = workflow(one)

    assert template(manifest, "comp-say")["retryStrategy"]["backoff"]["factor"] == "2"
    assert "the backoff factor 1.5 of task say becomes 2" in caplog.text


def test_a_retry_that_is_less_than_none_is_refused():
    @dsl.pipeline
    def one():
        say().set_retry(-5)

    with pytest.raises(UsageError, match="Task 'say' is to be tried again -5 times"):
        workflow(one)


def test_an_exit_task_is_a_hook_which_argo_runs_also_when_a_run_is_stopped():
    @dsl.pipeline
    def one():
        with dsl.ExitHandler(report()):
            say()

    manifest = workflow(one)

    dag = template(manifest, "one")["dag"]
    assert [item["name"] for item in dag["tasks"]] == ["exit-handler-1"]
    assert "target" not in dag
    hook = task(manifest, "one", "exit-handler-1")["hooks"]["exit"]
    assert hook["template"] == "comp-report"
    arguments = {item["name"]: item["value"] for item in hook["arguments"]["parameters"]}
    assert arguments["task-name"] == "report"
    status = arguments["status"]
    assert status.startswith("{{=")
    assert status.index("}}") == len(status) - 2
    assert "tasks['exit-handler-1'].status == 'Succeeded'" in status
    assert "+ workflow.name +" in status


def test_a_task_that_ignores_failures_runs_after_them():
    @dsl.pipeline
    def one():
        first = say()
        say(text=first.output, number=1).ignore_upstream_failure()

    manifest = workflow(one)

    assert task(manifest, "one", "say-2")["depends"] == ALWAYS.format("say")
    assert template(manifest, "one")["dag"]["target"] == "say say-2"
    # A name that is computed: Argo would wait for ever for an output that is not there.
    assert given(manifest, "one", "say-2")["text"] == (
        "{{=(tasks['say'].status == 'Succeeded' ? tasks['say']['out' + 'puts'].parameters['Output'] : 'hello')}}"
    )


def test_conditions_and_their_alternatives():
    @dsl.pipeline
    def one(flag: bool = True, count: int = 2) -> str:
        with dsl.If(flag == True):  # noqa: E712
            first = say(text="yes")
        with dsl.Elif(count > 1):
            second = say(text="no")
        with dsl.Else():
            third = say(text="else")
        return dsl.OneOf(first.output, second.output, third.output)

    manifest = workflow(one)

    flag = "(inputs.parameters['pipelinechannel--flag'] == 'true')"
    count = "(asFloat(inputs.parameters['pipelinechannel--count']) > 1)"
    branches = template(manifest, "comp-condition-branches-1")
    assert [item["when"] for item in branches["dag"]["tasks"]] == [
        "{{=" + flag + "}}",
        "{{=(!(" + flag + ") && " + count + ")}}",
        "{{=(!(" + flag + ") && !(" + count + "))}}",
    ]
    value = branches["outputs"]["parameters"][0]["valueFrom"]
    picked = "tasks['condition-{0}'].status == 'Succeeded' ? tasks['condition-{0}'].outputs.parameters['{1}'] : "
    names = [f"pipelinechannel--say{end}-Output" for end in ("", "-2", "-3")]
    assert value == {
        "expression": "".join("(" + picked.format(number, name) for number, name in zip((2, 3, 4), names, strict=True))
        + "'\\u2060')))",
        "default": launcher.ABSENT,
    }


def test_what_follows_a_condition_runs_where_it_was_not_met():
    @dsl.pipeline
    def one(flag: bool = True):
        with dsl.If(flag == True):  # noqa: E712
            say()
        say(text="after")

    ir = json_format.MessageToDict(one.pipeline_spec)
    ir["root"]["dag"]["tasks"]["say-2"]["dependentTasks"] = ["condition-1"]
    manifest = translate(ir, {}, {}, cluster())

    assert task(manifest, "one", "say-2")["depends"] == "(condition-1.Succeeded || condition-1.Skipped)"


def test_a_loop_has_a_limit_and_collects_values_and_artifacts():
    @dsl.pipeline
    def one(items: list = [1, 2]):  # noqa: B006
        with dsl.ParallelFor(items, parallelism=2) as item:
            made = make(number=item)
            said = say(number=item)
        join(data=dsl.Collected(made.outputs["data"]), texts=dsl.Collected(said.output))

    manifest = workflow(one)

    loop = template(manifest, "comp-for-loop-1-loop")
    assert loop["parallelism"] == 2
    assert loop["dag"]["tasks"] == [
        {
            "name": "iteration",
            "template": "comp-for-loop-1",
            "withParam": "{{inputs.parameters.pipelinechannel--items}}",
            "arguments": {
                "parameters": [
                    {"name": "pipelinechannel--items", "value": "{{inputs.parameters.pipelinechannel--items}}"},
                    {"name": "pipelinechannel--items-loop-item", "value": "{{item}}"},
                ]
            },
        }
    ]
    # Each string is JSON on its way into the list: Argo would parse one that looks like JSON.
    assert template(manifest, "comp-for-loop-1")["outputs"]["parameters"][0]["valueFrom"] == {
        "expression": "(tasks['say'].status == 'Succeeded' ? toJson(tasks['say'].outputs.parameters['Output']) : "
        "'\\u2060')",
        "default": launcher.ABSENT,
    }
    texts, data = loop["outputs"]["parameters"]
    assert (texts["valueFrom"]["default"], texts["valueFrom"]["expression"]) == (
        "[]",
        "tasks['iteration'].status == 'Succeeded' ? toJson(map(filter(fromJSON("
        "tasks['iteration'].outputs.parameters['pipelinechannel--say-Output']), "
        "!(# in ['\\u2060', '\\u0022\\u2060\\u0022'])), type(#) == 'string' ? fromJSON(#) : #)) : '[]'",
    )
    prefix, place = (
        json.loads(data["valueFrom"]["default"])["prefix"],
        "{{workflow.namespace}}/workflows/{{workflow.name}}",
    )
    artifact = template(manifest, "comp-make")["outputs"]["artifacts"][0]
    read = template(manifest, "comp-join")["inputs"]["artifacts"][0]
    assert artifact["s3"]["key"] == f"{place}/{prefix}/{{{{pod.name}}}}"
    assert read["s3"]["key"] == f"{place}/{{{{=jsonpath(inputs.parameters['data-artifact'], '$.prefix')}}}}"
    assert (artifact["archive"], read["archive"]) == ({"none": {}}, {"none": {}})


def test_a_loop_over_an_input_without_a_value_is_refused():
    @dsl.pipeline
    def one(items: Optional[list] = None):  # noqa: UP045
        with dsl.ParallelFor(items) as item:
            say(text=item)

    with pytest.raises(UsageError, match="The loop 'for-loop-1' is over an input without a value"):
        workflow(one)


def test_parts_of_an_item_are_taken_by_an_expression():
    @dsl.pipeline
    def one():
        with dsl.ParallelFor([{"a": "x"}]) as item:
            say(text=item.a)

    manifest = workflow(one)

    name = "inputs.parameters['pipelinechannel--loop-item-param-1']"
    assert given(manifest, "comp-for-loop-2", "say") == {
        "text": "{{=jsonpath(" + name + ", '$.a')}}",
        "task-name": "say",
    }
    item = from_input("item")
    assert selected(item, 'parseJson(string_value)["b c"]', "LIST", "say").text == (
        "{{=toJson(jsonpath(inputs.parameters['item'], '$[\\u0027b c\\u0027]'))}}"
    )


def test_optional_inputs_without_a_value_make_a_template_of_their_own():
    @dsl.component(base_image=IMAGE, install_kfp_package=False)
    def maybe(text: Maybe = None):
        print(text)

    @dsl.pipeline
    def inner(text: Maybe = None):
        maybe(text=text)

    @dsl.pipeline
    def one(text: Maybe = None):
        inner(text=text)
        inner(text="x")

    manifest = workflow(one)

    without, given_one = (task(manifest, "one", name) for name in ("inner", "inner-2"))
    assert without["template"] != given_one["template"]
    leaves = [template(manifest, item["template"])["dag"]["tasks"][0]["template"] for item in (without, given_one)]
    assert [static(template(manifest, name))["inputs"]["parameters"] for name in leaves] == [{}, {"text": "STRING"}]
    assert [item["name"] for item in workflow(one, {"text": "y"})["spec"]["arguments"]["parameters"]] == ["text"]


def test_caching_is_off_where_the_task_or_the_run_says_so():
    @dsl.pipeline
    def one():
        say()
        say(text="x").set_caching_options(False)

    def cached(manifest):
        names = [task(manifest, "one", name)["template"] for name in ("say", "say-2")]
        return [static(template(manifest, name))["cache"] for name in names]

    assert cached(workflow(one)) == [True, False]
    assert cached(workflow(one, use_cache=False)) == [False, False]


def test_a_schedule_runs_the_same_spec():
    @dsl.pipeline
    def one():
        say()

    manifest = workflow(one)
    scheduled = cron_workflow(manifest, "0 3 * * *")

    assert scheduled["spec"]["schedules"] == ["0 3 * * *"]
    assert scheduled["spec"]["workflowSpec"] == manifest["spec"]
    assert (scheduled["kind"], scheduled["metadata"]["name"]) == ("CronWorkflow", "one")
    assert manifest["metadata"]["generateName"] == "one-"


@pytest.mark.parametrize("address", ["gs://bucket/data", "oci://registry/model:1"])
def test_an_importer_of_what_nobody_can_read_is_refused_also_where_a_parameter_names_it(address):
    @dsl.pipeline
    def inner(uri: str):
        dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset)

    @dsl.pipeline
    def one(uri: str = address):
        inner(uri=uri)

    with pytest.raises(UnsupportedFeature, match=f"Task 'importer' uses an importer of {address.partition(':')[0]}://"):
        workflow(one)
    assert workflow(one, {"uri": "s3://bucket/data"})


def test_a_pipeline_without_parameters_says_so():
    @dsl.pipeline
    def one():
        say()

    with pytest.raises(UsageError, match="has no parameter 'x'. It has no parameters"):
        workflow(one, {"x": 1})

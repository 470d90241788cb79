"""What stands in a translated Workflow, feature by feature, for pipelines that KFP's SDK compiles here."""

import base64
import json
import re
from typing import Optional

import pytest
from google.protobuf import json_format
from kfp import dsl, kubernetes
from shopfloor.engines.argo import launcher
from shopfloor.engines.argo.source import UnsupportedFeature
from shopfloor.engines.argo.translation import cron_workflow, translate
from shopfloor.engines.argo.values import ROOT, from_input, selected
from shopfloor.errors import UsageError
from shopfloor.settings import ClusterSettings, Settings

from tests.pipelines import CASES

IMAGE = "shopfloor/platform:0.1.0"
Maybe = Optional[str]  # noqa: UP045  KFP reads no other form
ALWAYS = "({0}.Succeeded || {0}.Failed || {0}.Errored || {0}.Skipped || {0}.Omitted)"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def say(text: str = "hello", number: int = 3) -> str:
    template = "{{ inputs.x }} {{workflow.name}} {{=1+1}} $$ $(HOME)"
    return text + template


@dsl.component(base_image="python:3.11")
def elsewhere(text: str) -> str:
    return text


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def make(number: int, data: dsl.Output[dsl.Dataset]):
    data.metadata["number"] = number


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def join(data: list[dsl.Dataset], texts: list[str] = []) -> str:  # noqa: B006
    return str(len(data))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(status: dsl.PipelineTaskFinalStatus):
    print(status.state)


@dsl.container_component
def shell(text: str, data: dsl.Output[dsl.Dataset], code: dsl.OutputPath(str), more: Maybe = None):
    return dsl.ContainerSpec(
        image="alpine:3",
        command=["sh", "-c", 'echo "$0" $$ > "$1"'],
        args=[
            dsl.ConcatPlaceholder(["<", text, ">"]),
            data.path,
            code,
            dsl.IfPresentPlaceholder(input_name="more", then=["--more", more], else_=["--less"]),
            f"prefix-{text}",
        ],
    )


def cluster(**changes):
    return Settings(project_root="/project", artifact_root="s3://bucket/artifacts", cluster=ClusterSettings(**changes))


def workflow(pipeline, arguments=None, settings=None, **more):
    platform = json_format.MessageToDict(pipeline.platform_spec)
    return translate(
        json_format.MessageToDict(pipeline.pipeline_spec), platform, arguments or {}, settings or cluster(), **more
    )


def template(manifest, name):
    return next(item for item in manifest["spec"]["templates"] if item["name"] == name)


def task(manifest, dag, name):
    return next(item for item in template(manifest, dag)["dag"]["tasks"] if item["name"] == name)


def given(manifest, dag, name):
    return {item["name"]: item["value"] for item in task(manifest, dag, name)["arguments"]["parameters"]}


def output(manifest, name):
    return template(manifest, name)["outputs"]["parameters"][0]["valueFrom"]


def static(item):
    text = next(entry["value"] for entry in item["container"]["env"] if entry["name"] == "SHOPFLOOR_TASK")
    return json.loads(base64.b64decode(text))


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
    prefix = json.loads(data["valueFrom"]["default"])["prefix"]
    written = template(manifest, "comp-make")["outputs"]["artifacts"][0]
    read = template(manifest, "comp-join")["inputs"]["artifacts"][0]
    assert written["s3"]["key"] == f"{{{{workflow.name}}}}/{prefix}/{{{{pod.name}}}}"
    assert read["s3"]["key"] == "{{workflow.name}}/{{=jsonpath(inputs.parameters['data-artifact'], '$.prefix')}}"
    assert (written["archive"], read["archive"]) == ({"none": {}}, {"none": {}})


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


def test_an_image_without_python_runs_by_argos_own_means():
    @dsl.pipeline
    def one(more: str = "m"):
        shell(text="x")
        shell(text="y", more=more)

    manifest = workflow(one)

    first, second = (template(manifest, task(manifest, "one", name)["template"]) for name in ("shell", "shell-2"))
    root = f"{ROOT}/outputs"
    main, reader = first["containerSet"]["containers"]
    text = "{{=replace(inputs.parameters['text'], '$', '$$')}}"
    assert main["command"] == ["sh", "-c", 'echo "$$0" $$$$ > "$$1"']
    assert main["args"] == [
        f"<{text}>",
        f"{root}/artifacts/data",
        f"{root}/parameters/code",
        "--less",
        f"prefix-{text}",
    ]
    assert second["containerSet"]["containers"][0]["args"][3:5] == ["--more", text.replace("text", "more")]
    assert (reader["dependencies"], reader["image"], reader["command"][0]) == (["main"], IMAGE, "python3")
    # As the pod's own user: the volume's root belongs to root.
    assert [item["command"][2] for item in first["initContainers"]] == ['umask 0 && mkdir -p "$@"']
    # No default: what was never written is missed.
    assert first["outputs"]["parameters"][0] == {"name": "code", "valueFrom": {"path": f"{root}/parameters/code"}}


def test_text_that_an_image_without_python_could_not_get_whole_is_refused():
    @dsl.pipeline
    def one():
        shell(text="{{ x }}")

    with pytest.raises(UnsupportedFeature, match="in the input 'text' of an image without Python"):
        workflow(one)


def test_a_command_in_which_argo_would_substitute_is_refused():
    @dsl.container_component
    def templated():
        return dsl.ContainerSpec(image="alpine:3", command=["echo", "{{ inputs.x }}"])

    @dsl.pipeline
    def one():
        templated()

    with pytest.raises(UnsupportedFeature, match="Task 'templated' uses '{{' in the command"):
        workflow(one)


def test_the_platform_image_runs_the_launcher_itself_and_others_get_a_copy():
    @dsl.pipeline
    def one():
        say()
        elsewhere(text="x")

    manifest = workflow(one, run_id="0123")

    ours, other = template(manifest, "comp-say"), template(manifest, "comp-elsewhere")
    assert ours["container"]["command"] == ["python3", "-m", "shopfloor.engines.argo.launcher"]
    assert other["container"]["command"] == ["python3", "/shopfloor/launcher.py"]
    assert [item["name"] for item in other["initContainers"]] == ["launcher"]
    assert "initContainers" not in ours
    env = {item["name"]: item["value"] for item in ours["container"]["env"]}
    assert env["SHOPFLOOR_RUN_ID"] == "0123"
    assert env["SHOPFLOOR_ARTIFACT_ROOT"] == "s3://bucket/artifacts"
    assert "SHOPFLOOR_PROJECT_ROOT" not in env
    assert not any(item["name"].startswith("SHOPFLOOR_ARTIFACT") for item in other["container"]["env"])


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


def test_the_profile_says_how_pods_run(tmp_path):
    @dsl.pipeline
    def one():
        say()
        elsewhere(text="x")

    settings = cluster(
        namespace="team-a",
        queue="team-a-queue",
        priority_class="prod",
        environment_secret="object-store",
        token_file=tmp_path / "token",
        parallelism=4,
    )
    manifest = workflow(one, settings=settings, run_id="0123")

    spec = manifest["spec"]
    assert manifest["metadata"]["namespace"] == "team-a"
    assert manifest["metadata"]["generateName"] == "one-"
    assert manifest["metadata"]["labels"]["shopfloor/run-id"] == "0123"
    assert spec["podMetadata"]["labels"] == manifest["metadata"]["labels"] | {
        "kueue.x-k8s.io/queue-name": "team-a-queue",
        "kueue.x-k8s.io/priority-class": "prod",
    }
    assert (spec["serviceAccountName"], spec["parallelism"]) == ("shopfloor-run", 4)
    assert spec["ttlStrategy"] == {"secondsAfterSuccess": 86_400, "secondsAfterFailure": 604_800}
    assert spec["securityContext"]["runAsNonRoot"] is True
    for item in spec["templates"]:
        if "container" in item:
            # Kueue preempts a pod by deleting it.
            assert item["retryStrategy"] == {"limit": "3", "retryPolicy": "OnError"}
            assert item["container"]["envFrom"] == [{"secretRef": {"name": "object-store"}}]
            for container in (item["container"], *item.get("initContainers", [])):
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "token" not in json.dumps(spec).replace('"token_file\\": null', "").replace("token_file", "")


def test_without_a_queue_there_is_no_label_of_kueue():
    @dsl.pipeline
    def one():
        say()

    manifest = workflow(one)

    assert "kueue" not in json.dumps(manifest["spec"]["podMetadata"])
    assert "retryStrategy" not in template(manifest, "comp-say")


def test_resources_and_kubernetes_settings_reach_the_pod():
    @dsl.pipeline
    def one(secret: str):
        step = say().set_cpu_limit("2").set_memory_request("1Gi").set_accelerator_type("nvidia.com/gpu")
        step.set_accelerator_limit(1).set_env_variable("MINE", "x")
        kubernetes.use_secret_as_env(step, secret_name="fixed", secret_key_to_env={"key": "KEY"})
        kubernetes.use_secret_as_volume(step, secret_name=secret, mount_path="/secret")
        kubernetes.use_config_map_as_volume(step, config_map_name="map", mount_path="/map")
        kubernetes.mount_pvc(step, pvc_name="claim", mount_path="/claim")
        kubernetes.add_node_selector(step, "pool", "gpu")
        kubernetes.add_toleration(step, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
        kubernetes.add_pod_label(step, "kueue.x-k8s.io/queue-name", "other")
        kubernetes.set_timeout(step, 60)
        kubernetes.set_image_pull_policy(step, "Always")
        kubernetes.set_image_pull_secrets(step, ["pull"])
        kubernetes.use_field_path_as_env(step, "NODE", "spec.nodeName")
        kubernetes.add_node_affinity(step, match_expressions=[{"key": "z", "operator": "In", "values": ["a"]}])
        kubernetes.empty_dir_mount(step, volume_name="scratch", mount_path="/scratch", size_limit="1Gi")
        kubernetes.set_security_context(step, run_as_user=7)

    manifest = workflow(one, {"secret": "s"})

    made = template(manifest, "comp-say")
    container = made["container"]
    assert container["resources"] == {"limits": {"cpu": "2", "nvidia.com/gpu": "1"}, "requests": {"memory": "1Gi"}}
    assert static(made)["environment"] == {"MINE": "x"}
    assert container["env"][-2:] == [
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "fixed", "key": "key", "optional": False}}},
    ]
    volumes = {item["name"]: item for item in made["volumes"]}
    mounted = {item["mountPath"]: volumes[item["name"]] for item in container["volumeMounts"]}
    assert mounted["/claim"]["persistentVolumeClaim"] == {"claimName": "claim"}
    assert mounted["/map"]["configMap"]["name"] == "map"
    assert mounted["/scratch"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert mounted["/secret"]["secret"]["secretName"] == "{{inputs.parameters.kubernetes-0}}"
    assert given(manifest, "one", "say")["kubernetes-0"] == "{{inputs.parameters.secret}}"
    assert made["nodeSelector"] == {"pool": "gpu"}
    assert made["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert made["metadata"] == {"labels": {"kueue.x-k8s.io/queue-name": "other"}}
    assert (made["activeDeadlineSeconds"], container["imagePullPolicy"]) == ("60", "Always")
    assert manifest["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert container["securityContext"]["runAsUser"] == 7
    terms = made["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [{"key": "z", "operator": "In", "values": ["a"]}]}]


def test_resources_that_come_from_the_pipeline_are_patched_into_the_pod():
    @dsl.pipeline
    def one(cpu: str = "2"):
        say().set_cpu_limit(cpu)

    manifest = workflow(one)

    name = "pipelinechannel--cpu"
    assert json.loads(template(manifest, "comp-say")["podSpecPatch"]) == {
        "containers": [{"name": "main", "resources": {"limits": {"cpu": f"{{{{inputs.parameters.{name}}}}}"}}}]
    }
    assert given(manifest, "one", "say")[name] == "{{inputs.parameters.cpu}}"


def test_volume_claims_are_made_and_deleted_by_argo():
    @dsl.pipeline
    def one():
        claim = kubernetes.CreatePVC(
            pvc_name_suffix="-x", access_modes=["ReadWriteOnce"], size="5Gi", storage_class_name="fast"
        )
        step = say()
        kubernetes.mount_pvc(step, pvc_name=claim.outputs["name"], mount_path="/data")
        kubernetes.DeletePVC(pvc_name=claim.outputs["name"]).after(step)

    manifest = workflow(one)

    resource = template(manifest, "comp-createpvc")["resource"]
    filled = resource["manifest"]
    for tag, value in (
        ("{{=toJson(pod.name + inputs.parameters['pvc_name_suffix'])}}", '"run-x"'),
        ("{{inputs.parameters.access_modes}}", given(manifest, "one", "createpvc")["access_modes"]),
        ("{{=toJson(inputs.parameters['size'])}}", '"5Gi"'),
        ("{{=toJson(inputs.parameters['storage_class_name'])}}", '"fast"'),
    ):
        assert tag in filled
        filled = filled.replace(tag, value)
    assert json.loads(filled) == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "run-x"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "5Gi"}},
            "storageClassName": "fast",
        },
    }
    assert given(manifest, "one", "say")["kubernetes-0"] == "{{tasks.createpvc.outputs.parameters.name}}"
    assert template(manifest, "comp-deletepvc")["resource"]["action"] == "delete"


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        (
            lambda ir: ir["deploymentSpec"]["executors"].update({"exec-say": {"customJob": {"customJob": {}}}}),
            "a custom job",
        ),
        (lambda ir: ir["deploymentSpec"]["executors"].update({"exec-say": {"resolver": {}}}), "a resolver"),
        (
            lambda ir: ir["root"]["dag"]["tasks"]["say"].update(triggerPolicy={"condition": "size('a') == 1"}),
            "the condition",
        ),
        (
            lambda ir: ir["deploymentSpec"]["executors"]["exec-say"]["container"].update(
                resources={"accelerator": {"resourceType": "NVIDIA_TESLA_K80", "resourceCount": "1"}}
            ),
            "the accelerator 'NVIDIA_TESLA_K80'",
        ),
    ],
)
def test_what_is_not_translated_is_refused_by_name(change, feature):
    @dsl.pipeline
    def one():
        say()

    ir = json_format.MessageToDict(one.pipeline_spec)
    change(ir)

    with pytest.raises(UnsupportedFeature, match=f"Task 'say' uses {feature}"):
        translate(ir, {}, {}, cluster())


def test_settings_that_nobody_knows_are_refused_by_name():
    @dsl.pipeline
    def one():
        say()

    ir = json_format.MessageToDict(one.pipeline_spec)

    def platform(executor):
        return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-say": executor}}}}}

    with pytest.raises(UnsupportedFeature, match="Task 'say' uses the platform setting 'hostNetwork'"):
        translate(ir, platform({"hostNetwork": True}), {}, cluster())
    with pytest.raises(UnsupportedFeature, match="Task 'say' uses the platform setting 'privileged'"):
        translate(ir, platform({"securityContext": {"privileged": True}}), {}, cluster())
    with pytest.raises(UnsupportedFeature, match="the platform 'vertex'"):
        translate(ir, {"platforms": {"vertex": {}}}, {}, cluster())


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


def test_an_image_and_settings_that_are_json_come_from_the_pipeline():
    case = CASES["settings_from_parameters"]

    manifest = translate(case.ir, case.platforms, {}, cluster())

    made = template(manifest, "comp-say")
    assert made["container"]["image"] == "{{inputs.parameters.pipelinechannel--image}}"
    assert given(manifest, "settings-from-parameters", "say")["pipelinechannel--image"] == "{{inputs.parameters.image}}"
    # What a tag stands for is JSON: without quotes around it.
    assert '"nodeSelector": {{inputs.parameters.kubernetes-' in made["podSpecPatch"]
    assert '"tolerations": {{=toJson(filter(concat(fromJSON(' in made["podSpecPatch"]
    assert '"imagePullSecrets": [{"name": "{{inputs.parameters.kubernetes-' in made["podSpecPatch"]
    # The secret is optional, and its name has no value.
    assert "V" not in {item["name"] for item in made["container"]["env"]}


def test_a_setting_that_is_not_optional_and_has_no_value_is_refused_with_its_parameter():
    @dsl.pipeline
    def one(secret: Maybe = None):
        kubernetes.use_secret_as_volume(say(), secret_name=secret, mount_path="/secret")

    with pytest.raises(
        UsageError, match=r"Task 'say' takes its secretAsVolume from the parameter 'secret', which has no"
    ):
        workflow(one)


def test_an_amount_that_is_none_is_refused():
    @dsl.pipeline
    def one():
        say()

    ir = json_format.MessageToDict(one.pipeline_spec)
    ir["deploymentSpec"]["executors"]["exec-say"]["container"]["resources"] = {"resourceCpuLimit": "lots"}

    with pytest.raises(UsageError, match="Task 'say' asks for 'lots' of cpu, which is no amount"):
        translate(ir, {}, {}, cluster())


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


def test_a_pipelines_own_times_to_live_are_kept():
    @dsl.pipeline
    def one():
        say()

    ir = json_format.MessageToDict(one.pipeline_spec)

    def lifetime(**config):
        return translate(ir, {"platforms": {"kubernetes": {"pipelineConfig": config}}}, {}, cluster())["spec"][
            "ttlStrategy"
        ]

    assert lifetime(resourceTtlOnCompletion=300, resourceTtlOnSuccess=600) == {
        "secondsAfterCompletion": 300,
        "secondsAfterSuccess": 600,
    }
    assert lifetime(resourceTtlOnFailure=60) == {"secondsAfterSuccess": 86_400, "secondsAfterFailure": 60}


def test_argos_own_executor_sees_that_a_task_is_to_pause():
    @dsl.pipeline
    def one():
        say().set_env_variable("ARGO_DEBUG_PAUSE_AFTER", "true").set_env_variable("MINE", "x")

    env = {item["name"]: item.get("value") for item in template(workflow(one), "comp-say")["container"]["env"]}

    assert env["ARGO_DEBUG_PAUSE_AFTER"] == "true"
    assert "MINE" not in env


def test_a_pipeline_without_parameters_says_so():
    @dsl.pipeline
    def one():
        say()

    with pytest.raises(UsageError, match="has no parameter 'x'. It has no parameters"):
        workflow(one, {"x": 1})


def test_nothing_that_a_pod_is_told_is_expanded_by_the_kubelet():
    manifest = workflow(CASES["arguments_of_a_container"].pipeline)

    def texts(value):
        if isinstance(value, dict):
            for item in value.values():
                yield from texts(item)
        elif isinstance(value, list):
            for item in value:
                yield from texts(item)
        elif isinstance(value, str):
            yield value

    for item in manifest["spec"]["templates"]:
        for container in (*item.get("containerSet", {}).get("containers", []), *filter(None, [item.get("container")])):
            for text in texts({key: container.get(key) for key in ("command", "args", "env")}):
                assert not re.search(r"(?<!\$)(\$\$)*\$\(", text), text

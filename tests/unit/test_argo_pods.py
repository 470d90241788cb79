"""What stands in a translated Workflow of its pods: images, resources, settings for Kubernetes, and what is refused."""

import json
import re

import pytest
from google.protobuf import json_format
from kfp import dsl, kubernetes
from shopfloor.engines.argo.containers import TMP_MOUNT
from shopfloor.engines.argo.source import UnsupportedFeature
from shopfloor.engines.argo.translation import translate
from shopfloor.engines.argo.values import ROOT
from shopfloor.errors import UsageError

from tests.argo.compiled import IMAGE, Maybe, cluster, elsewhere, given, say, shell, static, task, template, workflow
from tests.pipelines import CASES

TEMPORARY = TMP_MOUNT["mountPath"]


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
    assert ours["container"]["securityContext"]["readOnlyRootFilesystem"]
    assert [mount["mountPath"] for mount in ours["container"]["volumeMounts"]] == ["/app/.dvc/tmp", TEMPORARY, ROOT]
    assert other["initContainers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert "readOnlyRootFilesystem" not in other["container"]["securityContext"]
    assert any(item["name"] == "TMPDIR" and ROOT in item["value"] for item in other["container"]["env"])
    env = {item["name"]: item.get("value") for item in ours["container"]["env"]}
    assert env["SHOPFLOOR_RUN_ID"] == "0123"
    assert env["SHOPFLOOR_ARTIFACT_ROOT"] == "s3://bucket/artifacts"
    assert "SHOPFLOOR_PROJECT_ROOT" not in env
    assert not any(item["name"].startswith("SHOPFLOOR_ARTIFACT") for item in other["container"]["env"])


def test_a_task_that_mounts_a_directory_for_temporary_files_keeps_its_own():
    @dsl.pipeline
    def one():
        kubernetes.empty_dir_mount(say(), volume_name="large", mount_path=TEMPORARY, size_limit="9Gi")

    mounts = template(workflow(one), "comp-say")["container"]["volumeMounts"]
    assert [mount["name"] for mount in mounts if mount["mountPath"] == TEMPORARY] == ["large"]


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
        limits=("runs", "one", "another"),
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
    semaphores = [one["configMapKeyRef"] for one in spec["synchronization"]["semaphores"]]
    assert semaphores == [{"name": "limits", "key": "runs"}, {"name": "limits", "key": "one"}]
    assert "synchronization" not in workflow(one)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    for item in spec["templates"]:
        if "container" in item:
            # Kueue preempts a pod by deleting it.
            assert item["retryStrategy"]["limit"] == "3"
            assert "lastRetry.exitCode == '143'" in item["retryStrategy"]["expression"]
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

    pod = template(manifest, "comp-say")
    container = pod["container"]
    assert container["resources"] == {"limits": {"cpu": "2", "nvidia.com/gpu": "1"}, "requests": {"memory": "1Gi"}}
    assert static(pod)["environment"] == {"MINE": "x"}
    assert container["env"][-2:] == [
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "fixed", "key": "key", "optional": False}}},
    ]
    volumes = {item["name"]: item for item in pod["volumes"]}
    mounted = {item["mountPath"]: volumes[item["name"]] for item in container["volumeMounts"]}
    assert mounted["/claim"]["persistentVolumeClaim"] == {"claimName": "claim"}
    assert mounted["/map"]["configMap"]["name"] == "map"
    assert mounted["/scratch"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert mounted["/secret"]["secret"]["secretName"] == "{{inputs.parameters.kubernetes-0}}"
    assert given(manifest, "one", "say")["kubernetes-0"] == "{{inputs.parameters.secret}}"
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["metadata"] == {"labels": {"kueue.x-k8s.io/queue-name": "other"}}
    assert (pod["activeDeadlineSeconds"], container["imagePullPolicy"]) == ("60", "Always")
    assert manifest["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert container["securityContext"]["runAsUser"] == 7
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [{"key": "z", "operator": "In", "values": ["a"]}]}]


def test_what_protobuf_keeps_in_no_order_is_written_in_that_of_the_names():
    @dsl.pipeline
    def one():
        step = say()
        for name in "hgfedcba":
            kubernetes.add_pod_label(step, name, "x")

    assert list(template(workflow(one), "comp-say")["metadata"]["labels"]) == [*"abcdefgh"]


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


def test_an_image_and_settings_that_are_json_come_from_the_pipeline():
    case = CASES["settings_from_parameters"]

    manifest = translate(case.ir, case.platforms, {}, cluster())

    pod = template(manifest, "comp-say")
    assert pod["container"]["image"] == "{{inputs.parameters.pipelinechannel--image}}"
    assert given(manifest, "settings-from-parameters", "say")["pipelinechannel--image"] == "{{inputs.parameters.image}}"
    # What a tag stands for is JSON: without quotes around it.
    assert '"nodeSelector": {{inputs.parameters.kubernetes-' in pod["podSpecPatch"]
    assert '"tolerations": {{=toJson(filter(concat(fromJSON(' in pod["podSpecPatch"]
    assert '"imagePullSecrets": [{"name": "{{inputs.parameters.kubernetes-' in pod["podSpecPatch"]
    # The secret is optional, and its name has no value.
    assert "V" not in {item["name"] for item in pod["container"]["env"]}


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

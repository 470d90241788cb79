"""What a task asks of its pod, also where that comes from the pipeline's parameters."""

from typing import Optional

from kfp import dsl, kubernetes

from tests.pipelines.case import Case
from tests.pipelines.parts import say


@dsl.pipeline(name="settings-of-pods")
def settings_of_pods(secret: str = "s"):  # noqa: S107  a secret's name
    step = say().set_cpu_limit("2").set_memory_request("1Gi").set_accelerator_type("nvidia.com/gpu")
    step.set_accelerator_limit(1).set_env_variable("MINE", "$(x) {{ y }}")
    kubernetes.use_secret_as_env(step, secret_name="fixed", secret_key_to_env={"key": "KEY"})
    kubernetes.use_secret_as_volume(step, secret_name=secret, mount_path="/secret")
    kubernetes.use_config_map_as_volume(step, config_map_name="map", mount_path="/map")
    kubernetes.mount_pvc(step, pvc_name="claim", mount_path="/claim")
    kubernetes.add_node_selector(step, "pool", "gpu")
    kubernetes.add_toleration(step, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    kubernetes.add_pod_label(step, "team", "a")
    kubernetes.set_timeout(step, 60)
    kubernetes.set_image_pull_policy(step, "Always")
    kubernetes.set_image_pull_secrets(step, ["pull"])
    kubernetes.use_field_path_as_env(step, "NODE", "spec.nodeName")
    kubernetes.add_node_affinity(step, match_expressions=[{"key": "z", "operator": "In", "values": ["a"]}])
    kubernetes.empty_dir_mount(step, volume_name="scratch", mount_path="/scratch", size_limit="1Gi")
    kubernetes.set_security_context(step, run_as_user=7)


@dsl.pipeline(name="settings-from-parameters")
def settings_from_parameters(
    image: str = "python:3.11",
    cpu: str = "500m",
    labels: dict = {"disk": "ssd"},  # noqa: B006
    tolerations: list = [{"key": "a", "operator": "Exists"}],  # noqa: B006
    affinity: dict = {},  # noqa: B006
    pull: str = "pull",
    secret: Optional[str] = None,  # noqa: UP045
):
    step = say().set_container_image(image).set_cpu_limit(cpu)
    kubernetes.add_node_selector_json(step, labels)
    kubernetes.add_toleration_json(step, tolerations)
    kubernetes.add_toleration(step, key="b", operator="Exists")
    kubernetes.add_node_affinity_json(step, affinity)
    kubernetes.set_image_pull_secrets(step, [pull])
    kubernetes.use_secret_as_env(step, secret_name=secret, secret_key_to_env={"k": "V"}, optional=True)


@dsl.pipeline(name="claims")
def claims():
    for _ in range(2):
        claim = kubernetes.CreatePVC(pvc_name_suffix="-x", access_modes=["ReadWriteOnce"], size="1Gi")
        step = say()
        kubernetes.mount_pvc(step, pvc_name=claim.outputs["name"], mount_path="/data")
        kubernetes.DeletePVC(pvc_name=claim.outputs["name"]).after(step)


@dsl.pipeline(
    name="workspace",
    pipeline_config=dsl.PipelineConfig(workspace=dsl.WorkspaceConfig(size="1Gi")),
)
def workspace():
    say(text=dsl.WORKSPACE_PATH_PLACEHOLDER)


CASES = {
    "settings_of_pods": Case(settings_of_pods, runs=False),
    "settings_from_parameters": Case(settings_from_parameters, runs=False),
    "claims": Case(claims, runs=False),
    "workspace": Case(workspace, runs=False),
}

"""What a KFP executor becomes: a container under the launcher or by itself, an importer, a volume claim."""

from __future__ import annotations

from shopfloor.engines.argo import pods
from shopfloor.engines.argo.containers import Leaf, Use, template_inputs
from shopfloor.engines.argo.launched import launched, static
from shopfloor.engines.argo.native import native
from shopfloor.engines.argo.source import UnsupportedFeature
from shopfloor.pipeline import ir
from shopfloor.pipeline.ir import Json, Message, broken, outputs, parameters

CLAIM_STUBS = {"argostub/createpvc", "argostub/deletepvc"}
"""Images by which kfp-kubernetes asks for a volume claim to be made or deleted."""


def leaf(use: Use) -> Leaf:
    """Return the template of a task.

    Raises:
        UnsupportedFeature: The task uses what cannot be translated.
    """
    executor = use.source.executor(use.component)
    for feature, title in (("custom_job", "a custom job of Vertex AI"), ("resolver", "a resolver")):
        if executor.HasField(feature):
            raise UnsupportedFeature(use.name, title)
    if use.component.task_config_passthroughs:
        raise UnsupportedFeature(use.name, "a task configuration that is passed through")
    for name, output in outputs(use.component, "artifacts").items():
        if output.is_artifact_list:
            raise UnsupportedFeature(use.name, f"a list of artifacts as output {name!r}")
    if executor.HasField("importer"):
        return _importer(use, executor)
    container = executor.container
    if not container.image:
        raise broken(f"the executor of task {use.name!r} has no image")
    if not all(item.name for item in container.env):
        raise broken(f"a variable of task {use.name!r} has no name")
    if container.HasField("lifecycle"):
        raise UnsupportedFeature(use.name, "a container lifecycle")
    if container.image in CLAIM_STUBS:
        return _claim(use, create=container.image.endswith("createpvc"))
    words = ir.command_of(executor)
    inputs = ir.inputs(use.task, "parameters")
    platform = use.source.platform.get(use.component.executor_label, {})
    pod = pods.pod_of(use.name, ir.as_json(container.resources), platform, inputs, use.above_absent)
    image = use.settings.cluster.image_of(pod.image(container.image, use.name, inputs))
    interpreter = words[0].rpartition("/")[2] if words else ""
    if any("{{$}}" in word for word in words) or interpreter.startswith("python"):
        return launched(use, image, static(use, executor, image), pod)
    return native(use, executor, image, pod)


def _importer(use: Use, executor: Message) -> Leaf:
    """Return the template of an importer: a step that says what the artifact is; nothing is fetched."""
    importer = executor.importer
    if importer.download_to_workspace:
        raise UnsupportedFeature(use.name, "an importer that downloads to the workspace")
    uri = importer.artifact_uri
    if uri.WhichOneof("value") == "constant":
        address = str(ir.value(uri.constant))
    elif uri.runtime_parameter in parameters(use.component):
        address = f"{{{{$.inputs.parameters['{uri.runtime_parameter}']}}}}"
    else:
        raise broken(f"the importer of task {use.name!r} has no address")
    image = use.settings.cluster.image
    task = static(use, executor, image)
    task["importer"] = {"uri": address, "metadata": ir.as_json(importer.metadata)}
    task["outputs"]["artifacts"] = {"artifact": ir.as_json(importer.type_schema)}
    return launched(use, image, task, pods.Pod())


def _claim(use: Use, create: bool) -> Leaf:
    """Return the template that makes or deletes a volume claim, as kfp-kubernetes' stubs ask for it."""

    def text(name: str) -> str | None:
        return None if name in use.absent else f"{{{{=toJson(inputs.parameters['{name}'])}}}}"

    def value(name: str) -> str:
        return f"{{{{inputs.parameters.{name}}}}}"

    template: Json = {"inputs": {"parameters": template_inputs(use, list(parameters(use.component)), {})}}
    if not create:
        manifest = (
            f'{{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {{"name": {text("pvc_name")}}}}}'
        )
        template["resource"] = {"action": "delete", "manifest": manifest}
        return Leaf(template)
    # The pod's name has that of the workflow in front, and no two tasks or items of a loop share it.
    name = text("pvc_name") or "{{=toJson(pod.name + inputs.parameters['pvc_name_suffix'])}}"
    if {"pvc_name", "pvc_name_suffix"} <= use.absent:
        raise broken(f"task {use.name!r} names no volume claim")
    metadata = f'"name": {name}' + ("" if "annotations" in use.absent else f', "annotations": {value("annotations")}')
    spec = f'"accessModes": {value("access_modes")}, "resources": {{"requests": {{"storage": {text("size")}}} }}'
    for key, parameter in (("storageClassName", "storage_class_name"), ("volumeName", "volume_name")):
        spec += f', "{key}": {text(parameter)}' if text(parameter) else ""
    spec += "" if "data_source" in use.absent else f', "dataSource": {value("data_source")}'
    manifest = (
        f'{{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {{{metadata}}}, "spec": {{{spec} }} }}'
    )
    template["resource"] = {"action": "create", "manifest": manifest}
    output = {"name": "name", "valueFrom": {"jsonPath": "{.metadata.name}"}}
    template["outputs"] = {"parameters": [output]}
    return Leaf(template)

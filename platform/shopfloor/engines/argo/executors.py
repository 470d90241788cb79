"""What a KFP executor becomes: a container under the launcher or by itself, an importer, a volume claim."""

from __future__ import annotations

from shopfloor.engines.argo import pods
from shopfloor.engines.argo.containers import Leaf, Use, template_inputs
from shopfloor.engines.argo.launched import launched, static
from shopfloor.engines.argo.native import native
from shopfloor.engines.argo.source import Json, UnsupportedFeature, broken, outputs, parameters
from shopfloor.engines.argo.values import given_inputs

CLAIM_STUBS = {"argostub/createpvc", "argostub/deletepvc"}
"""Images by which kfp-kubernetes asks for a volume claim to be made or deleted."""


def leaf(use: Use) -> Leaf:
    """Return the template of a task.

    Raises:
        UnsupportedFeature: The task uses what cannot be translated.
    """
    executor = use.source.executor(use.component)
    for feature, title in (("customJob", "a custom job of Vertex AI"), ("resolver", "a resolver")):
        if feature in executor:
            raise UnsupportedFeature(use.name, title)
    if use.component.get("taskConfigPassthroughs"):
        raise UnsupportedFeature(use.name, "a task configuration that is passed through")
    for name, output in outputs(use.component, "artifacts").items():
        if output.get("isArtifactList"):
            raise UnsupportedFeature(use.name, f"a list of artifacts as output {name!r}")
    if "importer" in executor:
        return _importer(use, executor["importer"])
    container = executor.get("container", {})
    if not container.get("image"):
        raise broken(f"the executor of task {use.name!r} has no image")
    if not all(item.get("name") for item in container.get("env", [])):
        raise broken(f"a variable of task {use.name!r} has no name")
    if container.get("lifecycle"):
        raise UnsupportedFeature(use.name, "a container lifecycle")
    if container["image"] in CLAIM_STUBS:
        return _claim(use, create=container["image"].endswith("createpvc"))
    words = [*container.get("command", []), *container.get("args", [])]
    inputs = given_inputs(use.task, "parameters")
    platform = use.source.platform.get(use.component["executorLabel"], {})
    asked = pods.pod(use.name, container, platform, inputs, use.above_absent)
    container = {**container, "image": asked.image(container["image"], use.name, inputs)}
    interpreter = words[0].rpartition("/")[2] if words else ""
    if any("{{$}}" in word for word in words) or interpreter.startswith("python"):
        return launched(use, container["image"], static(use, container), asked)
    return native(use, container, asked)


def _importer(use: Use, importer: Json) -> Leaf:
    """Return the template of an importer: a step that says what the artifact is; nothing is fetched."""
    uri = importer.get("artifactUri", {})
    if importer.get("downloadToWorkspace"):
        raise UnsupportedFeature(use.name, "an importer that downloads to the workspace")
    if "constant" in uri:
        address = str(uri["constant"])
    elif uri.get("runtimeParameter") in parameters(use.component):
        address = f"{{{{$.inputs.parameters['{uri['runtimeParameter']}']}}}}"
    else:
        raise broken(f"the importer of task {use.name!r} has no address")
    container = {"image": use.settings.cluster.image}
    task = static(use, container)
    task["importer"] = {"uri": address, "metadata": importer.get("metadata", {})}
    task["outputs"]["artifacts"] = {"artifact": importer.get("typeSchema", {})}
    return launched(use, container["image"], task, pods.Pod())


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
    named = {"name": "name", "valueFrom": {"jsonPath": "{.metadata.name}"}}
    template["outputs"] = {"parameters": [named]}
    return Leaf(template)

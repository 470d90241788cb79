"""Templates of tasks that run under the launcher: the image has Python, or is the platform image."""

from __future__ import annotations

import base64
import json

from shopfloor.engines.argo import pods
from shopfloor.engines.argo.containers import (
    DVC_MOUNT,
    HELPER,
    READ_ONLY,
    TMP_MOUNT,
    Leaf,
    Use,
    digest,
    for_kubelet,
    input_for_kubelet,
    input_names,
    pod_template,
    variable,
)
from shopfloor.engines.argo.launcher import FACT, PARAMETER, protect
from shopfloor.engines.argo.source import STEP_NAME, UnsupportedFeature
from shopfloor.engines.argo.values import NO_ARTIFACT, ROOT, facts
from shopfloor.environment import PATIENT, elsewhere
from shopfloor.pipeline import ir
from shopfloor.pipeline.ir import Json, Message, artifacts, outputs, parameters, type_of

LAUNCHER = "shopfloor.engines.argo.launcher"
LAUNCHER_PLACE = "/shopfloor/launcher.py"
ENV_LIMIT_BYTES = 128 * 1024 - 32
"""Linux takes no longer string in an environment."""
_OWN_FOLDERS = (("HOME", "home"), ("TMPDIR", "tmp"))
"""Variables of a component in somebody else's image, whose root may be read-only, and the step's folders for them."""
_OF_THE_POD: list[Json] = [
    {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
    for name, path in (
        ("SHOPFLOOR_NODE", "metadata.annotations['workflows.argoproj.io/node-name']"),
        ("SHOPFLOOR_POD_UID", "metadata.uid"),
    )
]
"""Variables by which a step in the platform image knows whose attempt it is, and what a RayJob of its belongs to."""
_DEBUG = ("ARGO_DEBUG_PAUSE_BEFORE", "ARGO_DEBUG_PAUSE_AFTER")


def static(use: Use, executor: Message, image: str) -> Json:
    """Return what never changes of a task, for the launcher."""
    here = use.component
    return {
        "command": ir.command_of(executor),
        "environment": ir.environment_of(executor),
        "inputs": {
            "parameters": {name: type_of(one) for name, one in parameters(here).items() if name not in use.absent},
            "artifacts": {
                name: one.is_artifact_list for name, one in artifacts(here).items() if name not in use.absent
            },
        },
        "outputs": {
            "parameters": {name: type_of(output) for name, output in outputs(here, "parameters").items()},
            "artifacts": {
                name: ir.as_json(output.artifact_type) for name, output in outputs(here, "artifacts").items()
            },
        },
        "cache": use.use_cache and use.task.caching_options.enable_cache,
        "platform": image == use.settings.cluster.image,
    }


def launched(use: Use, image: str, task: Json, pod: pods.Pod) -> Leaf:
    """Return the template of a task that runs under the launcher.

    Args:
        use: The task.
        image: Its image.
        task: What `static` gives.
        pod: What the task asks of its pod.

    Raises:
        UnsupportedFeature: Its source is too long for a variable.
    """
    platform = task["platform"]
    key = digest({"image": image, "task": task})
    encoded = base64.b64encode(json.dumps({**task, "key": key}, sort_keys=True).encode()).decode()
    if len(encoded) > ENV_LIMIT_BYTES:
        raise UnsupportedFeature(use.name, f"{len(encoded) // 1024} KiB of source, over the 128 KiB of a variable")
    env = [variable(PARAMETER + name, input_for_kubelet(name)) for name in input_names(use)]
    env += [
        *_facts(use, encoded),
        *(_OF_THE_POD if platform else []),
        *(_platform_env(use) if platform else [variable(name, f"{ROOT}/{folder}") for name, folder in _OWN_FOLDERS]),
        # Argo's own executor reads these of the container, not of the component's process.
        *(variable(name, for_kubelet(value)) for name, value in task["environment"].items() if name in _DEBUG),
    ]
    main: Json = {
        "image": image,
        "command": ["python3", "-m", LAUNCHER] if platform else ["python3", LAUNCHER_PLACE],
        "env": env,
    }
    if platform:
        has_own = any(mount["mountPath"] == TMP_MOUNT["mountPath"] for mount in pod.mounts)
        main |= {"securityContext": READ_ONLY, "volumeMounts": [DVC_MOUNT, *([] if has_own else [TMP_MOUNT])]}
    template = pod_template(use, main, pod, task["outputs"], key, NO_ARTIFACT, input_names(use))
    if not platform:
        mount = {"name": "launcher", "mountPath": LAUNCHER_PLACE.rpartition("/")[0]}
        template["volumes"].append({"name": "launcher", "emptyDir": {}})
        main["volumeMounts"].append(mount)
        copy = f"import shutil, {LAUNCHER} as launcher; shutil.copy(launcher.__file__, {LAUNCHER_PLACE!r})"
        template["initContainers"] = [
            {
                "name": "launcher",
                "image": use.settings.cluster.image,
                "command": ["python3", "-c", copy],
                "volumeMounts": [mount],
                **HELPER,
            }
        ]
    return Leaf(template, pod.references, pod.pull_secrets, key)


def reader(use: Use, task: Json, key: str) -> Json:
    """Return the container that reads, as KFP's launcher does, what the program of another image left as outputs.

    Args:
        use: The task.
        task: What `static` gives.
        key: First segment of the artifacts' keys.
    """
    document = {**task, "key": key, "native": True, "command": [], "environment": {}, "platform": False}
    document["inputs"] = {"parameters": {}, "artifacts": {}}
    encoded = base64.b64encode(json.dumps(document, sort_keys=True).encode()).decode()
    return {
        "name": "outputs",
        "image": use.settings.cluster.image,
        "command": ["python3", "-m", LAUNCHER],
        "env": _facts(use, encoded),
        **HELPER,
    }


def _facts(use: Use, encoded: str) -> list[Json]:
    """Return the variables that the launcher reads."""
    return [
        variable("SHOPFLOOR_STEP", f"{{{{inputs.parameters.{STEP_NAME}}}}}"),
        variable("SHOPFLOOR_ROOT", ROOT),
        variable("SHOPFLOOR_WORKFLOW", "{{workflow.name}}"),
        variable("SHOPFLOOR_POD", "{{pod.name}}"),
        *(variable(FACT + name, value.text) for name, value in facts(for_kubelet(use.pipeline_root)).items()),
        variable("SHOPFLOOR_TASK", encoded),
    ]


def _platform_env(use: Use) -> list[Json]:
    """Return the settings as variables, without what is true only of the machine that submits."""
    env = elsewhere(use.settings.model_copy(update={"run_id": None}).environment()) | PATIENT
    env["SHOPFLOOR_STATE_DIR"] = f"{ROOT}/state"
    if use.run_id:
        env["SHOPFLOOR_RUN_ID"] = use.run_id
    return [variable(name, for_kubelet(protect(value))) for name, value in sorted(env.items())]

"""Components to make pipelines of, and what is read off the Workflows that they become."""

import base64
import json
from typing import Optional

from google.protobuf import json_format
from kfp import dsl
from shopfloor.engines.argo.translation import translate
from shopfloor.settings import ClusterSettings, Settings

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

"""A pipeline becomes a Workflow that the cluster would take, or is refused by name.

Pipelines of our own are checked against the models of Argo's client; those that the KFP project compiled, and the
cluster's own schemas, are a second judge where they are there.
"""

import copy
import json
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp import dsl
from shopfloor.engines.argo.source import UnsupportedFeature
from shopfloor.engines.argo.translation import cron_workflow, translate
from shopfloor.errors import UsageError
from shopfloor.settings import load_settings

from tests.pipelines import CASES
from tests.pipelines.parts import read
from tests.support.project import SHARED

PROJECT = Path(__file__).resolve().parents[2]
FILES = sorted((SHARED / "kfp-ir").glob("*.yaml"))
theirs = pytest.mark.skipif(not FILES, reason=f"no compiled pipelines in {SHARED / 'kfp-ir'}")

REFUSED = {
    "component_with_metadata_fields": ("dataset-joiner", "the input artifact 'dataset_a' without a URI"),
    "components_with_optional_artifacts": ("importer", "an importer of gs:// artifacts"),
    "input_artifact": ("input-artifact", "the input artifact 'data' without a URI"),
    "pipeline_with_dynamic_importer_metadata": ("importer", "an importer of gs:// artifacts"),
    "pipeline_with_google_artifact_type": ("importer", "an importer of gs:// artifacts"),
    "pipeline_with_importer_and_gcpc_types": ("importer", "an importer of gs:// artifacts"),
    "pipeline_with_importer_workspace": ("importer", "an importer that downloads to the workspace"),
    "pipeline_with_metadata_fields": ("dataset-concatenator", "the input artifact 'in_dataset' without a URI"),
    "pythonic_artifact_with_single_return": ("importer", "an importer of gs:// artifacts"),
}
VALUES = {
    "STRING": "text",
    "NUMBER_INTEGER": 1,
    "NUMBER_DOUBLE": 1.5,
    "BOOLEAN": True,
    "LIST": [],
    "STRUCT": {},
}


@pytest.fixture(scope="module")
def settings():
    return load_settings("cluster", project_root=PROJECT)


def compiled(file):
    documents = list(yaml.load_all(file.read_text(), yaml.CSafeLoader))
    inputs = documents[0]["root"].get("inputDefinitions", {}).get("parameters", {})
    arguments = {
        name: VALUES[definition["parameterType"]]
        for name, definition in inputs.items()
        if "defaultValue" not in definition and not definition.get("isOptional")
    }
    return documents[0], (documents[1] if len(documents) > 1 else {}), arguments


def strict(schema):
    """Return a CRD's schema that refuses what the API server would drop without a word."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict_schema = {key: strict(value) for key, value in schema.items()}
    if strict_schema.get("x-kubernetes-int-or-string") is True:
        strict_schema.pop("type", None)
    elif strict_schema.get("type") == "object" and "additionalProperties" not in strict_schema:
        open_ended = strict_schema.get("x-kubernetes-preserve-unknown-fields") or "properties" not in strict_schema
        strict_schema["additionalProperties"] = bool(open_ended)
    return strict_schema


@pytest.fixture(scope="module")
def validator():
    import jsonschema_rs

    def load(kind):
        schema = strict(json.loads((SHARED / "schemas" / f"argo_{kind}.json").read_text())["v1alpha1"])
        # The API server fills these two in.
        schema["properties"]["metadata"] = {"type": "object"}
        return jsonschema_rs.Draft202012Validator(schema)

    loaded = {"Workflow": load("workflows"), "CronWorkflow": load("cronworkflows")}

    def validate(manifest):
        return [
            f"{list(error.instance_path)}: {error.message[:200]}"
            for error in loaded[manifest["kind"]].iter_errors(manifest)
        ]

    return validate


def unknown_fields(model, path="workflow"):
    """Yield what the client's models hold without knowing it."""
    from argo_workflows.model_utils import ModelNormal

    if isinstance(model, list):
        for index, item in enumerate(model):
            yield from unknown_fields(item, f"{path}[{index}]")
    elif isinstance(model, dict):
        for key, item in model.items():
            yield from unknown_fields(item, f"{path}.{key}")
    elif isinstance(model, ModelNormal):
        for key, item in model._data_store.items():
            if key not in model.openapi_types:
                yield f"{path}.{key}"
            yield from unknown_fields(item, f"{path}.{key}")


def as_model(manifest):
    from argo_workflows.configuration import Configuration
    from argo_workflows.model.io_argoproj_workflow_v1alpha1_workflow import IoArgoprojWorkflowV1alpha1Workflow as Model
    from argo_workflows.model_utils import validate_and_convert_types

    return validate_and_convert_types(
        copy.deepcopy(manifest), (Model,), ["workflow"], True, True, Configuration(discard_unknown_keys=False)
    )


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_of_our_own_becomes_a_workflow_that_argos_models_take(name, settings):
    case = CASES[name]

    manifest = translate(case.ir, case.platforms, case.arguments, settings, run_id="0123abc")

    assert list(unknown_fields(as_model(manifest))) == []
    assert dangling(manifest) == []
    assert translate(case.ir, case.platforms, case.arguments, settings, run_id="0123abc") == manifest


def test_argos_models_refuse_what_they_do_not_know(settings):
    case = CASES["nested"]
    manifest = translate(case.ir, {}, {}, settings)
    manifest["spec"]["templates"][0]["containr"] = {}

    assert list(unknown_fields(as_model(manifest))) == ["workflow.spec.templates[0].containr"]


@theirs
@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_of_our_own_becomes_a_workflow_that_the_clusters_schema_takes(name, settings, validator):
    case = CASES[name]

    manifest = translate(case.ir, case.platforms, case.arguments, settings, run_id="0123abc")

    assert validator(manifest) == []
    assert validator(cron_workflow(manifest, "0 3 * * *")) == []


@theirs
@pytest.mark.parametrize("file", [file for file in FILES if file.stem not in REFUSED], ids=lambda file: file.stem)
def test_a_pipeline_becomes_a_workflow_that_schema_and_client_take(file, settings, validator):
    ir, platforms, arguments = compiled(file)

    manifest = translate(ir, platforms, arguments, settings, run_id="0123abc")

    assert validator(manifest) == []
    assert validator(cron_workflow(manifest, "0 3 * * *")) == []
    assert list(unknown_fields(as_model(manifest))) == []
    assert dangling(manifest) == []
    assert translate(ir, platforms, arguments, settings, run_id="0123abc") == manifest


@theirs
@pytest.mark.parametrize("file", [file for file in FILES if file.stem in REFUSED], ids=lambda file: file.stem)
def test_what_cannot_be_translated_is_refused_with_task_and_feature(file, settings):
    ir, platforms, arguments = compiled(file)

    with pytest.raises(UnsupportedFeature) as refused:
        translate(ir, platforms, arguments, settings)

    assert (refused.value.task, refused.value.feature) == REFUSED[file.stem]
    assert all(word in str(refused.value) for word in REFUSED[file.stem])


@theirs
def test_the_schema_refuses_what_it_does_not_know(settings, validator):
    case = CASES["nested"]
    manifest = translate(case.ir, {}, {}, settings)
    manifest["spec"]["templates"][0]["containr"] = {}

    assert len(validator(manifest)) == 1


def test_a_pipeline_whose_input_artifact_is_given_is_translated(settings):
    @dsl.pipeline(name="given")
    def given(data: dsl.Input[dsl.Dataset]):
        read(data=data)

    ir = json_format.MessageToDict(given.pipeline_spec)

    manifest = translate(ir, {}, {"data": "s3://bucket/data"}, settings)

    envelope = json.loads(manifest["spec"]["arguments"]["parameters"][0]["value"])
    assert (envelope["uri"], envelope["type"]["schemaTitle"]) == ("s3://bucket/data", "system.Dataset")
    with pytest.raises(UnsupportedFeature, match="the input artifact 'data' without a URI"):
        translate(ir, {}, {}, settings)


def dangling(manifest):
    """Return the references between templates that nobody answers."""
    templates = {template["name"]: template for template in manifest["spec"]["templates"]}
    used, problems = {manifest["spec"]["entrypoint"]}, []
    for template in templates.values():
        for task in template.get("dag", {}).get("tasks", []):
            for use in (task, *task.get("hooks", {}).values()):
                used.add(use["template"])
                inputs = templates[use["template"]].get("inputs", {}).get("parameters", [])
                given = {item["name"] for item in use.get("arguments", {}).get("parameters", [])}
                missing = {item["name"] for item in inputs if "default" not in item} - given
                problems += [f"{template['name']}.{task['name']} lacks {name}" for name in sorted(missing)]
    return problems + [f"{name} is unused" for name in templates.keys() - used]


BROKEN = [
    lambda ir: ir.pop("root"),
    lambda ir: ir.pop("pipelineInfo"),
    lambda ir: ir.pop("components"),
    lambda ir: ir.pop("deploymentSpec"),
    lambda ir: ir["root"].update(dag=[]),
    lambda ir: ir["root"].update(dag={"tasks": {}}),
    lambda ir: ir.update(unknown=1),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_broken_ir_is_a_usage_error(number, settings):
    ir = CASES["branches"].ir
    BROKEN[number](ir)

    with pytest.raises(UsageError, match="broken"):
        translate(ir, {}, {}, settings)


def places(value, path=()):
    """Yield the path of every value in a JSON document."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield (*path, index)
            yield from places(item, (*path, index))


@pytest.mark.parametrize(
    "name", ["claims", "exit_handler_after_a_failure", "collected_over_skipped", "branches", "settings_from_parameters"]
)
@pytest.mark.parametrize("change", ["taken out", "put wrong"])
def test_a_pipeline_with_any_one_thing_missing_or_wrong_is_translated_or_refused(name, change, settings):
    case = CASES[name]
    whole = {"ir": case.ir, "platforms": case.platforms}
    refused = 0

    for path in list(places(whole)):
        damaged = copy.deepcopy(whole)
        parent = damaged
        for key in path[:-1]:
            parent = parent[key]
        if change == "put wrong":
            parent[path[-1]] = "none such"
        elif isinstance(parent, dict):
            del parent[path[-1]]
        try:
            translate(damaged.get("ir", {}), damaged.get("platforms", {}), case.arguments, settings)
        except UsageError:
            refused += 1

    assert refused > 10

"""Whatever a model of one's own answers, the endpoint's documents say, and golden requests and batch runs take."""

import json

import jsonschema
import mlflow
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from shopfloor.errors import UsageError
from shopfloor.registry import flavors, imported
from shopfloor.runs.mlflow import by_row
from shopfloor.serving.batch import score_part, scoring
from shopfloor.serving.contract import Config
from shopfloor.serving.data_set import Part
from shopfloor.serving.model.loading import prepare
from shopfloor.serving.protocols import mlflow_scoring, open_inference
from shopfloor.serving.protocols.parsed import Form
from shopfloor.serving.replica.answering import _invoked_as_usual
from shopfloor.serving.replica.documents import openapi
from shopfloor.settings import Settings
from shopfloor.use_case import ModelSection
from sklearn.compose import make_column_transformer

from tests.support.endpoints import file_registry

ROWS = [{"text": "a b", "size": 2.0}, {"text": "c", "size": 0.5}, {"text": "", "size": 1.0}]
FORMS = {
    "texts": lambda frame: [text.upper() for text in frame["text"]],
    "yes and no": lambda frame: (frame["size"] > 1).to_numpy(),
    "lists of one length": lambda frame: frame[["size", "size"]].to_numpy(),
    "lists of any length": lambda frame: [text.split() for text in frame["text"]],
    "a dictionary of lists": lambda frame: {"words": [text.split() for text in frame["text"]], "size": frame["size"]},
    "objects": lambda frame: [{"text": t, "span": {"from": 0, "to": len(t)}, "tag": t or None} for t in frame["text"]],
    "a frame": lambda frame: pd.DataFrame({"twice": frame["size"] * 2, "shout": frame["text"].str.upper()}),
}
OUTPUTS = {
    "texts": {"prediction": ("BYTES", [-1])},
    "yes and no": {"prediction": ("BOOL", [-1])},
    "lists of one length": {"prediction": ("FP64", [-1, 2])},
    "lists of any length": {"prediction": ("BYTES", [-1])},
    "a dictionary of lists": {"words": ("BYTES", [-1]), "size": ("FP64", [-1])},
    "objects": {"text": ("BYTES", [-1]), "span": ("INT64", [-1, 2]), "tag": ("BYTES", [-1])},
    "a frame": {"twice": ("FP64", [-1]), "shout": ("BYTES", [-1])},
}


class Own(mlflow.pyfunc.PythonModel):
    """Answers in one of the forms."""

    def __init__(self, form):
        self.form = form

    def predict(self, context, model_input, params=None):
        return FORMS[self.form](model_input)


@pytest.fixture(params=FORMS)
def served(request, tmp_path):
    """Return the form, and a model that answers in it, with golden requests."""
    place = tmp_path / "model"
    inputs = Schema([ColSpec("string", "text"), ColSpec("double", "size")])
    mlflow.pyfunc.save_model(
        place, python_model=Own(request.param), signature=ModelSignature(inputs), pip_requirements=["mlflow"]
    )
    answers = prepare("own", "1", place).many([list(row.values()) for row in ROWS])
    imported.add_golden(place, ROWS, answers)
    return request.param, prepare("own", "1", place)


def test_a_prediction_is_what_its_documents_say_in_every_protocol(served, tmp_path):
    form, model = served
    operations = openapi(model, "/own", model.example, None, Config(use_case="own", tracking_uri=""))["paths"]

    def schema(path):
        return operations[path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]

    singles = [json.loads(model.predict(json.dumps(row).encode())) for row in ROWS]
    assert schema("/own/predict")["properties"]["prediction"].keys() & {"type", "anyOf"}
    for answer in singles:
        jsonschema.validate(answer, schema("/own/predict"))
    predictions = [answer["prediction"] for answer in singles]

    body = json.dumps({"dataframe_records": ROWS}).encode()
    many = json.loads(mlflow_scoring.invoke(model, body, "application/json", 10))
    assert schema("/own/invocations")["properties"]["predictions"].keys() & {"type"}
    jsonschema.validate(many, schema("/own/invocations"))
    assert by_row(many["predictions"], len(ROWS)) == predictions

    said = {one["name"]: one for one in open_inference.model_metadata(model, ["1"])["outputs"]}
    assert {name: (one["datatype"], one["shape"]) for name, one in said.items()} == OUTPUTS[form]
    tensors = [
        {"name": "text", "shape": [3], "datatype": "BYTES", "data": [row["text"] for row in ROWS]},
        {"name": "size", "shape": [3], "datatype": "FP64", "data": [row["size"] for row in ROWS]},
    ]
    answer = json.loads(open_inference.infer(model, json.dumps({"inputs": tensors}).encode(), None, 10)[0])
    for output in answer["outputs"]:
        one = said[output["name"]]
        assert (output["datatype"], output["shape"][1:]) == (one["datatype"], one["shape"][1:])
        if output.get("parameters", {}).get("content_type") == "application/json":
            rows = [row[output["name"]] if isinstance(row, dict) else row for row in predictions]
            assert [json.loads(item) for item in output["data"]] == rows

    file = tmp_path / "rows.parquet"
    pd.DataFrame(ROWS).to_parquet(file)
    part = Part(str(file), 0, 1, len(ROWS), str(tmp_path / "scored" / "part.parquet"))
    score_part(Settings(project_root=tmp_path), scoring(model), part)
    assert pq.read_table(part.target)["prediction"].to_pylist() == predictions


def test_a_large_request_of_texts_is_answered_where_it_is_read_in_its_usual_form_alone(tmp_path):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    frame = pd.DataFrame(ROWS)
    first = FunctionTransformer(pd.Series.tolist)
    words = make_column_transformer((make_pipeline(first, CountVectorizer(analyzer="char")), "text"))
    model = make_pipeline(words, LinearRegression()).fit(frame, frame["size"])
    inputs = Schema([ColSpec("string", "text"), ColSpec("double", "size")])
    mlflow.sklearn.save_model(
        model, tmp_path / "model", signature=ModelSignature(inputs), serialization_format="cloudpickle"
    )
    served = prepare("own", "1", tmp_path / "model")
    form = Form.of(served, 10_000)
    assert form.direct
    many = ROWS * 2000
    usual = json.dumps({"dataframe_records": many}).encode()
    answer = json.loads(_invoked_as_usual(served, form, usual))["predictions"]
    assert answer == pytest.approx(model.predict(pd.DataFrame(many)).tolist())

    turned = {"columns": ["size", "text"], "data": [[row["size"], row["text"]] for row in many]}
    assert _invoked_as_usual(served, form, json.dumps({"dataframe_split": turned}).encode()) is None
    wrong = json.dumps({"dataframe_records": [*many, {"text": 1, "size": 1.0}]}).encode()
    assert _invoked_as_usual(served, form, wrong) is None


@pytest.mark.parametrize("of_others", [False, True])
def test_rows_are_gathered_where_one_is_answered_as_it_is_alone(tmp_path, of_others):
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    frame = pd.DataFrame(ROWS)
    less = FunctionTransformer(lambda rows: rows - rows.mean() if of_others else rows)
    model = make_pipeline(make_column_transformer((less, ["size"])), LinearRegression()).fit(frame, frame["size"])
    inputs = Schema([ColSpec("string", "text"), ColSpec("double", "size")])
    mlflow.sklearn.save_model(
        model,
        tmp_path / "model",
        signature=ModelSignature(inputs),
        input_example=frame.head(1),
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn"],
    )
    served = prepare("own", "1", tmp_path / "model")
    assert (served.direct is None, served.gathers) == (of_others, not of_others)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (object(), "load in model.py returns a object"),
        (Own(one for one in ROWS), "The model of tests.support cannot be pickled"),
    ],
)
def test_what_is_no_model_of_ones_own_or_cannot_be_kept_is_told_in_one_line(model, why, tmp_path):
    file_registry(tmp_path)
    with pytest.raises(UsageError, match=why) as refused, mlflow.start_run():
        flavors.log(ModelSection(flavor="pyfunc"), "tests.support", model, name="model", pip_requirements=["mlflow"])
    assert "\n" not in str(refused.value)

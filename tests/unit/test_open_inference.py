"""The Open Inference Protocol against a real XGBoost model in MLflow's format: answers, and each way to ask wrongly."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from shopfloor.runs.mlflow import import_mlflow
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import prepare
from shopfloor.serving.protocols import open_inference

FRAME = pd.DataFrame({"stops": [0, 1, 2, 3], "delay": [0.5, -1.0, 2.0, 0.0], "age": [1.0, np.nan, 3.0, 4.0]})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import_mlflow()
    import mlflow.xgboost
    import xgboost
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = [ColSpec("long", "stops"), ColSpec("double", "delay"), ColSpec("double", "age", required=False)]
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(FRAME, label=[0, 1, 0, 1]), 3)
    path = str(tmp_path_factory.mktemp("model") / "model")
    signature = ModelSignature(Schema(inputs), Schema([ColSpec("float")]))
    mlflow.xgboost.save_model(booster, path, signature=signature, pip_requirements=["xgboost"])
    return prepare("late", "3", Path(path))


def tensor(name, datatype, data, shape=None):
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def ask(model, inputs, max_rows=10, **more):
    body, length = open_inference.infer(model, json.dumps({"inputs": inputs, **more}).encode(), None, max_rows)
    assert length is None
    return json.loads(body)


def test_tensors_of_columns_are_rows_and_the_answer_is_the_models(model):
    inputs = [tensor("delay", "FP64", [0.5, 2.0]), tensor("stops", "INT64", [0, 2], shape=[2, 1])]

    answer = ask(model, inputs, id="42")

    expected = model.pyfunc.predict(pd.DataFrame({"stops": [0, 2], "delay": [0.5, 2.0], "age": [np.nan, np.nan]}))
    assert answer["model_name"] == "late"
    assert answer["model_version"] == "3"
    assert answer["id"] == "42"
    (output,) = answer["outputs"]
    assert {key: output[key] for key in ("name", "shape", "datatype")} == {
        "name": "prediction",
        "shape": [2],
        "datatype": "FP64",
    }
    assert output["data"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_example_of_the_document_works_as_it_stands(model):
    answer = ask(model, open_inference.example(model)["inputs"])
    assert answer["outputs"][0]["shape"] == [1]


def test_the_metadata_name_tensors_by_the_protocols_types(model):
    assert open_inference.model_metadata(model, ["3", "4"]) == {
        "name": "late",
        "versions": ["3", "4"],
        "platform": "shopfloor",
        "inputs": [
            {"name": "stops", "datatype": "INT64", "shape": [-1]},
            {"name": "delay", "datatype": "FP64", "shape": [-1]},
            {"name": "age", "datatype": "FP64", "shape": [-1], "parameters": {"optional": True}},
        ],
        "outputs": [{"name": "prediction", "datatype": "FP64", "shape": [-1]}],
    }


DELAY, STOPS = tensor("delay", "FP64", [0.5]), tensor("stops", "INT64", [1])


@pytest.mark.parametrize(
    ("inputs", "status", "text"),
    [
        ([DELAY], 422, "stops is missing"),
        ([DELAY, STOPS, tensor("wind", "FP64", [1.0])], 422, "wind is not an input of this model"),
        ([DELAY, STOPS, STOPS], 422, "stops is given twice"),
        ([DELAY, tensor("stops", "FP64", [1.5])], 422, "stops must be of datatype INT64"),
        ([DELAY, tensor("stops", "INT64", ["one"])], 422, "stops"),
        ([DELAY, tensor("stops", "INT64", [1, 2])], 422, "same number of rows"),
        ([tensor("delay", "FP64", []), tensor("stops", "INT64", [])], 422, "at least one"),
        ([DELAY, tensor("stops", "INT64", [1], shape=[2])], 422, r"its shape must be \[1\]"),
        ([DELAY, tensor("stops", "INT64", [[1, 2]], shape=[1])], 422, "plain values"),
        ([DELAY, {"name": "stops", "datatype": "INT64", "shape": [1]}], 422, "stops: has no list `data`"),
        ([DELAY, "stops"], 400, "inputs.1"),
        ([], 400, "inputs: List should have at least 1 item"),
        ([tensor("delay", "FP64", [0.5] * 11), tensor("stops", "INT64", [1] * 11)], 413, "at most 10"),
        ([tensor("delay", "FP64", [None]), STOPS], 422, "delay"),
    ],
)
def test_a_wrong_request_is_refused_with_the_field(model, inputs, status, text):
    with pytest.raises(BadRequest, match=text) as raised:
        ask(model, inputs)
    assert raised.value.status == status


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"inputs": NaN}', b"[" * 100_000, b"\xff\xfe", b'{"inputs": 1}'])
def test_a_body_that_is_no_request_is_a_400(model, body):
    with pytest.raises(BadRequest) as raised:
        open_inference.infer(model, body, None, 10)
    assert raised.value.status == 400


def test_an_output_that_the_model_lacks_is_refused(model):
    with pytest.raises(BadRequest, match="has no output 'logits'"):
        ask(model, [DELAY, STOPS], outputs=[{"name": "logits"}])


def as_bytes(inputs, outputs=None, cut=0):
    """Return the body of a request for two rows whose tensors follow the JSON as bytes, and the length of the JSON."""
    tail, heads = b"", []
    for name, datatype, array in inputs:
        content = array if isinstance(array, bytes) else array.tobytes()
        size = {"binary_data_size": len(content)}
        heads.append({"name": name, "datatype": datatype, "shape": [2], "parameters": size})
        tail += content
    head = json.dumps({"inputs": heads} | ({"outputs": outputs} if outputs else {})).encode()
    return head + tail[: len(tail) - cut], len(head)


STOPS_BYTES = ("stops", "INT64", np.array([0, 2], "<i8"))
DELAY_BYTES = ("delay", "FP64", np.array([0.5, 2.0], "<f8"))


def test_tensors_that_come_as_bytes_are_answered_as_those_in_json(model):
    expected = ask(model, [tensor("stops", "INT64", [0, 2]), tensor("delay", "FP64", [0.5, 2.0])])["outputs"][0]["data"]
    body, length = as_bytes([STOPS_BYTES, DELAY_BYTES], [{"name": "prediction", "parameters": {"binary_data": True}}])

    answer, answer_length = open_inference.infer(model, body, length, 10)

    (output,) = json.loads(answer[:answer_length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 16}
    assert "data" not in output
    assert np.frombuffer(answer[answer_length:], "<f8").tolist() == expected
    in_json, no_length = open_inference.infer(model, *as_bytes([STOPS_BYTES, DELAY_BYTES]), 10)
    assert no_length is None
    assert json.loads(in_json)["outputs"][0]["data"] == expected


@pytest.mark.parametrize(
    ("inputs", "cut", "status", "text"),
    [
        ([STOPS_BYTES, DELAY_BYTES], 1, 422, "more bytes than follow"),
        ([STOPS_BYTES, ("delay", "FP64", b"\0" * 15)], 0, 422, "8 bytes an item"),
        ([STOPS_BYTES, ("delay", "FP64", b"\0" * 24)], 0, 422, "shape"),
        ([STOPS_BYTES, ("delay", "FP64", np.array([np.inf, 1]))], 0, 422, "delay: must be a finite number"),
        ([STOPS_BYTES, ("delay", "FP64", np.array([np.nan, 1]))], 0, 422, "delay: is missing"),
        (
            [STOPS_BYTES, ("delay", "FP64", np.array([1e300, 1]))],
            0,
            422,
            "finite number of at most 3.4",
        ),
        ([STOPS_BYTES, ("delay", "BYTES", b"\1\0\0\0x")], 0, 422, "datatype FP64"),
    ],
)
def test_bytes_that_are_no_tensor_are_refused(model, inputs, cut, status, text):
    body, length = as_bytes(inputs, cut=cut)
    with pytest.raises(BadRequest, match=text) as raised:
        open_inference.infer(model, body, length, 10)
    assert raised.value.status == status


@pytest.mark.parametrize("length", [0, 10_000])
def test_a_length_that_the_json_cannot_have_is_refused(model, length):
    body, _ = as_bytes([STOPS_BYTES, DELAY_BYTES])
    with pytest.raises(BadRequest, match="cannot be"):
        open_inference.infer(model, body, length, 10)


def test_bytes_that_no_tensor_names_are_refused(model):
    body, length = as_bytes([STOPS_BYTES, DELAY_BYTES])
    with pytest.raises(BadRequest, match="32 bytes, and 35 follow"):
        open_inference.infer(model, body + b"abc", length, 10)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
words = st.sampled_from(["stops", "delay", "age", "FP64", "INT64", "BYTES"])
tensors = st.fixed_dictionaries(
    {},
    optional={"name": words | values, "datatype": words | values, "shape": values, "data": st.lists(values) | values},
)


@budget(max_examples=150, deadline=None, derandomize=True, database=None)
@given(asked=st.fixed_dictionaries({"inputs": st.lists(tensors, max_size=4) | values}))
def test_whatever_is_asked_is_answered_or_refused(model, asked):
    status, answer = 200, None
    try:
        answer = json.loads(open_inference.infer(model, json.dumps(asked).encode(), None, 10)[0])
    except BadRequest as error:
        status = error.status
    assert 400 <= status < 500 or (answer and answer["outputs"][0]["shape"][0] >= 1)

"""Quick ways into models of ONNX and PyTorch, from a registry in a file: the answers are those of MLflow's pyfunc."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from shopfloor.judging.golden import difference
from shopfloor.serving.batch import Part, score_part, scoring
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import load_model
from shopfloor.serving.protocols import open_inference
from shopfloor.serving.protocols.mlflow_scoring import invoke

from tests.support.endpoints import file_registry

COLUMNS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Give a function that registers a model and loads it as a replica does."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    uri, experiment = file_registry(tmp_path_factory.mktemp("registry"))

    def register(flavor, model, frame, types=("double",) * 3, **options):
        inputs = Schema([ColSpec(kind, name) for kind, name in zip(types, frame, strict=True)])
        with mlflow.start_run(experiment_id=experiment):
            info = flavor.log_model(
                model,
                name="model",
                signature=ModelSignature(inputs),
                input_example=frame.head(1),
                pip_requirements=[],
                registered_model_name="toy",
                **options,
            )
        return load_model(uri, "toy", str(info.registered_model_version))

    return register


@pytest.fixture
def frame():
    return pd.DataFrame(np.random.default_rng(3).normal(size=(7, 3)), columns=COLUMNS)


def through_pyfunc(served, frame):
    """What MLflow answers to rows; a frame of one column is a prediction a row, one of unnamed columns a list."""
    answers = served.pyfunc.predict(frame)
    if answers.shape[1] == 1:
        return answers.iloc[:, 0].tolist()
    return answers.to_dict("records") if isinstance(answers.columns[0], str) else answers.to_numpy().tolist()


def assert_all_ways_answer(served, frame, expected):
    rows = frame.to_dict("records")
    one_by_one = [json.loads(served.predict(json.dumps(row).encode()))["prediction"] for row in rows]
    together = served.many([served.parse(json.dumps(row).encode()) for row in rows])
    for answers in (one_by_one, together):
        assert len(answers) == len(expected)
        for answer, expected_value in zip(answers, expected, strict=True):
            assert type(answer) is type(expected_value)
            assert difference(answer, expected_value) <= 1e-6
    assert_invocations_answer_as_mlflow_does(served, frame)


def assert_invocations_answer_as_mlflow_does(served, frame):
    """The form is MLflow's, also where the rows go past it."""
    from mlflow.pyfunc.scoring_server import invocations

    body = json.dumps({"dataframe_split": {"columns": list(frame), "data": frame.to_numpy().tolist()}})
    theirs = invocations(body, "application/json", served.pyfunc, served.pyfunc.metadata.get_input_schema())
    ours = invoke(served, body.encode(), "application/json", max_rows=100)
    for answer, expected_value in zip(
        json.loads(ours)["predictions"], json.loads(theirs.response)["predictions"], strict=True
    ):
        assert type(answer) is type(expected_value)
        assert difference(answer, expected_value) <= 1e-6
        if isinstance(expected_value, dict):
            assert list(answer) == list(expected_value)

    described = open_inference.model_metadata(served, [])["outputs"]
    request = json.dumps(open_inference.example(served)).encode()
    outputs = json.loads(open_inference.infer(served, request, None, max_rows=100)[0])["outputs"]
    assert [(one["name"], one["datatype"], one["shape"][1:]) for one in described] == [
        (one["name"], one["datatype"], one["shape"][1:]) for one in outputs
    ]


def graph(nodes, inputs, outputs, **weights):
    """Make an ONNX model of nodes (operator, inputs, outputs), typed tensors and constants."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def described(tensors):
        return [helper.make_tensor_value_info(n, getattr(TensorProto, kind), dims) for n, kind, dims in tensors]

    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, taken, given) for operator, taken, given in nodes],
            "toy",
            described(inputs),
            described(outputs),
            [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    checker.check_model(model)
    return model


WEIGHTS = [[0.5], [-1.0], [2.0]]


def linear(kind, dtype, width=1):
    return graph(
        [("MatMul", ["rows", "weights"], ["score"])],
        [("rows", kind, [None, 3])],
        [("score", kind, [None, width])],
        weights=np.array(WEIGHTS, dtype=dtype) * np.arange(1, width + 1, dtype=dtype),
    )


def mlflow_onnx():
    import mlflow.onnx

    return mlflow.onnx


@pytest.mark.parametrize(("kind", "dtype"), [("FLOAT", np.float32), ("DOUBLE", np.float64)])
def test_a_graph_of_one_matrix_is_answered_without_a_frame(registry, frame, kind, dtype):
    served = registry(mlflow_onnx(), linear(kind, dtype), frame)
    assert served.native is not None
    assert served.native.single_precision is (kind == "FLOAT")
    expected = through_pyfunc(served, frame)
    assert_all_ways_answer(served, frame, expected)
    assert expected == pytest.approx((frame.to_numpy() @ WEIGHTS).ravel(), abs=1e-5)


def test_a_graph_of_an_input_a_column_finds_its_columns_by_name(registry, frame):
    model = graph(
        [("Sub", ["c", "a"], ["score"])],
        [("c", "FLOAT", [None]), ("a", "FLOAT", [None])],
        [("score", "FLOAT", [None])],
    )
    served = registry(mlflow_onnx(), model, frame)
    assert served.native is not None
    assert_all_ways_answer(served, frame, through_pyfunc(served, frame))


def test_a_graph_of_several_outputs_answers_them_by_name(registry, frame, tmp_path):
    model = graph(
        [("MatMul", ["rows", "weights"], ["score"]), ("Neg", ["score"], ["opposite"])],
        [("rows", "FLOAT", [None, 3])],
        [("score", "FLOAT", [None, 1]), ("opposite", "FLOAT", [None, 1])],
        weights=np.array(WEIGHTS, dtype=np.float32),
    )
    served = registry(mlflow_onnx(), model, frame)
    assert served.native is not None
    expected = through_pyfunc(served, frame)
    assert set(expected[0]) == {"score", "opposite"}
    assert_all_ways_answer(served, frame, expected)
    for answer, expected_value in zip(score(served, frame, tmp_path), expected, strict=True):
        assert answer == pytest.approx(expected_value, abs=1e-6)


def test_a_graph_of_whole_numbers_stays_with_pyfunc_which_loses_no_digit(registry):
    model = graph(
        [("ReduceMax", ["rows"], ["largest"])],
        [("rows", "INT64", [None, 3])],
        [("largest", "INT64", [None, 1])],
    )
    model.graph.node[0].attribute.extend(attributes(axes=[1], keepdims=1))
    numbers = pd.DataFrame([[1, 2, 2**53 + 1], [3, 2, 1]], columns=COLUMNS)
    served = registry(mlflow_onnx(), model, numbers, types=("long",) * 3)
    assert served.native is None
    assert_all_ways_answer(served, numbers, [2**53 + 1, 3])


def attributes(**values):
    from onnx import helper

    return [helper.make_attribute(name, value) for name, value in values.items()]


def test_a_graph_that_mlflow_answers_with_several_numbers_a_row_does_not_load(registry, frame):
    with pytest.raises(ValueError, match="the model answers 3 predictions to 1 rows"):
        registry(mlflow_onnx(), linear("FLOAT", np.float32, width=3), frame)


def test_numbers_that_32_bits_do_not_hold_are_refused(registry, frame):
    served = registry(mlflow_onnx(), linear("FLOAT", np.float32), frame)
    with pytest.raises(BadRequest, match="a: must be less than or equal to"):
        served.predict(b'{"a": 1e39, "b": 0, "c": 0}')


def test_a_batch_run_scores_what_a_row_is_answered(registry, frame, tmp_path):
    served = registry(mlflow_onnx(), linear("FLOAT", np.float32), frame)
    assert score(served, frame, tmp_path) == pytest.approx(through_pyfunc(served, frame), abs=1e-6)


def score(served, frame, directory):
    frame.to_parquet(directory / "rows.parquet")
    part = Part(str(directory / "rows.parquet"), 0, 1, len(frame), str(directory / "scored.parquet"))
    score_part(SimpleNamespace(s3_endpoint_url=None), scoring(served), part)
    return pd.read_parquet(directory / "scored.parquet")["prediction"].tolist()


@pytest.mark.parametrize("shape", ["a number a row", "a column", "several columns"])
def test_a_module_of_pytorch_is_answered_without_a_frame(registry, frame, tmp_path, shape):
    torch = pytest.importorskip("torch", reason="PyTorch is too large for the lock: pip install torch")
    import mlflow.pytorch

    torch.manual_seed(1)
    dropout = torch.nn.Dropout(0.5)  # does nothing in evaluation mode
    module = torch.nn.Sequential(torch.nn.Linear(3, 3 if shape == "several columns" else 1), dropout)
    if shape == "a number a row":
        module.append(torch.nn.Flatten(0))
    served = registry(mlflow.pytorch, module, frame, serialization_format="pickle")
    assert served.native is not None
    assert served.native.single_precision
    expected = through_pyfunc(served, frame)
    assert_all_ways_answer(served, frame, expected)
    module.eval()
    with torch.no_grad():
        offline = module(torch.tensor(frame.to_numpy(), dtype=torch.float32)).numpy()
    assert np.asarray(expected).ravel() == pytest.approx(offline.ravel(), abs=1e-6)
    scored = score(served, frame, tmp_path)
    assert np.stack(scored).ravel() == pytest.approx(offline.ravel(), abs=1e-6)

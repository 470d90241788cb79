"""Models and examples that somebody brings: what a file is, and what rows say of their columns. Nothing is loaded."""

import json
import math
import zipfile

import pytest
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.registry import example as examples
from shopfloor.registry import sources
from shopfloor.settings import Settings


def written(tmp_path, content):
    file = tmp_path / "rows.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


ROWS = [{"age": 1, "plan": "a"}, {"age": None, "plan": "b"}]


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        [{"age": 1, "plan": "a"}, {"plan": "b"}],
        {"dataframe_records": ROWS},
        {"dataframe_split": {"columns": ["age", "plan"], "data": [[1, "a"], [None, "b"]]}},
        {"columns": ["age", "plan"], "index": [0, 1], "data": [[1, "a"], [None, "b"]]},
    ],
)
def test_rows_are_read_in_each_form_that_people_have_them_in(tmp_path, content):
    assert examples.read(written(tmp_path, content)) == ROWS


def test_one_object_is_one_row(tmp_path):
    assert examples.read(written(tmp_path, {"age": 1, "plan": "a"})) == ROWS[:1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n {"a" 2}]', r"rows.json:2: this is no JSON"),
        ('[{"a": NaN}]', r"rows.json is no JSON: NaN is no value of JSON"),
        ("[]", r"rows.json holds no rows"),
        ("3", r"rows.json holds no rows"),
        ("[1, 2]", r"rows.json holds no rows"),
        ("[{}]", r"rows.json holds no row with a column"),
        ([{"a": 1}, {"a": [1, 2]}], r"'a' of row 2 is a list"),
        ([{"a": {"b": 1}}], r"'a' of row 1 is an object"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, r"not as many values as there are columns"),
    ],
)
def test_what_holds_no_rows_is_named(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        examples.read(written(tmp_path, content))


def test_an_example_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"There is no file .*none.json"):
        examples.read(tmp_path / "none.json")


def test_a_number_is_a_double_also_where_all_are_whole(tmp_path):
    rows = examples.read(
        written(tmp_path, [{"age": 1, "plan": "a", "paid": True}, {"age": 2, "plan": None, "paid": False}])
    )
    assert examples.types_of(tmp_path, rows, {}) == {"age": "double", "plan": "string", "paid": "boolean"}
    assert examples.types_of(tmp_path, rows, {"age": "long"})["age"] == "long"


@pytest.mark.parametrize(
    ("rows", "known", "message"),
    [
        ([{"a": 1}, {"a": "x"}], {}, r"'a' holds a number and a text"),
        ([{"a": True}, {"a": 1}], {}, r"'a' holds a boolean and a number"),
        ([{"a": None}], {}, r"'a' has no value in any row"),
        ([{"a": "x"}], {"a": "double"}, r"'a' holds a text, and the model takes a number \(double\)"),
    ],
)
def test_a_column_without_one_type_is_named(tmp_path, rows, known, message):
    with pytest.raises(UsageError, match=message):
        examples.types_of(tmp_path / "rows.json", rows, known)


def test_a_model_that_knows_its_type_takes_a_column_without_values(tmp_path):
    assert examples.types_of(tmp_path, [{"a": None}], {"a": "double"}) == {"a": "double"}


def test_columns_come_in_the_order_of_the_models(tmp_path):
    assert [list(row) for row in examples.in_order(tmp_path, ROWS, ["plan", "age"], 2, "m")] == [["plan", "age"]] * 2
    assert examples.in_order(tmp_path, ROWS, None, 2, "m") == ROWS


@pytest.mark.parametrize(
    ("names", "count", "message"),
    [
        (["age", "city"], 2, r"it lacks 'city' and has 'plan', which it does not take. It takes 'age', 'city'"),
        (None, 3, r"has 2 columns \('age', 'plan'\), and m takes 3"),
    ],
)
def test_other_columns_than_the_models_are_named(tmp_path, names, count, message):
    with pytest.raises(UsageError, match=message):
        examples.in_order(tmp_path / "rows.json", ROWS, names, count, "m")


def test_a_missing_number_is_nan_and_another_missing_value_is_none(tmp_path):
    frame = examples.frame_of(ROWS, {"age": "double", "plan": "string"})
    assert math.isnan(frame["age"][1])
    assert frame["plan"].tolist() == ["a", "b"]
    assert examples.frame_of([{"a": True}, {"a": None}], {"a": "boolean"})["a"].tolist() == [True, None]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("m.bin", b"tree\nversion=v4\n", "lightgbm"),
        ("m.bin", b'{"learner":{}}', "xgboost"),
        ("m.bin", b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner", "xgboost"),
        ("m.bin", b"\x80\x04\x95", "pickle"),
        ("m.joblib", b"x\x9c", "pickle"),
        ("m.onnx", b"\x08\x08", "onnx"),
    ],
)
def test_a_file_is_what_it_holds(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    source = sources.fetch(Settings(project_root=tmp_path), str(tmp_path / name), tmp_path)
    assert (source.kind, source.file, len(source.digest)) == (kind, name, 64)


def test_an_archive_is_a_skops_file_where_it_has_a_schema(tmp_path):
    for name in ("schema.json", "other"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(name, "{}")
    assert sources.fetch(Settings(project_root=tmp_path), str(tmp_path / "schema.json"), tmp_path).kind == "skops"
    with pytest.raises(UsageError, match="is no model of a kind that is known here"):
        sources.fetch(Settings(project_root=tmp_path), str(tmp_path / "other"), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flavors: {python_function: {loader_module: mlflow.xgboost}}", None),
        ("flavors: {python_function: {loader_module: mlflow.sklearn, code: code}}", "brings code along"),
        ("flavors: {python_function: {loader_module: os}}", "is loaded by os"),
        (
            "flavors: {python_function: {loader_module: mlflow.sklearn}, sklearn: {skops_trusted_types: [os.system]}}",
            "holds the type os.system",
        ),
    ],
)
def test_a_model_of_mlflows_says_whether_it_may_run_code(tmp_path, text, message):
    (tmp_path / "MLmodel").write_text(text)
    source = sources.fetch(Settings(project_root=tmp_path), str(tmp_path), tmp_path)
    if message is None:
        sources.refuse_code(source)
    else:
        with pytest.raises(UsageError, match=message):
            sources.refuse_code(source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flavors: {sklearn: {}}", "has no python_function flavor"),
        ("flavors: [", "MLmodel is broken"),
        ("name: churn", "names no flavors"),
        ("", "MLmodel is broken"),
    ],
)
def test_a_broken_model_of_mlflows_is_named(tmp_path, text, message):
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(UsageError, match=message):
        sources.fetch(Settings(project_root=tmp_path), str(tmp_path), tmp_path)

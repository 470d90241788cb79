"""What is made of a table: how its file is read, what each column is for, what is refused, and what is written."""

import datetime as dt
import random
import subprocess
import sys

import pandas as pd
import pytest
from shopfloor.data import building, quality, sniffing
from shopfloor.data import profile as profiles
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.flows import new as beginnings
from shopfloor.flows.drafting import draft
from shopfloor.flows.new import new
from shopfloor.records import Checks, FeatureSet
from shopfloor.settings import Settings
from shopfloor.training.trial import try_contract
from shopfloor.use_case import load_use_case

import pipelines
from tests.support.artifacts import Recorder
from tests.support.project import ROOT as PROJECT
from tests.support.project import dvc, git

ROWS = 60
DRAWN = random.Random(3).choices(range(12), k=ROWS)


def table(tmp_path, columns, name="rows.csv", separator=",", encoding="utf-8"):
    """Write columns, name to a function of the row's number or one value for all, and return the file."""
    values = {name: value if callable(value) else lambda _, value=value: value for name, value in columns.items()}
    lines = [separator.join(columns)]
    lines += [separator.join(str(value(number)) for value in values.values()) for number in range(ROWS)]
    file = tmp_path / name
    file.write_text("\n".join(lines) + "\n", encoding=encoding)
    return file


def drafted(tmp_path, columns, target="target", task=None, time=None, leave_out=(), days=()):
    rows = sniffing.read(table(tmp_path, columns), tmp_path)
    return draft(profiles.profile(rows), rows.count, target, task, time, list(leave_out), list(days))


AGE = {"age": lambda n: n % 7}
COIN = {"target": lambda n: n % 2}


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8"), (";", "latin-1"), ("\t", "utf-16"), ("|", "utf-8-sig")]
)
def test_a_csv_is_read_whatever_separates_and_encodes_it(tmp_path, separator, encoding):
    columns = {"größe": lambda n: n / 2, "plan": lambda n: "äb"[n % 2], "paid": lambda n: ("yes", "no")[n % 2]}
    rows = sniffing.read(table(tmp_path, columns, separator=separator, encoding=encoding), tmp_path)
    assert rows.kinds == {"größe": "number", "plan": "text", "paid": "boolean"}
    assert rows.count == ROWS


def test_json_lines_are_read_with_their_times(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1, "at": "2026-01-31T10:00:00.000"}\n{"a": null, "at": null}\n')
    assert sniffing.read(file, tmp_path).kinds == {"a": "whole", "at": "time"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"rows.csv is empty"),
        ("a,b\n", r"rows.csv has a header and no rows"),
        ("a\n1\n2\n", r"rows.csv has one column"),
        ("a,b,A\n1,2,3\n", r"two columns have the name 'a'"),
        ("a,,b\n1,2,3\n", r"column 2 has no name"),
        ("a,b\n1,inf\n2,3\n", r"'b' is infinite in row 1"),
        ("a,b\n" + "1,2\n" * 40 + "x,2\n", r"'a' holds numbers, and 'x' in row 41"),
        ("a,b\n2024-01-02,1\n01/02/2024,2\n2.1.2024,3\n", r"'a' holds dates that are not all written alike"),
    ],
)
def test_a_file_that_makes_no_table_is_named_with_line_or_column(tmp_path, text, message):
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        sniffing.read(file, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="There is no file"):
        sniffing.read(tmp_path / "none.csv", tmp_path)


@pytest.mark.parametrize(
    ("target", "task"),
    [
        (lambda n: n % 2, "binary"),
        (lambda n: ("yes", "no")[n % 2], "binary"),
        (lambda n: "abc"[n % 3], "multiclass"),
        (lambda n: n % 3, "multiclass"),
        (lambda n: n % 30 / 7, "regression"),
        (lambda n: n % 30, "regression"),
    ],
)
def test_the_task_is_told_by_the_target(tmp_path, target, task):
    assert drafted(tmp_path, AGE | {"target": target}).task == task


def test_what_is_no_input_is_left_out_with_the_reason(tmp_path):
    useless = {
        "number": lambda n: 1000 + n,
        "mail": lambda n: f"m{n}@example.org",
        "country": "DE",
        "nothing": "",
    }
    made = drafted(tmp_path, AGE | useless | COIN)
    assert list(made.inputs) == ["age"]
    assert made.left_out["number"] == made.left_out["mail"] == "it is a key: each row has another value"
    assert made.left_out["country"] == "it is 'DE' in every row"
    assert made.left_out["nothing"] == "it has no value"


def test_rows_of_one_thing_stay_together(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "FEW", 5)
    made = drafted(tmp_path, AGE | {"customer_id": lambda n: 100 + n // 3} | COIN)
    assert made.split == {"by": "group", "column": "customer_id", "test": 0.2, "validate": 0.2, "seed": 1}
    assert "customer_id" in made.left_out


def test_a_time_splits_by_whole_days(tmp_path):
    days = [dt.date(2026, 1, day) for day in (1, 18, 24, 28)]
    made = drafted(tmp_path, AGE | {"seen": lambda n: f"2026-01-{1 + n % 28:02}"} | COIN, time="seen", days=days)
    assert made.split["train"] == ["2026-01-01", "2026-01-18"]
    assert made.split["test"] == ["2026-01-24", "2026-01-29"]


def test_the_gates_ask_for_more_than_no_model_is_worth(tmp_path):
    assert drafted(tmp_path, AGE | COIN).gates["log_loss"][:2] == ("max", 0.6931)
    gates = drafted(tmp_path, AGE | {"target": lambda n: "aab"[n % 3]}).gates
    assert gates["accuracy"] == ("min", 0.6667, "always 'a'")


@pytest.mark.parametrize(
    ("target", "task", "message"),
    [
        (lambda n: "a", None, r"is 'a' in every row: there is nothing to tell apart"),
        (lambda n: n, None, r"is a key: each row has another value"),
        (lambda n: f"t{n}", None, r"is a key: each row has another value"),
        (lambda n: "" if n == 3 else n % 2, None, r"has no value in 1 of 60 rows"),
        (lambda n: "b" if n == 3 else "ac"[n % 2], None, r"The class 'b' of the target 'target' has 1 of 60 rows"),
        (lambda n: n % 3, "binary", r"is 0, 1, 2, and not 0 or 1"),
        (lambda n: "ab"[n % 2], "regression", r"is a text, and no number"),
        (lambda n: n % 30 / 7, "multiclass", r"is a number; classes are"),
    ],
)
def test_a_target_that_makes_no_model_is_refused(tmp_path, target, task, message):
    with pytest.raises(UsageError, match=message):
        drafted(tmp_path, AGE | {"target": target}, task=task)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (AGE | COIN, {"target": "label"}, r"--target names 'label', which is no column: there are 'age', 'target'"),
        (AGE | COIN, {"leave_out": ["sex"]}, r"--leave-out names 'sex'"),
        (AGE | COIN, {"leave_out": ["age"]}, r"No column is left to predict 'target' by: 'age': you said so"),
        ({"prediction": lambda n: n % 7} | COIN, {}, r"The name of the column 'prediction' is reserved"),
    ],
)
def test_a_table_that_makes_no_model_is_refused(tmp_path, columns, options, message):
    with pytest.raises(UsageError, match=message):
        drafted(tmp_path, columns, **options)


@pytest.mark.parametrize(
    ("leak", "target", "classified"),
    [
        (lambda n: (n % 2) * 5 + n % 3, lambda n: n % 2, True),
        (lambda n: ("gone", "here", "left", "stays")[n % 4], lambda n: n % 2, True),
        (lambda n: 2 * (n % 30) + 1, lambda n: n % 30, False),
    ],
)
def test_a_column_that_alone_says_the_target_is_found(tmp_path, leak, target, classified):
    rows = sniffing.read(table(tmp_path, AGE | {"leak": leak, "target": target}), tmp_path)
    assert [name for name, _ in profiles.leaks(rows, ["age", "leak"], "target", classified)] == ["leak"]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A project of its own with git and DVC, whose use cases can be imported."""
    root = tmp_path / "project"
    (root / "pipelines").mkdir(parents=True)
    git(root, "init")
    dvc(root, "init", "--quiet")
    monkeypatch.setattr(pipelines, "__path__", [*pipelines.__path__, str(root / "pipelines")])
    return Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / "artifacts"))


def begin(settings, name, file, target="target", **options):
    chosen = {"task": None, "time": None, "leave_out": (), "keep": (), "leave_out_unlabelled": False} | options
    return new(settings, name, file, target, **chosen, progress=lambda text: None)


CUSTOMERS = {
    "customer_id": lambda n: 1000 + n,
    "age": lambda n: 18 + n % 7,
    "income": lambda n: "" if n % 5 == 0 else n % 11 / 2,
    "plan": lambda n: ("basic", "über", "")[n % 3],
    "paid": lambda n: ("yes", "no")[n % 4 < 2],
    "signed": lambda n: f"2026-01-{1 + n % 28:02} 10:30:00",
}


@pytest.mark.parametrize(
    ("task", "target"),
    [
        ("binary", lambda n: ("yes", "no")[DRAWN[n] % 2]),
        ("multiclass", lambda n: "abc"[DRAWN[n] % 3]),
        ("regression", lambda n: DRAWN[n] + n % 5 / 3),
    ],
)
def test_what_is_written_passes_its_own_checks_and_trains(settings, tmp_path, task, target):
    name = f"new_{task}"
    made = begin(settings, name, table(tmp_path, CUSTOMERS | {"target": target}))
    assert (made.task, list(made.inputs)) == (task, ["age", "income", "plan", "paid", "signed"])
    root = settings.project_root
    assert "data/.gitignore" in git(root, "status", "--porcelain", "--untracked-files=all")
    folder = root / "pipelines" / name
    for command in (("check",), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", PROJECT / "pyproject.toml", folder]
        assert subprocess.run(ruff, capture_output=True, text=True, check=False).returncode == 0
    check_and_train(settings, name)


def check_and_train(settings, name):
    """Let a use case check its data, build its features and train once."""
    root = settings.project_root
    tables = str(root / "data" / name)
    checks = Recorder("checks")
    quality.validate(settings, name, tables, checks, Recorder())
    read = Checks.model_validate_json((root / checks.uri / "checks.json").read_text())
    assert [one for one in read.checks if not one.success] == []
    features = Recorder("features")
    building.build(settings, name, tables, features, Recorder())
    record = FeatureSet.model_validate_json((root / features.uri / "feature_set.json").read_text())
    train, validate = (pd.read_parquet(f"{features.uri}/{one}.parquet") for one in ("train", "validate"))
    columns = [*record.features, record.target]
    try_contract(load_use_case(settings, name), train[columns], validate[columns], record.target)


NUMBERS = {
    "embedding": lambda n: [n % 7 / 2, float(DRAWN[n]), 1.0],
    "steps": lambda n: list(range(n % 3)),
    "gaps": lambda n: [1.0, None if n == 5 else 2.0],
    "far": lambda n: [1.0, float("inf") if n == 5 else 2.0],
    "words": lambda n: ["a", "b"],
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_lists_of_equally_many_numbers_are_inputs_and_other_lists_are_named(settings, tmp_path, form):
    columns = NUMBERS | {"target": lambda n: DRAWN[n] + n % 5 / 3}
    if form == "jsonl":  # which has no infinity
        columns |= {"far": columns["gaps"]}
    frame = pd.DataFrame({name: [value(n) for n in range(ROWS)] for name, value in columns.items()})
    file = tmp_path / f"rows.{form}"
    if form == "parquet":
        frame.to_parquet(file)
    else:
        frame.to_json(file, orient="records", lines=True)

    made = begin(settings, f"vectors_{form}", file)

    assert made.inputs == {"embedding": "lists"}
    assert made.left_out == {
        "steps": "its lists are of 0 to 2 numbers: an estimator takes one length",
        **dict.fromkeys(["gaps", "far", "words"], "it holds objects, bytes, or lists of more than finite numbers"),
    }
    check_and_train(settings, f"vectors_{form}")


def test_nothing_is_written_over_and_a_killed_command_goes_on(settings, tmp_path, monkeypatch):
    file = table(tmp_path, AGE | COIN)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(beginnings, "track", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(settings, "again", file)
    assert not (settings.project_root / "pipelines" / "again").exists()
    begin(settings, "again", file)
    case = settings.project_root / "pipelines/again/use_case.yaml"
    case.write_text(case.read_text() + "# mine\n")
    with pytest.raises(UsageError, match=r"pipelines/again is there already"):
        begin(settings, "again", file)
    assert case.read_text().endswith("# mine\n")
    data = settings.project_root / "data" / "taken"
    data.mkdir()
    (data / "rows.parquet").write_text("theirs")
    with pytest.raises(UsageError, match=r"data/taken is there already, with other data"):
        begin(settings, "taken", file)
    assert (data / "rows.parquet").read_text() == "theirs"


def test_a_leak_is_refused_unless_somebody_says_that_it_is_none(settings, tmp_path):
    file = table(tmp_path, AGE | {"ended": lambda n: n % 2 * 5 + n % 3} | COIN)
    message = r"The column 'ended' alone says 'target' almost perfectly \(100.0% balanced accuracy\)"
    with pytest.raises(UsageError, match=message):
        begin(settings, "leaking", file)
    assert not (settings.project_root / "pipelines" / "leaking").exists()
    assert not (settings.project_root / "data" / "leaking").exists()
    assert begin(settings, "kept", file, keep=("ended",)).inputs == {"age": "whole", "ended": "whole"}
    assert begin(settings, "left", file, leave_out=("ended",)).inputs == {"age": "whole"}


def test_a_time_makes_a_split_that_the_use_case_takes(settings, tmp_path):
    file = table(tmp_path, AGE | {"seen": lambda n: f"2026-01-{1 + n % 28:02} 10:00:00"} | COIN)
    begin(settings, "timed", file, time="seen")
    case = load_use_case(settings, "timed")
    assert case.features.time == "seen"
    assert str(case.features.split.test[1]) == "2026-01-29"
    with pytest.raises(UsageError, match="The column 'age' holds no times"):
        begin(settings, "untimed", file, time="age")


def test_rows_without_a_target_are_left_out_where_somebody_says_so(settings, tmp_path):
    file = table(tmp_path, CUSTOMERS | {"target": lambda n: "" if n % 10 == 3 else DRAWN[n] % 3})
    with pytest.raises(UsageError, match="has no value in 6 of 60 rows. Add --leave-out-unlabelled"):
        begin(settings, "partly", file)
    made = begin(settings, "partly", file, leave_out_unlabelled=True)
    assert (made.task, made.unlabelled) == ("multiclass", 6)
    features = Recorder("features")
    building.build(settings, "partly", str(settings.project_root / "data/partly"), features, Recorder())
    record = FeatureSet.model_validate_json((settings.project_root / features.uri / "feature_set.json").read_text())
    assert (sum(record.rows.values()), record.classes) == (54, [0, 1, 2])


def test_a_regression_with_a_time_must_be_nearer_than_the_last_value_of_the_day_before(settings, tmp_path):
    columns = AGE | {"seen": lambda n: f"2026-01-{1 + n // 3:02} {n % 3 + 10}:00:00", "target": lambda n: n + n % 3 / 2}
    begin(settings, "last", table(tmp_path, columns), time="seen")
    case = load_use_case(settings, "last")
    # The last of a day is the first of the next, and so 0, 1.5 and 3 away from its rows.
    assert case.gates.metrics["mae"].max == pytest.approx(1.5)
    assert case.gates.metrics["r2"].min == 0

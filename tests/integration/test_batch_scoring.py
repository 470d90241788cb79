"""Batch scoring on a real Ray cluster with a real registry: as the endpoint predicts, each row once, also killed."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.flows.submission import Submission
from shopfloor.flows.submit import submit
from shopfloor.records import Scored
from shopfloor.serving import batch
from shopfloor.serving.model.loading import load_model

from tests.support.artifacts import Recorder
from tests.support.endpoints import USE_CASE, register_models, rows_of
from tests.support.project import ROOT
from tests.support.waiting import wait_until

CASE = "toy_batch"

GROUPS, ROWS = 6, 400
SCORE = """
import contextlib, sys, threading
from pathlib import Path
from types import SimpleNamespace
from shopfloor.serving import batch
from shopfloor.settings import load_settings
batch.ROWS_PER_PART = int(sys.argv[1])
if sys.argv[2] == "workers":  # nobody else would be so quick
    batch._scored_meanwhile = lambda *_: contextlib.nullcontext(threading.Event())
scored = SimpleNamespace(name="scored", uri="", metadata={})
batch.score(load_settings(), *sys.argv[3:], scored)
print(Path(scored.uri, "scored.json").read_text().replace(chr(10), ""))
"""


@pytest.fixture(scope="module")
def settings(project):
    settings = project(**{CASE: USE_CASE.format(name=CASE)})
    for place in ("components", "pipelines/__init__.py", "pipelines/batch_scoring.py"):
        (settings.project_root / place).symlink_to(ROOT / place)
    return settings


@pytest.fixture(scope="module")
def frame(settings):
    import mlflow

    frame, _ = register_models(settings, CASE, versions=1, rows=GROUPS * ROWS)
    mlflow.MlflowClient(settings.tracking_uri).set_registered_model_alias(CASE, "champion", "1")
    return frame


@pytest.fixture
def data(frame, tmp_path):
    """Two files of several row groups, with a column that the model does not know."""
    directory = tmp_path / "rows"
    directory.mkdir()
    table = pa.Table.from_pandas(frame.assign(id=range(len(frame))), preserve_index=False)
    half = len(table) // 2
    for number in range(2):
        part = table.slice(number * half, half)
        pq.write_table(part, directory / f"{number}.parquet", row_group_size=ROWS)
    (directory / "_SUCCESS").write_text("")
    return directory


def command(*arguments, rows_per_part=ROWS, by="all"):
    return [sys.executable, "-c", SCORE, str(rows_per_part), by, *map(str, arguments)]


def score(settings, *arguments, rows_per_part=ROWS, by="all"):
    """Score in a process of its own, as the step does: Ray Data leaves threads behind that know one cluster only."""
    process = subprocess.run(
        command(*arguments, rows_per_part=rows_per_part, by=by),
        env=os.environ | settings.environment(),
        cwd=settings.project_root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return Scored.model_validate_json(process.stdout.strip().splitlines()[-1])


def scoring_workers(settings):
    """Return the processes on the cluster that score; those of earlier runs have ended with them."""
    answer = requests.get(f"{settings.ray_dashboard_url}/api/v0/actors", timeout=10, headers=settings.ray_headers())
    actors = answer.json()["data"]["result"]["result"]
    return [psutil.Process(a["pid"]) for a in actors if a["state"] == "ALIVE" and "MapWorker" in a["class_name"]]


def refused(settings, *arguments):
    return batch.score(settings, *map(str, arguments), Recorder("scored"))


def result(place):
    files = sorted(Path(place).glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pandas()


class Silent:
    """Shows nothing of a run."""

    def begin(self, *_):
        pass

    step = begin


def submitted(settings, data, out):
    """Score by the pipeline, on the local engine."""
    parameters = [f"data={data}", f"predictions={out}"]
    outcome = submit(settings, Submission(file="pipelines/batch_scoring.py", use_case=CASE, given=parameters), Silent())
    assert (outcome.state, [step.name for step in outcome.steps]) == ("succeeded", ["complete", "score"])
    assert outcome.message.endswith(f"rows are scored with version 1 of {CASE}: {outcome.scored.predictions}")
    return outcome.scored


def test_the_predictions_are_those_of_the_endpoint(settings, frame, data, tmp_path):
    record = submitted(settings, data, tmp_path / "out")

    assert (record.rows, record.use_case, record.version, record.data) == (len(frame), CASE, "1", str(data))
    found = result(record.predictions)
    assert list(found["id"]) == list(range(len(frame)))
    assert set(found["model_version"]) == {"1"}
    model = load_model(settings.tracking_uri, CASE, "1")
    for number, row in list(enumerate(rows_of(frame)))[::97]:
        online = json.loads(model.predict(json.dumps(row).encode()))["prediction"]
        assert found["prediction"][number] == pytest.approx(online, abs=1e-6)
    offline = model.pyfunc.predict(frame)
    assert np.abs(found["prediction"].to_numpy() - offline).max() <= 1e-6


def test_a_worker_gets_a_booster_ready_made_without_mlflow_and_scikit_learn(settings, frame, tmp_path):
    model = load_model(settings.tracking_uri, CASE, "1")
    assert model.native.portable
    (tmp_path / "model").write_bytes(pickle.dumps(batch.scoring(model)))
    code = """if True:
        import sys; from pathlib import Path; import numpy as np; from shopfloor.serving import batch
        model = batch.Scorer(None, "", "", Path(sys.argv[1]).read_bytes())._scoring
        print(model.matrix(np.zeros((1, len(model.columns)), np.float32))[0], {"mlflow", "sklearn"} & set(sys.modules))
        import sklearn.base
    """
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model"], capture_output=True, text=True, check=True
    )
    prediction, imported = process.stdout.strip().split(" ", 1)
    assert float(prediction) == pytest.approx(model.native.matrix(np.zeros((1, len(frame.columns)), np.float32))[0])
    assert imported == "set()"


def test_what_was_scored_is_not_scored_again_and_changed_data_get_predictions_of_their_own(
    settings, frame, data, tmp_path
):
    record = score(settings, CASE, "1", data / "0.parquet", tmp_path / "out")
    before = {file.name: file.stat().st_mtime_ns for file in os.scandir(record.predictions)}
    os.unlink(f"{record.predictions}/part-00002.parquet")

    score(settings, CASE, "1", data / "0.parquet", tmp_path / "out")

    after = {file.name: file.stat().st_mtime_ns for file in os.scandir(record.predictions)}
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"part-00002.parquet"}
    pq.write_table(pa.Table.from_pandas(frame.head(7), preserve_index=False), data / "0.parquet")
    changed = score(settings, CASE, "1", data / "0.parquet", tmp_path / "out")
    assert changed.rows == 7
    assert changed.predictions != record.predictions


def test_a_killed_run_goes_on_and_leaves_no_half_part(settings, frame, tmp_path):
    out, parts = tmp_path / "out", 300
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=len(table) // parts)
    arguments = (CASE, "1", tmp_path / "rows.parquet", out)
    process = subprocess.Popen(
        command(*arguments, rows_per_part=1, by="workers"),
        env=os.environ | settings.environment(),
        cwd=settings.project_root,
        start_new_session=True,
    )
    wait_until(lambda: len(list(out.rglob("part-*.parquet"))) >= 2, every_s=0.02)
    workers = scoring_workers(settings)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    assert workers
    assert not psutil.wait_procs(workers, timeout=60)[1]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("part-*.parquet")}
    assert 2 <= len(before) < parts

    again = score(settings, *arguments, rows_per_part=1)

    assert again.rows == len(frame)
    after = {file: file.stat().st_mtime_ns for file in out.rglob("part-*.parquet")}
    assert len(after) == parts
    assert before.items() <= after.items()
    found = result(next(iter(after)).parent)
    offline = load_model(settings.tracking_uri, CASE, "1").pyfunc.predict(frame)  # what the workers answer too
    assert np.abs(found["prediction"].to_numpy() - offline).max() <= 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns("rate_0"), r"1\.parquet has no column 'rate_0'"),
        (
            lambda table: table.set_column(
                table.schema.get_field_index("rate_0"), "rate_0", pa.array(["x"] * len(table))
            ),
            r"1\.parquet: column 'rate_0' is string",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_named_before_anything_is_scored(settings, data, tmp_path, change, message):
    pq.write_table(change(pq.read_table(data / "1.parquet", partitioning=None)), data / "1.parquet")
    with pytest.raises(UsageError, match=message):
        refused(settings, CASE, "1", data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_parquet_or_not_there_is_one_line(settings, frame, data, tmp_path):
    (data / "1.parquet").write_text("id,rate_0\n")
    with pytest.raises(UsageError, match=r"1\.parquet is no parquet file") as raised:
        refused(settings, CASE, "1", data, tmp_path / "out")
    assert "\n" not in str(raised.value)
    with pytest.raises(NotFoundError, match=re.escape(f"There is no data set {tmp_path}/none")):
        refused(settings, CASE, "1", f"{tmp_path}/none", "")
    with pytest.raises(NotFoundError, match="There is no version 9 of a model 'toy_batch'"):
        refused(settings, CASE, "9", data, "")

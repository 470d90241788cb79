"""Sixteen trials on the running Ray cluster against the same space in Optuna alone, in one process.

Both read the same rows (as many as the flights have, synthetic), both stop weak trials early by successive halving.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.table import Row
from tests.support.project import ROOT
from tests.support.waiting import free_port, wait_for_port

TRIALS = 16
OURS = """
import json, sys, time
from types import SimpleNamespace as N
from shopfloor.training import tuning
from shopfloor.settings import Settings
settings = Settings.model_validate_json(sys.argv[1])
import ray.tune, ray.tune.search.optuna, ray.train.xgboost, pandas, xgboost
began = time.perf_counter()
tuning.tune(settings, "flight_delays", sys.argv[2], 16, N(name="model", uri="", metadata={}),
            N(name="search", uri="", metadata={}), N(log_metric=lambda *_: None))
print(json.dumps({"seconds": time.perf_counter() - began}))
"""
PEER = """
import json, sys, time
import optuna, pandas as pd, xgboost as xgb
from pathlib import Path
from shopfloor.settings import Settings
from shopfloor.training.trial import Context
from shopfloor.training.tuning import _space
from shopfloor.use_case import load_use_case
settings = Settings.model_validate_json(sys.argv[1])
use_case = load_use_case(settings, "flight_delays")
model = use_case.code("model")
optuna.logging.set_verbosity(optuna.logging.ERROR)
began = time.perf_counter()
features = Path(sys.argv[2])
names = list(json.loads((features / "feature_set.json").read_text())["features"])
frames = [pd.read_parquet(features / f"{part}.parquet", columns=[*names, "late"]) for part in ("train", "validate")]
data = model.prepare(*frames, "late")
space = _space(use_case)

def objective(trial):
    params = {name: trial._suggest(name, distribution) for name, distribution in space.items()}
    seen = {}
    def receive(round_, numbers, booster):
        seen.update(numbers)
        if round_ in (20, 80):
            trial.report(numbers["validate-logloss"], round_)
            if trial.should_prune():
                raise optuna.TrialPruned
    model.train(params, data, Context(receive, rounds=100, threads=2))
    return seen["validate-logloss"]

pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=20, reduction_factor=4)
study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=2013), pruner=pruner)
study.optimize(objective, n_trials=16)
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


def measure() -> list[Row]:
    """Return the row of the search."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory(prefix="sf-") as sockets:
        features = Path(directory) / "features"
        _rows(features)
        port = free_port()
        head = subprocess.Popen(
            [
                *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--include-dashboard=false"),
                *("--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=4"),
                *(f"--temp-dir={sockets}", f"--ray-client-server-port={free_port()}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        try:
            wait_for_port(port)
            time.sleep(10)  # a head that has just begun to answer is still starting its workers
            settings = {
                "project_root": str(ROOT),
                "state_dir": directory,
                "artifact_root": f"{directory}/artifacts",
                "ray_address": f"127.0.0.1:{port}",
            }
            ours, peer = (_seconds(script, json.dumps(settings), features) for script in (OURS, PEER))
        finally:
            import psutil

            family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
            for process in family:
                process.terminate()
            for process in psutil.wait_procs(family, timeout=10)[1]:
                process.kill()
    return [
        Row(
            name=f"search, {TRIALS} trials of 100 rounds, 217,680 rows",
            ours=f"{ours:.1f} s",
            peer=f"Optuna alone {peer:.1f} s",
            ratio=ours / peer,
            target="<= 2 x",
            ok=ours <= 2 * peer,
        )
    ]


def _rows(out: Path) -> None:
    import numpy as np
    import pandas as pd

    out.mkdir(parents=True)
    random = np.random.default_rng(1)
    names = [f"f{number}" for number in range(24)]
    for split, rows in (("train", 217_680), ("validate", 26_966)):
        frame = pd.DataFrame(random.normal(size=(rows, len(names))), columns=names)
        chance = 1 / (1 + np.exp(1.6 - frame.f0 - 0.5 * frame.f1 * frame.f2))
        frame["late"] = (random.random(rows) < chance).astype("int8")
        frame.to_parquet(out / f"{split}.parquet")
    record = {
        "feature_service": "flight_delays",
        "features": dict.fromkeys(names, "float"),
        "optional": [],
        "target": "late",
        "entities": [],
        "rows": {"train": 217_680, "validate": 26_966},
    }
    (out / "feature_set.json").write_text(json.dumps(record))


def _seconds(script: str, settings: str, features: Path) -> float:
    result = subprocess.run(
        [sys.executable, "-c", script, settings, str(features)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(json.loads(result.stdout.splitlines()[-1])["seconds"])

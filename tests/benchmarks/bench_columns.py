"""The endpoint of a scikit-learn pipeline with ten texts and ten numbers against FastAPI, and against its model alone.

Single rows go through 8 connections, and requests of 1,000 rows through 2. All answer in turn, round after round; a
figure is that of its best round.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from shopfloor.serving.deploy.rollout import deploy, endpoint

from tests.benchmarks.bench_serving import (
    BATCH_CONNECTIONS,
    BATCH_ROWS,
    ROUND_S,
    ROUNDS,
    WARM_UP_S,
    process,
    roomy_cluster,
)
from tests.benchmarks.load import load, repeat, request
from tests.benchmarks.table import Row
from tests.support.endpoints import CASE
from tests.support.project import BIN
from tests.support.waiting import free_port, wait_for

COLUMNS = 10
TREES = 50


def measure() -> list[Row]:
    """Return the figures of single rows and of many."""
    with contextlib.ExitStack() as stack:
        directory, settings = stack.enter_context(roomy_cluster())
        model, frame = register(settings.tracking_uri, directory)
        deploy(settings, CASE, champion="1")
        port = free_port()
        command = (str(BIN / "uvicorn"), "tests.benchmarks.columns_peer:app", "--port", str(port), "--no-access-log")
        peer = {"PEER_MODEL": str(directory / "model.skops"), "OMP_NUM_THREADS": "1"}
        wait_for(f"http://127.0.0.1:{port}/docs", stack.enter_context(process(directory, *command, **peer)))
        body = json.dumps(frame.iloc[0].to_dict()).encode()
        addresses = {"ours": f"{endpoint(settings, CASE)}/predict", "fastapi": f"http://127.0.0.1:{port}/predict"}
        rates = dict.fromkeys(addresses, 0.0)
        for number in range(1 + ROUNDS):
            for name, url in addresses.items():
                answers = load(url, body, ROUND_S if number else WARM_UP_S)
                rates[name] = max(rates[name], answers.requests_per_s if number else 0.0)
        rows = frame.head(BATCH_ROWS)
        split = {"columns": list(rows), "data": rows.to_numpy().tolist()}
        order = request(f"{endpoint(settings, CASE)}/invocations", json.dumps({"dataframe_split": split}).encode())
        repeat(order, WARM_UP_S, BATCH_CONNECTIONS)
        many = alone = 0.0
        for _ in range(ROUNDS):
            alone = max(alone, _in_a_loop(model, rows))
            many = max(many, BATCH_ROWS * repeat(order, ROUND_S, BATCH_CONNECTIONS).requests_per_s)
    return [
        _row("texts and numbers, requests/s against FastAPI", rates["ours"], rates["fastapi"], 0.9),
        # Client, proxy and the process that reads take their part of the two cores that the model has for itself.
        replace(
            _row("texts and numbers, rows/s in requests of 1,000 against the model in a loop", many, alone, 0.6),
            pending=True,
        ),
    ]


def register(tracking_uri: str, directory: Path) -> tuple[Any, Any]:
    """Register a classifier of ten numbers and ten texts; return it with its rows, and leave it in a file."""
    import mlflow
    import numpy as np
    import pandas as pd
    import skops.io
    from mlflow.models import infer_signature
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    random = np.random.default_rng(7)
    numbers = {f"number_{i}": random.normal(size=5000) for i in range(COLUMNS)}
    texts = {f"text_{i}": random.choice(list("abcdefgh"), 5000) for i in range(COLUMNS)}
    frame = pd.DataFrame(numbers | texts)
    label = frame["number_0"] + (frame["text_0"] == "a") + random.normal(size=len(frame)) > 0.5
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((StandardScaler(), list(numbers)), (encoder, list(texts)))
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=TREES)).fit(frame, label)
    skops.io.dump(model, directory / "model.skops")
    mlflow.set_tracking_uri(tracking_uri)
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(frame, model.predict_proba(frame)[:, 1]),
            input_example=frame.head(1),
            pyfunc_predict_fn="predict_proba",
            pip_requirements=["scikit-learn"],
            skops_trusted_types=skops.io.get_untrusted_types(file=directory / "model.skops"),
            registered_model_name=CASE,
        )
    return model, frame


def _in_a_loop(model: Any, rows: Any) -> float:
    """Return rows a second of the model alone."""
    rows_done, began = 0, time.perf_counter()
    while time.perf_counter() - began < ROUND_S:
        model.predict_proba(rows)
        rows_done += len(rows)
    return rows_done / (time.perf_counter() - began)


def _row(name: str, ours: float, peer: float, least: float) -> Row:
    ratio = ours / peer
    return Row(name, f"{ours:,.0f}", f"{peer:,.0f}", ratio, f">= {least:g}", ratio >= least)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for line in measure():
        print(line)
    sys.exit(0)

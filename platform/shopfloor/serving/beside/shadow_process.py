"""The process of a shadow: answers copies of requests with one version, and logs what it said.

Each line on stdin is a list of ids and of the lengths of the bodies that follow it; the answer is a line with how many
of them got which status. It begins with a line of orders, answered when the version is loaded, and ends where stdin
does, with everything logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from shopfloor.serving.beside import process as side_process

if TYPE_CHECKING:
    from shopfloor.serving.model.loading import ServedModel

logger = logging.getLogger(__name__)

TOGETHER = 8
"""Copies that are answered at once."""
REST_S = 0.001
"""Rest between such copies: Linux moves a live thread that waits for its core to one that falls idle, and late to one
that is busy with this process, whatever its priority. 125 copies in one go made the 99th percentile of the live answers
24 ms where this makes it 16, and no shadow 9."""


def main() -> None:
    """Answer until stdin ends."""
    side_process.give_way(entirely=True)
    replies = side_process.replies("shadow")

    def reply(content: object) -> None:
        replies.write(f"{json.dumps(content)}\n")
        replies.flush()

    from pathlib import Path

    from shopfloor.runs.mlflow import import_mlflow
    from shopfloor.serving.beside.shadow import Orders
    from shopfloor.serving.log_files import Prediction
    from shopfloor.serving.model.loading import load_model
    from shopfloor.serving.prediction_log import PredictionLog
    from shopfloor.settings import Settings

    stdin = sys.stdin.buffer
    orders = Orders.model_validate_json(stdin.readline())
    import_mlflow()
    model = load_model(orders.tracking_uri, orders.use_case, orders.version)
    log = None
    if orders.log_root is not None:
        place = Settings(project_root=Path("/"), s3_endpoint_url=orders.s3_endpoint_url)
        log = PredictionLog(orders.log_root, orders.use_case, f"{orders.replica}-shadow", place)
    try:
        reply("ready")
        while line := stdin.readline():
            copies = [(request_id, length, stdin.read(length)) for request_id, length in json.loads(line)]
            if any(len(body) < length for _, length, body in copies):
                break  # the replica was killed on the way
            statuses: Counter[int] = Counter()
            for start in range(0, len(copies), TOGETHER):
                some = copies[start : start + TOGETHER]
                began = time.perf_counter()
                answers = answer(model, [body for _, _, body in some])
                seconds = (time.perf_counter() - began) / len(some)
                for (request_id, _, body), (output, status) in zip(some, answers, strict=True):
                    entry = (request_id, time.time(), model.version, "shadow", "/predict", status, status >= 500)
                    if log is not None:
                        log.add(Prediction(*entry, seconds, body, output))
                statuses.update(status for _, status in answers)
                time.sleep(REST_S)
            reply(statuses)
    finally:
        if log is not None:
            log.close()


def answer(model: ServedModel, bodies: list[bytes]) -> list[tuple[bytes, int]]:
    """Return answer and status for each of several rows; what is no row of this version, or has no answer, is empty."""
    from shopfloor.serving.errors import BadRequest

    answers: list[tuple[bytes, int]] = [(b"", 422)] * len(bodies)
    rows = {}
    for number, body in enumerate(bodies):
        with contextlib.suppress(BadRequest):
            rows[number] = model.parse(body)
    if not rows:
        return answers
    try:
        for number, prediction in zip(rows, model.many(list(rows.values())), strict=True):
            answers[number] = model.answer(prediction), 200
    except Exception:
        logger.warning("version %s refused %d rows", model.version, len(rows), exc_info=True)
        for number in rows:
            answers[number] = b"", 500
    return answers


if __name__ == "__main__":
    main()

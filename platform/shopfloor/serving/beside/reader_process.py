"""The process that reads large bodies: rows, or a refusal, for each body on its stdin; it ends where that does."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import resource
import sys
from pathlib import Path

from shopfloor.serving.beside import process as side_process

logger = logging.getLogger(__name__)

MAX_BYTES = 2 * 1024**3
"""Memory of its own that it may take; what needs more is refused."""
ENOUGH_BYTES = 768 * 1024**2
"""Having taken so much, it ends behind its answer, for another one to begin small."""


def main() -> None:
    """Read until stdin ends."""
    gc.disable()  # what is parsed has no cycles, and millions of items to look for them in
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    stream = side_process.replies("reader")
    replies = stream.buffer

    from shopfloor.serving.beside.packing import pack
    from shopfloor.serving.beside.reader import READY
    from shopfloor.serving.errors import BadRequest
    from shopfloor.serving.protocols import mlflow_scoring, open_inference
    from shopfloor.serving.protocols.parsed import Form

    form_of = functools.lru_cache(maxsize=8)(Form.model_validate_json)
    stdin = sys.stdin.buffer
    replies.write(READY)
    replies.flush()
    while line := stdin.readline():
        order = json.loads(line)
        body = stdin.read(order["length"])
        parts: list[bytes] = []
        try:
            form = form_of(json.dumps(order["form"]))
            read = mlflow_scoring.read if order["protocol"] == "mlflow" else open_inference.read
            head, parts = pack(read(form, body, order["kind"]))
            reply = head | {"parts": [len(part) for part in parts]}
        except BadRequest as error:
            reply = {"refused": [error.status, error.message, error.fields]}
        except MemoryError:
            reply = {"refused": [413, "The body describes more than can be held."]}
        except Exception as error:
            logger.exception("a body of %d bytes cannot be read", len(body))
            reply = {"refused": [400, f"The body cannot be read: {type(error).__name__}."]}
        del body
        last = _peak_bytes() > ENOUGH_BYTES
        replies.write(json.dumps(reply | {"last": last}).encode() + b"\n")
        for part in parts:
            replies.write(part)
        replies.flush()
        gc.collect()
        if last:
            return


def _peak_bytes() -> int:
    """Return the most memory that this process has held; `getrusage` counts what its parent held at the fork too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()

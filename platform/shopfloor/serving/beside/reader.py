"""Large bodies, read in a process of their own: parsing holds the interpreter, and every other request with it.

The process knows no model. It gets a body and the form of what a version takes, and gives back the rows, or why they
are refused. It is started for the first large body, takes one at a time, and a bounded part of the memory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import threading
from typing import Any, Literal

from shopfloor.serving.beside import packing
from shopfloor.serving.beside import process as side_process
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.protocols.parsed import Form, Rows

logger = logging.getLogger(__name__)

LARGE_BYTES = 64 * 1024
"""A body of this size takes up to 30 ms to parse; a larger one is read here."""
READY = b"ready\n"
"""Line that the process writes first."""
Protocol = Literal["mlflow", "open"]


class Reader:
    """The process, as a replica asks it; its calls wait for one another."""

    def __init__(self) -> None:
        """Begin without a process."""
        self._process: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()

    def read(self, form: Form, protocol: Protocol, body: bytes, kind: str | int | None) -> Rows:
        """Return the rows of a body.

        Args:
            form: What the version takes.
            protocol: By which the body is read.
            body: As it came.
            kind: The content type of MLflow's protocol, the length of the JSON in the other.

        Raises:
            BadRequest: As the protocol's own `read`; 413 where the process cannot hold what the body describes, 503
                where there is none.
        """
        order = {"form": form.model_dump(), "protocol": protocol, "kind": kind, "length": len(body)}
        with self._asking:
            try:
                return self._ask(order, body)
            except (OSError, EOFError, ValueError) as error:
                logger.warning("the reader of large bodies has ended: %s", error)
                self._stop()
                raise BadRequest(413, "The body describes more than can be held.") from error

    def close(self) -> None:
        """Let the process end."""
        with self._asking:
            self._stop()

    def _ask(self, order: dict[str, Any], body: bytes) -> Rows:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = side_process.start("shopfloor.serving.beside.reader_process")
            if self._process.stdout is None or self._process.stdout.readline() != READY:
                logger.error("the reader of large bodies does not start, see Ray's log of the replica")
                raise BadRequest(503, "Large bodies cannot be read now; come back.")
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("it was started with pipes")
        stdin.write(json.dumps(order).encode() + b"\n")
        stdin.write(body)
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise EOFError("it says nothing")
        reply = json.loads(line)
        parts = [stdout.read(length) for length in reply.get("parts", [])]
        if reply["last"]:
            self._stop()
        if "refused" in reply:
            raise BadRequest(*reply["refused"])
        return packing.unpack(reply, parts)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

"""This process as a driver on the running Ray cluster, and what becomes of it when the cluster dies."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

from shopfloor.environment import NO_REPORTS
from shopfloor.errors import Failure, ServiceError, leave
from shopfloor.settings import Settings

_ENDED = Failure(
    "RayEnded", "Ray ended the step's process.", "See `shopfloor status` and the log of the step, then submit again."
)
"""What is true of a driver that ends without an exception: Ray's own code does so where it cannot go on."""
LOST_AFTER_S = 20.0
"""How long a cluster may be silent: its head can restart without a search being lost."""


@contextlib.contextmanager
def joined(settings: Settings) -> Iterator[None]:
    """Join the running Ray cluster for the time of the block.

    Raises:
        ServiceError: It does not answer.
    """
    if not answers(settings):
        raise ServiceError(f"The Ray cluster {settings.ray_address} does not answer.", "Start the stack: shopfloor up")
    # Ray's progress tables and its advice about them say nothing that the trial lines do not.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.update(NO_REPORTS)
    if settings.ray_address.startswith("127."):
        # A driver would look for a local head on the machine's outer address, where the embedded one is not.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Ray reads these when it is imported.
    os.environ.update({name: value for name, value in settings.environment().items() if name.startswith("RAY_AUTH_")})
    import ray

    over = threading.Event()
    threading.Thread(target=_end_with_the_cluster, args=(settings, over), name="cluster-watch", daemon=True).start()
    leave(_ENDED)
    try:
        ray.init(address=settings.ray_address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        yield
    finally:
        over.set()
        ray.shutdown()
        leave(None)


def lost(settings: Settings) -> ServiceError:
    """Return the error for a cluster that died under a step."""
    return ServiceError(
        f"The Ray cluster {settings.ray_address} stopped answering.",
        "Start it (shopfloor up) and submit again: what was finished is kept.",
    )


def explained(settings: Settings, failure: Failure) -> Failure:
    """Return why a step failed that Ray ended: its cluster may be gone. Any other failure stays as it is."""
    return Failure.of(lost(settings)) if failure == _ENDED and not answers(settings) else failure


def answers(settings: Settings) -> bool:
    """Tell whether the head of the cluster takes connections."""
    host, _, port = settings.ray_address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def _end_with_the_cluster(settings: Settings, over: threading.Event) -> None:
    """End this process when the cluster is gone: a Ray driver would wait for its head for ever, deaf to signals."""
    last = time.monotonic()
    while not over.wait(2):
        if answers(settings):
            last = time.monotonic()
        elif time.monotonic() - last > LOST_AFTER_S:
            error = lost(settings)
            leave(error)
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(1)

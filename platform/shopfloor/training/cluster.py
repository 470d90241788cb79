"""This process as a driver on the running Ray cluster: what it waits for, and what becomes of it when the cluster dies.

Ray lets a trial wait for CPUs and GPUs without saying so, or who holds them: that is told here, in words.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from shopfloor.environment import NO_REPORTS
from shopfloor.errors import Failure, ServiceError, UsageError, first_line, leave
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

_ENDED = Failure(
    "RayEnded", "Ray ended the step's process.", "See `shopfloor status` and the log of the step, then submit again."
)
"""What is true of a driver that ends without an exception: Ray's own code does so where it cannot go on."""
LOST_AFTER_S = 20.0
"""How long a cluster may be silent: its head can restart without a search being lost."""
LOOK_EVERY_S = 5.0
"""How often a search looks whether it waits; what it waits for is told when it is another thing than before."""
WAITING = "waiting for "
"""How a line begins that says so; whoever shows a step's log knows it by that."""
GOING_ON = "going on"
"""Line that says that a trial runs again."""
_REPLICA = "SERVE_REPLICA::"
_MOST = 10_000
"""Entries of Ray's that are looked at."""


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


def refuse_what_never_fits(settings: Settings, needs: dict[str, float]) -> None:
    """Refuse workers that no node of the embedded cluster could ever hold; a cluster elsewhere may grow.

    Args:
        settings: Say where the cluster is; this process is a driver on it.
        needs: What a worker of a trial takes, by resource.

    Raises:
        UsageError: A worker asks for more than a node has.
    """
    import ray

    if not settings.ray_address.startswith("127."):
        return
    for resource, amount in needs.items():
        most = max((node["Resources"].get(resource, 0) for node in ray.nodes() if node["Alive"]), default=0)
        if amount > most:
            raise UsageError(
                f"A trial asks for {_amount(amount, resource)}, and Ray has {most:g} here: it would wait for ever.",
                f"Lower search.workers.{resource.lower()}s in use_case.yaml, or search on a larger cluster.",
            )


@contextlib.contextmanager
def told(needs: dict[str, float], tell: Callable[[str], None]) -> Iterator[None]:
    """Tell, for the time of the block, whenever no trial of this driver can begin, and who holds what it lacks.

    Args:
        needs: What a worker of a trial takes, by resource.
        tell: Hears a line that begins with `WAITING`.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(needs, tell, over), name="capacity-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(needs: dict[str, float], tell: Callable[[str], None], over: threading.Event) -> None:
    last = ""
    while not over.wait(LOOK_EVERY_S):
        try:
            line = _waiting(needs)
        except Exception as error:  # of Ray's state API: the search is worth more than words about it
            logger.debug("Whether the search waits is not known: %s", first_line(error))
            continue
        if line != last:
            tell(line or GOING_ON)
        last = line


def _waiting(needs: dict[str, float]) -> str:
    """Return why no trial of this driver runs; empty where one does, or none asks."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    context = ray.get_runtime_context()
    # By itself the state API asks the one cluster that it finds on the machine, and there may be others.
    job, address = context.get_job_id(), context.gcs_address
    groups = list_placement_groups(address=address, detail=True, limit=_MOST)
    own = [group for group in groups if group.creator_job_id == job]
    if not any(group.state == "PENDING" and _holds(group, needs) for group in own):
        return ""
    if any(group.state == "CREATED" and _holds(group, needs) for group in own):
        return ""
    others = [group for group in groups if group.creator_job_id != job and group.state == "CREATED"]
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True, limit=_MOST)
    return in_words(needs, ray.cluster_resources(), ray.available_resources(), actors, others)


def _holds(group: Any, needs: dict[str, float]) -> bool:
    """Tell whether a placement group is that of a trial, or of its workers."""
    return any(bundle["unit_resources"].get("CPU") == needs["CPU"] for bundle in group.bundles)


def in_words(
    needs: dict[str, float],
    total: dict[str, float],
    free: dict[str, float],
    actors: Iterable[Any],
    groups: Iterable[Any],
) -> str:
    """Return what a trial waits for, and who has it.

    Args:
        needs: What a worker asks for, by resource.
        total: What the cluster has.
        free: What nobody holds.
        actors: Living actors as Ray's state API lists them; the replicas of endpoints are among them.
        groups: Placement groups of other drivers, as it lists them.
    """
    short = [name for name, amount in needs.items() if free.get(name, 0) < amount] or ["CPU"]
    parts = []
    for resource in short:
        endpoints: dict[str, float] = {}
        for actor in actors:
            amount = (actor.required_resources or {}).get(resource, 0)
            if amount and str(actor.name).startswith(_REPLICA):
                name = str(actor.name).removeprefix(_REPLICA).partition("#")[0]
                endpoints[name] = endpoints.get(name, 0) + amount
        searches = sum(bundle["unit_resources"].get(resource, 0) for group in groups for bundle in group.bundles)
        holders = [f"endpoint {name} {amount:g}" for name, amount in sorted(endpoints.items())]
        holders += [f"other runs {searches:g}"] if searches else []
        parts.append(
            f"{_amount(needs[resource], resource)}: {free.get(resource, 0):g} of {total.get(resource, 0):g} are free"
            + (f", {', '.join(holders)}" if holders else "")
        )
    return f"{WAITING}{' and '.join(parts)}; `shopfloor undeploy NAME` or a smaller serving.cpus frees some"


def _amount(amount: float, resource: str) -> str:
    return f"{amount:g} {resource}{'' if amount == 1 else 's'}"


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

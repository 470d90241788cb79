"""The versions that a replica holds: it follows the assignment in the registry, loads what is new, and swaps it in.

A version is loaded in a process of its own first, then beside those that answer, and warmed. One that does not load
changes nothing but the errors that the replica shows, and is tried again. While the registry is away, what answers goes
on answering.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from shopfloor.errors import AccessError
from shopfloor.runs.mlflow import Mlflow
from shopfloor.serving import assignment as assignments
from shopfloor.serving.beside import rehearsal
from shopfloor.serving.contract import LEASE_ENDED, LEASE_KEPT, LEASE_S, VERSION_HEADER, Assignment, Config
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import ServedModel, load_model

logger = logging.getLogger(__name__)

RETRY_S = (5, 15, 60)
"""Pauses before a version that did not load is tried again; the last one repeats."""
LOOK_EVERY_S = 1.0
"""How often a replica looks at its assignment."""
LOOK_TIMEOUT_S = 10.0


class Lease:
    """Whether somebody still answers for the challenger's share: who judges a trial renews it in the registry."""

    def __init__(self) -> None:
        """Begin with none seen."""
        self._value: str | None = None
        self._changed_s = 0.0

    def holds(self, lease: str, now_s: float, unix_s: float) -> bool:
        """Tell whether it does, by the time since the lease was seen to change: clocks of two machines may differ.

        Args:
            lease: As it stands in the registry now.
            now_s: Time of a clock of this process that never goes back.
            unix_s: Unix time here, for a replica that has just begun and cannot know since when the lease is the same.
        """
        if lease in {LEASE_KEPT, LEASE_ENDED}:
            return lease == LEASE_KEPT
        renewed, _, length = lease.partition("+")
        if lease != self._value:
            age_s = max(0.0, unix_s - _number(renewed, 0.0)) if self._value is None else 0.0
            self._value, self._changed_s = lease, now_s - age_s
        return now_s - self._changed_s < _number(length, LEASE_S)


def _number(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:  # somebody's own hand
        return otherwise


class Holding:
    """The champion, the challenger, and how they came to be."""

    def __init__(self, expect: Callable[[], Awaitable[None]], swapped: Callable[[], None]) -> None:
        """Begin with nothing; `expect` is awaited before a version is loaded, `swapped` told when others answer."""
        self.champion: ServedModel | None = None
        self.challenger: ServedModel | None = None
        self.loaded: dict[str, ServedModel] = {}
        """Models by version."""
        self.errors: dict[str, str] = {}
        """Reason why a version does not load, by version."""
        self.registry_problem = ""
        """Reason why the assignment cannot be read now; empty where it can."""
        self.assignment = Assignment()
        self.canary_percent = 0.0
        """Share of the challenger now: the assignment's, as long as somebody answers for it."""
        self.shadow = False
        """Whether the challenger answers copies now, as long as somebody answers for it."""
        self._lease = Lease()
        self._last_lease: str | None = None
        # Requests that wait for a model hold the threads of the event loop; a promotion must be heard all the same.
        self._looking = ThreadPoolExecutor(1, "assignment")
        self._expect = expect
        self._swapped = swapped
        self.before: ServedModel | None = None
        """The champion before, kept warm, so that going back to it costs the requests nothing."""
        self._following: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None

    async def follow(self, config: Config) -> None:
        """Follow the assignment of a use case from now on; return when a champion answers, or cannot."""
        if self._following is not None:
            self._following.cancel()
        first = asyncio.Event()
        self._following = asyncio.create_task(self._follow(config, first))
        if self.champion is None:
            await first.wait()

    def the_champion(self) -> ServedModel:
        """Return the version that answers.

        Raises:
            BadRequest: None does.
        """
        if self.champion is None:
            raise BadRequest(503, self._why_no_champion())
        return self.champion

    def version(self, name: str) -> ServedModel:
        """Return the version of a number or an alias.

        Raises:
            BadRequest: It is not loaded.
        """
        if name == "champion":
            return self.the_champion()
        model = self.challenger if name == "challenger" else self.loaded.get(name)
        if model is None:
            loaded = ", ".join(sorted(self.loaded)) or "none"
            raise BadRequest(404, f"{VERSION_HEADER}: {name[:100]} is not loaded; loaded versions: {loaded}.")
        return model

    def loading(self) -> list[str]:
        """Return the versions that are assigned, and neither loaded nor known not to load."""
        return [name for name in self.assignment.versions() if name not in {*self.loaded, *self.errors}]

    async def _follow(self, config: Config, first: asyncio.Event) -> None:
        """Look at the assignment again and again, and take up what it says; `first` is set when there is no waiting.

        While the registry does not answer, a replica without a champion waits: it has nothing to answer with.
        """
        import requests

        current: Assignment | None = None
        look = asyncio.get_running_loop().run_in_executor
        try:
            with requests.Session() as session:
                mlflow = Mlflow(config.tracking_uri, LOOK_TIMEOUT_S, session)
                while True:
                    lease = None
                    try:
                        entry = await look(self._looking, assignments.read, mlflow, config.use_case)
                        self.registry_problem, lease = "", entry.lease
                        if not entry.has_record:  # a registry that lost the model takes no champion off
                            first.set()
                        elif entry.assignment != current:
                            current = entry.assignment
                            self._take_up(config, current, first)
                    except Exception as error:  # whatever it is, the next look may go well
                        if str(error) != self.registry_problem:
                            logger.warning("%s: %s", type(error).__name__, error)
                        self.registry_problem = str(error)
                        if isinstance(error, AccessError):  # which no waiting mends
                            first.set()
                    self._share(lease)
                    await asyncio.sleep(LOOK_EVERY_S)
        finally:  # nobody waits for a follower that has ended
            first.set()

    def _share(self, lease: str | None) -> None:
        """Let the challenger have its share while its lease holds; `None` where the registry did not say."""
        current = lease if lease is not None else self._last_lease
        self._last_lease = current
        holds = current is not None and self._lease.holds(current, time.monotonic(), time.time())
        # The share is not that of the version before, which answers on while this one is loaded.
        holds = holds and self.challenger is not None and self.challenger.version == self.assignment.challenger
        share = (self.assignment.canary_percent, self.assignment.shadow) if holds else (0.0, False)
        if share != (self.canary_percent, self.shadow):
            self.canary_percent, self.shadow = share
            self._swapped()

    def _take_up(self, config: Config, assignment: Assignment, tried: asyncio.Event) -> None:
        self.assignment = assignment
        for version in assignment.versions():
            self.errors.pop(version, None)
        if self._loading is not None:
            self._loading.cancel()
        self._loading = asyncio.create_task(self._load_assignment(config, assignment, tried))

    async def _load_assignment(self, config: Config, assignment: Assignment, tried: asyncio.Event) -> None:
        """Load what is assigned and not loaded, swap it in, and try again what failed."""
        try:
            for attempt in itertools.count():
                for version in assignment.versions():
                    await self._load(config, version)
                self._swap(assignment)
                tried.set()
                if all(version in self.loaded for version in assignment.versions()):
                    return
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
        finally:  # a newer assignment took over: who waited for this one waits no longer
            tried.set()

    async def _load(self, config: Config, version: str) -> None:
        if version in self.loaded:
            return
        if self.before is not None and self.before.version == version:
            self.loaded[version] = self.before
            return
        try:
            await self._expect()
            # A replica that answers tries elsewhere first what comes; one without a champion has nothing to lose.
            alone = self.champion is None and version == self.assignment.champion
            with rehearsal.Rehearsal() as trial:
                self.loaded[version] = await asyncio.to_thread(
                    load_model, config.tracking_uri, config.use_case, version, None if alone else trial.fetch
                )
            self.errors.pop(version, None)
        except rehearsal.RehearsalFailed as error:
            logger.error("version %s of %s does not load: %s", version, config.use_case, error)
            self.errors[version] = str(error)[:2000]
        except Exception as error:
            logger.exception("version %s of %s does not load", version, config.use_case)
            self.errors[version] = f"{type(error).__name__}: {error}"[:2000]

    def _swap(self, assignment: Assignment) -> None:
        """Let the loaded versions answer, and forget those that nobody names any more."""
        before = self.champion
        self.champion = self.loaded.get(assignment.champion, self.champion) if assignment.champion else None
        if before is not None and before is not self.champion:
            self.before = before
        self.challenger = self.loaded.get(assignment.challenger, self.challenger) if assignment.challenger else None
        self.loaded = {model.version: model for model in (self.champion, self.challenger) if model}
        self.errors = dict(list(self.errors.items())[-10:])
        self._share(self._last_lease)
        self._swapped()

    def _why_no_champion(self) -> str:
        version = self.assignment.champion
        if version is None and self.registry_problem:
            return "Who is champion cannot be read from the registry; `/status` says why."
        if version is None:
            return "No version is champion yet; promote one with `shopfloor models promote`."
        return f"Version {version} is to be champion and does not load: {self.errors.get(version, 'it is loading')}."

"""Clients of an endpoint who ask all the while, say what became true, and remember what they were told."""

import contextlib
import threading
import time
from typing import NamedTuple

import requests

from tests.support.compose import Stack

THREADS = 3
PAUSE_S = 0.5
"""Pause of a client between two requests: so few that no gate of a rollout is decided meanwhile."""


class Answer(NamedTuple):
    """A prediction that was given."""

    time_s: float
    """Unix time of its arrival."""
    request_id: str
    version: str


class Clients:
    """Who asks the endpoint of a stack until `stop`; what fails is no answer and is asked again."""

    def __init__(self, stack: Stack) -> None:
        self.answers: list[Answer] = []
        self.acknowledged: list[str] = []
        """Ids of the requests whose outcome was accepted."""
        self._stack, self._row = stack, stack.example()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def since(self, moment_s: float) -> list[Answer]:
        """Return the answers that came after a Unix time."""
        return [answer for answer in self.answers if answer.time_s > moment_s]

    def _ask(self) -> None:
        with requests.Session() as session:
            session.headers.update(self._stack.bearer())
            while not self._end.wait(PAUSE_S):
                with contextlib.suppress(requests.RequestException):
                    answer = session.post(f"{self._stack.endpoint}/predict", json=self._row, timeout=10)
                    if not answer.ok:
                        continue
                    request_id = answer.headers["X-Request-Id"]
                    self.answers.append(Answer(time.time(), request_id, answer.json()["version"]))
                    outcome = {"request_id": request_id, "outcome": True}
                    if session.post(f"{self._stack.endpoint}/feedback", json=outcome, timeout=30).status_code == 202:
                        self.acknowledged.append(request_id)

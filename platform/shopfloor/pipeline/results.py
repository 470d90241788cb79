"""The result store: the outputs of every finished step under its content key, a prefix of the artifact store.

An entry is one small JSON file that points at the artifacts. It counts only while it is whole, while everything that it
points at still exists with the bytes that the step left, and while what the step did to the world (an effect: a
registered version, a live deployment, an alias) still holds. What one engine stored, another one reuses.

An entry is written only on top of the one that its writer saw when it began: whoever was cut off and goes on late finds
its successor's and leaves it. Of the attempts at one step the newest may replace an older one's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shopfloor import attempts
from shopfloor.attempts import Attempt
from shopfloor.errors import ConflictError
from shopfloor.settings import Settings
from shopfloor.storage import CONTENT_HASH, EFFECT, STORED, exists, is_remote, join, local_path, stored

logger = logging.getLogger(__name__)

NO_USE_CASE = "-"
_TRIES = 20
KEY_VARIABLE = "SHOPFLOOR_RESULTS_KEY"
"""Variable with a secret of the team: with it, only entries count that were kept by somebody who knows it."""

Outputs = dict[str, Any]
"""JSON form of a step's outputs: parameters by name, artifacts as {"uri", "name", "metadata", "type"} dictionaries."""


@dataclass(frozen=True)
class Lookup:
    """What the store says of a key."""

    outputs: Outputs | None
    """Outputs of the step; `None` where it must run."""
    reason: str
    """Reason why there is no result; empty where there is one, and where the key was never stored."""
    lost: bool = False
    """The store lost or changed what it had been given."""
    run_id: str = ""
    """Run that made the outputs, where it was recorded."""
    version: str | None = None
    """Version of the entry, for `ResultStore.put`; `None` where there is none."""


class ResultStore:
    """Finds and keeps the outputs of steps by content key."""

    def __init__(self, settings: Settings, effect_holds: Callable[[dict[str, str]], bool]) -> None:
        """Use the store of `settings`; `effect_holds` judges whether an effect is still so."""
        self._settings = settings
        self._effect_holds = effect_holds
        self._root = join(settings.artifact_root, "results")
        self._nowhere = join(settings.artifact_root, "metadata-only")

    def get(self, key: str) -> Lookup:
        """Return what is under `key`, as `find` does; damage is said."""
        entry = self.find(key)
        if entry.lost:
            logger.warning("%s; the step runs again.", entry.reason)
        return entry

    def find(self, key: str) -> Lookup:
        """Return what is under `key`, without a word to anybody."""
        text, version = attempts.read(self._settings, self._place(key))
        if text is None:
            return Lookup(None, "")
        return replace(self._judged(key, text), version=version)

    def begun(self, key: str) -> Lookup:
        """Return the version of what is under `key`, for who runs the step whatever is there."""
        return Lookup(None, "", version=attempts.read(self._settings, self._place(key))[1])

    def _judged(self, key: str, text: str) -> Lookup:
        try:
            entry = json.loads(text)
            outputs: Outputs = entry["outputs"]
            whole = hmac.compare_digest(entry["checksum"], _checksum(entry)) and entry["key"] == key
        except (json.JSONDecodeError, KeyError, TypeError):
            whole = False
        if not whole:
            unsigned = f" or not signed with ${KEY_VARIABLE}" if os.environ.get(KEY_VARIABLE) else ""
            return Lookup(None, f"The stored result {key[:12]} is damaged{unsigned}", lost=True)
        for artifact in artifacts_of(outputs):
            metadata = artifact["metadata"]
            if not self._may_be_at(artifact["uri"], ours=CONTENT_HASH in metadata):
                return Lookup(None, f"The stored result {key[:12]} points at {artifact['uri']}", lost=True)
            effect = metadata.get(EFFECT)
            if effect is not None and not self._effect_holds(effect):
                return Lookup(None, f"{_in_words(effect)} no longer holds")
            if STORED in metadata:
                now = stored(self._settings, artifact["uri"])
                if now is None:
                    return Lookup(None, f"Artifact {artifact['uri']} is gone", lost=True)
                if now != metadata[STORED]:
                    return Lookup(
                        None, f"Artifact {artifact['uri']} is not what was stored: its bytes changed", lost=True
                    )
            elif self._is_gone(artifact["uri"], ours=CONTENT_HASH in metadata):
                return Lookup(None, f"Artifact {artifact['uri']} is gone", lost=True)
        return Lookup(outputs, "", run_id=str(entry.get("run_id") or ""))

    def _may_be_at(self, uri: str, ours: bool) -> bool:
        """Tell whether a result may point there: whoever writes to the store must not choose what is read elsewhere.

        Args:
            uri: Where an artifact is said to be.
            ours: Whether a step of this library published it; what others publish may be in a store of theirs.
        """
        if is_remote(uri):
            return not ours or uri.startswith(join(self._settings.artifact_root, ""))
        path = local_path(uri).resolve()
        own = [self._settings.state_dir.resolve()]
        if not is_remote(self._settings.artifact_root):
            own.append(local_path(self._settings.artifact_root).resolve())
        return any(path.is_relative_to(directory) for directory in own)

    def _is_gone(self, uri: str, ours: bool) -> bool:
        """Tell whether an artifact is no more; of what others publish somewhere else nobody knows."""
        if ours:
            return not exists(self._settings, uri)
        return not is_remote(uri) and not uri.startswith(self._nowhere) and not local_path(uri).exists()

    def put(self, key: str, parts: Mapping[str, str], outputs: Outputs, before: Lookup | None = None) -> bool:
        """Keep `outputs` under `key`, atomically, with the parts of the key for whoever asks why.

        Args:
            key: From `component_key`.
            parts: What it was made of.
            outputs: What the step made.
            before: What `get` or `begun` said before the step ran; without it, what stands now is replaced.

        Returns:
            Whether they are kept: what another run has kept since stays.

        Raises:
            SupersededError: A newer attempt at the same step has kept its own.
        """
        stored: Outputs = json.loads(json.dumps(outputs))
        for artifact in artifacts_of(stored):
            uri = artifact["uri"]
            if CONTENT_HASH not in artifact["metadata"] and not is_remote(uri) and not local_path(uri).exists():
                # Metrics are all in the metadata: they lie nowhere, and so not in a pod that will be gone.
                artifact["uri"] = join(self._nowhere, artifact["name"])
        entry = {"key": key, "parts": dict(parts), "outputs": stored, "run_id": self._settings.run_id or ""}
        if self._settings.attempt:
            entry["attempt"] = self._settings.attempt
        text = json.dumps({**entry, "checksum": _checksum(entry)}, indent=1, sort_keys=True)
        place, version = self._place(key), (before or self.begun(key)).version
        for _ in range(_TRIES):
            if attempts.replace(self._settings, place, text, version):
                return True
            standing, version = attempts.read(self._settings, place)
            if before is not None and standing is not None and not self._gives_way(standing):
                logger.info("Another run has kept its result of the same step meanwhile: it stays.")
                return False
        raise ConflictError(f"The stored result {key[:12]} is being changed by too many at once.", "Do it again.")

    def _gives_way(self, standing: str) -> bool:
        """Tell whether an entry is that of an older attempt at the same step as this process makes.

        Raises:
            SupersededError: It is that of a newer one.
        """
        try:
            attempt = json.loads(standing).get("attempt")
        except (json.JSONDecodeError, AttributeError):  # damaged: nobody's
            return True
        if not attempt or not self._settings.attempt:
            return False
        own, other = Attempt.parse(self._settings.attempt), Attempt.parse(attempt)
        if other.place == own.place and other.number > own.number:
            raise attempts.superseded(own, f"attempt {other.number}, whose result is kept")
        return other.place == own.place and other.number < own.number

    def used(self, step: str, key: str, parts: Mapping[str, str]) -> None:
        """Note that a step's result is now that of `key`: the next question why it runs is answered against it."""
        place = self._latest(step, parts)
        text = json.dumps({"key": key, "parts": dict(parts)}, sort_keys=True)
        standing, version = attempts.read(self._settings, place)
        if standing != text:
            attempts.replace(self._settings, place, text, version)

    def last_parts(self, step: str, parts: Mapping[str, str]) -> dict[str, str] | None:
        """Return the parts of the key that a step last had for the same use case, `None` where it never ran."""
        try:
            text, _ = attempts.read(self._settings, self._latest(step, parts))
            earlier: dict[str, str] = json.loads(text or "null")["parts"]
        except (json.JSONDecodeError, KeyError, TypeError):
            return None
        return earlier

    def _place(self, key: str) -> str:
        return join(self._root, key[:2], f"{key}.json")

    def _latest(self, step: str, parts: Mapping[str, str]) -> str:
        use_case = json.loads(parts.get("parameter use_case", "null"))
        return join(
            self._root, "latest", use_case if isinstance(use_case, str) and use_case else NO_USE_CASE, f"{step}.json"
        )


def artifacts_of(outputs: Outputs) -> Iterator[dict[str, Any]]:
    """Yield the artifacts among `outputs`, those in lists too."""
    for value in outputs.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and "uri" in item and "metadata" in item:
                yield item


def _checksum(entry: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in entry.items() if name != "checksum"}
    text, secret = json.dumps(plain, sort_keys=True).encode(), os.environ.get(KEY_VARIABLE, "")
    return hmac.new(secret.encode(), text, "sha256").hexdigest() if secret else hashlib.sha256(text).hexdigest()


def _in_words(effect: Mapping[str, str]) -> str:
    if effect["kind"] == "online_features":
        return f"What the online store was given for {effect['use_case']}"
    what = {"model_version": "The registered", "deployment": "The deployed", "champion": "The champion"}
    return f"{what.get(effect['kind'], effect['kind'])} version {effect['version']} of {effect['use_case']}"

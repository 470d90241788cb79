"""The result store: the outputs of every finished step under its content key, a prefix of the artifact store.

An entry is one small JSON file that points at the artifacts. It counts only while everything that it points at still
exists, and while what the step did to the world (an effect: a registered version, a live deployment, an alias) still
holds. What one engine stored, another one reuses.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from shopfloor.settings import Settings
from shopfloor.storage import CONTENT_HASH, exists, filesystem, is_remote, join, local_path, write_atomically

logger = logging.getLogger(__name__)

EFFECT = "effect"
"""Metadata key of an artifact that stands for something outside the artifact store; see `effects.py`."""

Outputs = dict[str, Any]
"""JSON form of a step's outputs: parameters by name, artifacts as {"uri", "name", "metadata", "type"} dictionaries."""


class ResultStore:
    """Finds and keeps the outputs of steps by content key."""

    def __init__(self, settings: Settings, effect_holds: Callable[[dict[str, str]], bool]) -> None:
        """Use the store of `settings`; `effect_holds` judges whether an effect is still so."""
        self._settings = settings
        self._effect_holds = effect_holds
        self._root = join(settings.artifact_root, "results")

    def get(self, key: str) -> Outputs | None:
        """Return the outputs under `key`, or `None` where there are none or what they name is gone."""
        text = self._read(self._place(key))
        if text is None:
            return None
        try:
            outputs: Outputs = json.loads(text)["outputs"]
        except (json.JSONDecodeError, KeyError, TypeError):
            logger.warning("The stored result %s is damaged; the step runs again.", key[:12])
            return None
        for artifact in artifacts_of(outputs):
            effect = artifact["metadata"].get(EFFECT)
            if effect is not None and not self._effect_holds(effect):
                return None
            if CONTENT_HASH in artifact["metadata"] and not exists(self._settings, artifact["uri"]):
                logger.warning("Artifact %s is gone; the step runs again.", artifact["uri"])
                return None
        return outputs

    def put(self, key: str, parts: dict[str, str], outputs: Outputs) -> None:
        """Keep `outputs` under `key`, atomically, with the parts of the key for whoever asks why."""
        text = json.dumps({"key": key, "parts": parts, "outputs": outputs}, indent=1, sort_keys=True)
        place = self._place(key)
        if is_remote(place):
            target, path = filesystem(self._settings, place)
            with target.open_output_stream(path) as stream:
                stream.write(text.encode())
        else:
            write_atomically(local_path(place), text)

    def _place(self, key: str) -> str:
        return join(self._root, key[:2], f"{key}.json")

    def _read(self, place: str) -> str | None:
        try:
            if not is_remote(place):
                return local_path(place).read_text(encoding="utf-8")
            source, path = filesystem(self._settings, place)
            with source.open_input_stream(path) as stream:
                return str(stream.read().decode())
        except FileNotFoundError:
            return None


def artifacts_of(outputs: Outputs) -> Iterator[dict[str, Any]]:
    """Yield the artifacts among `outputs`, those in lists too."""
    for value in outputs.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and "uri" in item and "metadata" in item:
                yield item

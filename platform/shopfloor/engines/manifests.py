"""The text of a manifest, and of a schedule in it, as the programs that read them understand it."""

from __future__ import annotations

import re
from typing import Any

from shopfloor.errors import UsageError

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day of the month": (1, 31), "month": (1, 12), "day of the week": (0, 6)}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMES = {
    "month": {name: number for number, name in enumerate(_MONTHS, 1)},
    "day of the week": {name: number for number, name in enumerate(_DAYS)},
}


def text_of(*documents: dict[str, Any], sort_keys: bool = False) -> str:
    """Return documents as YAML in which every text is a text for a reader of any version of YAML.

    Go's, which Argo and kubectl use, takes `y`, `1e3` or `0o17` for more than text where Python's does not.

    Args:
        documents: Plain JSON.
        sort_keys: Whether keys come in the order of the alphabet.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes whatever is not surely a word."""

    def represent(dumper: Any, text: str) -> Any:
        plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')

    Dumper.add_representer(str, represent)
    return str(yaml.dump_all(documents, Dumper=Dumper, sort_keys=sort_keys, width=120, allow_unicode=True))


def check_schedule(schedule: str) -> None:
    """Look whether a schedule is one of cron: five fields, or a word such as `@daily`.

    Raises:
        UsageError: It is not; the message names the field.
    """
    remedy = "Write minute, hour, day, month, weekday, as in --cron '0 3 * * *'."
    if re.fullmatch(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly|every \S+)", schedule):
        return
    fields = schedule.split()
    if len(fields) != len(_FIELDS):
        raise UsageError(f"{schedule!r} is not a schedule: it has {len(fields)} fields, not five.", remedy)
    for (title, (first, last)), field in zip(_FIELDS.items(), fields, strict=True):
        names = _NAMES.get(title, {})
        for part in field.split(","):
            match = re.fullmatch(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
            ends = [names.get(end.lower(), end) for end in match.groups()[:2] if end is not None] if match else [""]
            numbers = [int(end) if str(end).isdecimal() else -1 for end in ends]
            step = match[3] if match else None
            if any(not first <= number <= last for number in numbers) or numbers != sorted(numbers) or step == "0":
                raise UsageError(
                    f"{schedule!r} is not a schedule: {part!r} is no {title}, which goes from {first} to {last}.",
                    remedy,
                )

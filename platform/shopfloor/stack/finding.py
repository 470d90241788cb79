"""What a check of `shopfloor doctor` found."""

from __future__ import annotations

from typing import Literal

from shopfloor.records import Record

Verdict = Literal["ok", "warn", "fail"]


class Finding(Record):
    """What one check found."""

    subject: str
    verdict: Verdict
    """`fail` keeps the platform from working; `warn` may surprise."""
    message: str
    remedy: str = ""

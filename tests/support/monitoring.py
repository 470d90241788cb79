"""The alerts and the dashboards' queries as they stand in platform/compose."""

import json
import re

import yaml

from tests.support.project import ROOT

RULES = ROOT / "platform/compose/rules"
DASHBOARDS = sorted((ROOT / "platform/compose/grafana/dashboards").glob("*.json"))
BOUND = re.compile(r"\s(?:[<>]=?|[!=]=)\s-?[\d.]+$")
"""How an expression of an alert ends."""
GPU = {"GpuHeldAndIdle"}
"""Alerts on what Ray exports only where there is a GPU."""

GROUPS = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8"))["groups"] for file in sorted(RULES.glob("*.yml"))}
ALERTS = [rule for groups in GROUPS.values() for group in groups for rule in group["rules"]]
QUERIES = [
    (f"{panel['title']}", target["expr"].replace("$use_case", ".*"))
    for file in DASHBOARDS
    for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]
    for target in panel["targets"]
]
"""Title of a panel and one of its queries, for all use cases."""


def unbounded(expression: str) -> str:
    """Return what an alert's expression compares with its bound."""
    return BOUND.sub("", expression.strip())

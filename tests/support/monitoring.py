"""The alerts and the dashboards' queries as they stand in platform/compose, and what a drill leaves for them."""

import datetime as dt
import json
import re
from typing import Any

import promql_parser
import yaml
from shopfloor.flows.backup import Restoration

from tests.support.project import ROOT

RULES = ROOT / "platform/compose/rules"
DASHBOARDS = sorted((ROOT / "platform/compose/grafana/dashboards").glob("*.json"))
BOUND = re.compile(r"\s(?:[<>]=?|[!=]=)\s-?[\d.]+$")
"""How an expression of an alert ends."""
GPU = {"GpuHeldAndIdle"}
"""Alerts on what Ray exports only where there is a GPU."""

GROUPS = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8"))["groups"] for file in sorted(RULES.glob("*.yml"))}
ALERTS = [rule for groups in GROUPS.values() for group in groups for rule in group["rules"]]
CLUSTER_RULES = ROOT / "manifests/components/monitoring/objects/backup.yml"
CLUSTER_ALERTS = yaml.safe_load(CLUSTER_RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
"""Alerts that a cluster has in the place of `backup.yml`."""
QUERIES = [
    (f"{panel['title']}", target["expr"].replace("$use_case", ".*"))
    for file in DASHBOARDS
    for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]
    for target in panel["targets"]
]
"""Title of a panel and one of its queries, for all use cases."""


CASES_OF_ALERTS = sorted((ROOT / "tests/e2e/alerts").glob("*.yml"))
"""What promtool is asked of the rules, in its own format."""


def metrics(expression: str) -> set[str]:
    """Return the names of the metrics that an expression selects by name.

    Raises:
        ValueError: It is no expression of PromQL, or a function in it gets what it does not take.
    """
    names: set[str] = set()

    def note(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            names.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(expression), note)
    return names


def unbounded(expression: str) -> str:
    """Return what an alert's expression compares with its bound."""
    return BOUND.sub("", expression.strip())


def drilled(age_s: float, seconds: float) -> Restoration:
    """Return what a drill comes to whose champions answered: the age of its data, and how long it took."""
    now = dt.datetime.now(dt.UTC)
    nothing: dict[str, Any] = {"files": 1, "size_bytes": 1, "counts": {}, "champions": [], "next": []}
    return Restoration(id="1", created=now, age_s=age_s, seconds=seconds, succeeded=True, **nothing)

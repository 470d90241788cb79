"""Alerts and dashboards as files: each alert leads to a page, each query names what is exported."""

import functools
import json
import re

import pytest
import yaml

from tests.support.monitoring import (
    ALERTS,
    BOUND,
    CASES_OF_ALERTS,
    CLUSTER_ALERTS,
    DASHBOARDS,
    GROUPS,
    QUERIES,
    metrics,
)
from tests.support.project import ROOT

ALL_ALERTS = [*ALERTS, *CLUSTER_ALERTS]
EXPRESSION = {alert["alert"]: alert["expr"] for alert in ALL_ALERTS}
EXPORTED = """
up alertmanager_notifications_failed_total prometheus_notifications_errors_total
prometheus_rule_evaluation_failures_total mlflow_http_request_duration_seconds_bucket mlflow_http_request_total
SeaweedFS_s3_bucket_size_bytes SeaweedFS_s3_request_seconds_bucket SeaweedFS_s3_request_total
SeaweedFS_volumeServer_read_only_volumes SeaweedFS_volumeServer_resource
ray_actors ray_node_cpu_count ray_node_cpu_utilization ray_node_disk_free ray_node_disk_usage ray_node_mem_total
ray_node_mem_used ray_object_store_memory ray_resources ray_serve_application_status
ray_serve_deployment_replica_healthy ray_tasks ray_node_gpus_utilization ray_node_gram_used
"""
"""Metrics of others, as Prometheus had them of the stack; those of GPUs as Ray's reporter names them."""


@pytest.mark.parametrize("alert", ALL_ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_waits_has_a_severity_and_leads_to_a_page_that_names_it(alert):
    assert re.fullmatch(r"\d+[mhd]", alert["for"])
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert BOUND.search(alert["expr"])
    assert alert["annotations"]["summary"]
    page = ROOT / alert["annotations"]["runbook"]
    assert page.parent == ROOT / "docs/runbooks"
    assert f"`{alert['alert']}`" in page.read_text(encoding="utf-8")


def test_no_two_alerts_have_one_name_and_each_file_holds_the_group_of_its_name():
    names = [alert["alert"] for alert in ALL_ALERTS]
    assert len(set(names)) == len(names)
    assert {file: [group["name"] for group in groups] for file, groups in GROUPS.items()} == {
        file: [file] for file in GROUPS
    }


def test_every_alert_is_in_the_table_of_the_guide():
    guide = (ROOT / "docs/how-to/monitor-the-stack.md").read_text(encoding="utf-8")
    assert {alert["alert"] for alert in ALL_ALERTS} == set(re.findall(r"^\| `([A-Z]\w+)` \|", guide, re.MULTILINE))


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_asks_the_provisioned_source_and_its_panels_do_not_overlap(file):
    dashboard = json.loads(file.read_text(encoding="utf-8"))
    sources = yaml.safe_load((ROOT / "platform/compose/grafana/sources.yml").read_text(encoding="utf-8"))
    (source,) = sources["datasources"]

    assert dashboard["uid"] == f"shopfloor-{file.stem}"
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)


def test_each_alert_has_events_that_raise_it_and_some_that_do_not():
    raised, not_raised = set(), set()
    for file in CASES_OF_ALERTS:
        for case in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            given = set().union(*(metrics(series["series"]) for series in case["input_series"]))
            for asked in case["alert_rule_test"]:
                if asked["exp_alerts"]:
                    raised.add(asked["alertname"])
                # An alert stays away from a Prometheus that has nothing of what it asks, whatever its rule says.
                elif given & metrics(EXPRESSION[asked["alertname"]]):
                    not_raised.add(asked["alertname"])

    assert raised == not_raised == set(EXPRESSION)


@pytest.mark.parametrize(("name", "expression"), [*EXPRESSION.items(), *QUERIES])
def test_an_expression_is_promql_and_names_only_metrics_that_are_exported(name, expression):
    assert metrics(expression) <= exported(), name
    assert metrics(expression), name


@functools.cache
def exported():
    """Names of all metrics that the stack's services have, on one machine and on a cluster."""
    reference = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    own = set(re.findall(r"^\| `(shopfloor_\w+)`", reference, re.MULTILINE))
    own |= {f"{name}_{part}" for name in own for part in ("bucket", "sum", "count")}
    guide = (ROOT / "docs/how-to/back-up-and-restore.md").read_text(encoding="utf-8")
    own |= set(re.findall(r"^\| `(shopfloor_backup_\w+)`", guide, re.MULTILINE))
    return own | {*EXPORTED.split()}

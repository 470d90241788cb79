"""Alerts and dashboards on the stack's own Prometheus: each query returns something, and an alert comes through."""

import json
import subprocess

import pytest
import requests
from shopfloor.flows.backup import write_metrics

from tests.support.compose import RUN_S, START_S, engine_answers
from tests.support.monitoring import ALERTS, CASES_OF_ALERTS, CLUSTER_RULES, GPU, QUERIES, RULES, drilled, unbounded
from tests.support.project import ROOT
from tests.support.waiting import wait_until

SCRAPED = {"prometheus", "alertmanager", "mlflow", "ray", "ray-worker", "object-store", "node-exporter"}

pytestmark = [
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
    pytest.mark.timeout(START_S + 2 * RUN_S),
]


def ask(stack, query):
    """Return the series that a query gives now."""
    url = f"{stack.url('PROMETHEUS_PORT')}/api/v1/query"
    answer = requests.get(url, params={"query": query}, timeout=30).json()
    assert answer["status"] == "success", f"{query}: {answer}"
    return answer["data"]["result"]


@pytest.fixture(scope="module")
def monitoring(stack, first):
    """Give the stack once Prometheus has seen two scrapes of what an answered request leaves, and a drill."""
    write_metrics(stack.root / "platform/compose/textfile/backup.prom", drilled(60, 60))
    services = ("prometheus", "alertmanager", "node-exporter")
    stack.compose("--profile", "monitoring", "up", "-d", "--wait", "--no-recreate", *services)

    def series():
        assert stack.champion() == "1"
        return ask(stack, 'rate(shopfloor_requests_total{route="/predict"}[5m]) > 0')

    wait_until(series, 180, every_s=2)
    return stack


def test_every_service_that_exports_is_scraped(monitoring):
    wait_until(lambda: {row["metric"]["job"] for row in ask(monitoring, "up == 1")} == SCRAPED, 60, every_s=1)


def test_a_stack_that_is_well_raises_no_alert(monitoring):
    assert ask(monitoring, 'ALERTS{alertstate="firing"}') == []


def test_promtool_and_prometheus_take_every_rule(monitoring):
    monitoring.compose("exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    groups = requests.get(f"{monitoring.url('PROMETHEUS_PORT')}/api/v1/rules", timeout=10).json()["data"]["groups"]
    states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    assert states == {alert["alert"]: "ok" for alert in ALERTS}


def test_promtool_sees_each_alert_come_where_it_is_to_and_stay_away_where_not(monitoring):
    image = monitoring.compose("config", "--images", "prometheus").strip()
    # Each at the place that it has in the project: the cases name the rules by their paths from there.
    places = {path: f"/project/{path.relative_to(ROOT)}" for path in (RULES, CLUSTER_RULES, *CASES_OF_ALERTS)}
    mounts = [word for path, place in places.items() for word in ("-v", f"{path}:{place}:ro")]
    cases = [places[file] for file in CASES_OF_ALERTS]
    monitoring.run("docker", "run", "--rm", "--entrypoint", "promtool", *mounts, image, "test", "rules", *cases)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_the_expression_of_an_alert_without_its_bound_returns_something(monitoring, alert):
    ask(monitoring, alert["expr"])
    # One looks back in steps of a minute, and Prometheus may be younger than the first.
    wait_until(lambda: ask(monitoring, unbounded(alert["expr"])) or alert["alert"] in GPU, 90, every_s=1)


@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_the_query_of_a_panel_returns_something(monitoring, panel, query):
    assert ask(monitoring, query) or panel.startswith("GPU")


def test_grafana_has_every_dashboard_and_lets_in_only_who_knows_the_password(monitoring):
    image = monitoring.compose("--profile", "monitoring", "config", "--images", "grafana").split()[-1]
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode:
        pytest.skip(f"the engine does not have {image}")
    monitoring.compose("--profile", "monitoring", "up", "-d", "--wait", "--no-recreate", "grafana")
    search = f"{monitoring.url('GRAFANA_PORT')}/api/search?type=dash-db"
    password = (monitoring.root / ".secrets/grafana_password").read_text().strip()

    assert requests.get(search, timeout=10).status_code == 401
    assert {row["uid"] for row in requests.get(search, timeout=10, auth=("admin", password)).json()} == {
        json.loads(file.read_text())["uid"] for file in (ROOT / "platform/compose/grafana/dashboards").glob("*.json")
    }


def test_a_service_that_is_stopped_raises_an_alert_in_alertmanager(monitoring):
    monitoring.compose("stop", "object-store")
    alerts = f"{monitoring.url('ALERTMANAGER_PORT')}/api/v2/alerts"

    def down():
        active = requests.get(alerts, timeout=10).json()
        return [alert for alert in active if alert["labels"]["alertname"] == "ServiceDown"]

    try:
        (alert,) = wait_until(down, 300, every_s=2)
    finally:
        monitoring.compose("up", "-d", "--wait", "--no-recreate")
    assert alert["labels"]["job"] == "object-store"
    assert alert["annotations"]["runbook"] == "docs/runbooks/service-down.md"
    wait_until(lambda: not down(), 300, every_s=2)

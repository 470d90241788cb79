"""What a replica counts for Prometheus: requests, seconds, what is in flight, by version.

Every series carries the replica: a scrape through the proxy reaches one, each time perhaps another. The exporter of the
Ray node has those of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BUCKETS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EXPORT_EVERY_S = 5.0
"""Pause between two exports: what nobody renews, Ray forgets after twice its own interval, which is 10 s."""
Kind = Literal["counter", "gauge"]
_LABELS = ("use_case", "version", "route", "replica")


class ReplicaMetrics:
    """The metrics of one replica."""

    def __init__(self) -> None:
        """Count from nothing."""
        self.use_case = ""
        self.replica = ""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "shopfloor_requests", "Requests answered.", (*_LABELS, "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "shopfloor_request_seconds",
            "Seconds from a request's headers to its answer.",
            _LABELS,
            registry=self._registry,
            buckets=BUCKETS_S,
        )
        self._batches = Histogram(
            "shopfloor_batch_rows",
            "Single rows that were answered together.",
            ("use_case", "replica"),
            registry=self._registry,
            buckets=BUCKETS_ROWS,
        )
        self._shadows = Counter(
            "shopfloor_shadow_answers",
            "Answers of the shadow, which nobody sees.",
            ("use_case", "version", "replica", "status"),
            registry=self._registry,
        )
        self._watched: list[tuple[str, str, Kind, Callable[[], float]]] = []
        self._registry.register(self)
        self.in_flight = 0
        """Requests not answered yet."""
        self.watch("shopfloor_requests_in_flight", "Requests not answered yet.", "gauge", lambda: self.in_flight)
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    def begin(self) -> None:
        """Count a request that came in."""
        self.in_flight += 1

    def end(self, version: str, route: str, status: int, seconds: float) -> None:
        """Count an answer.

        Args:
            version: That answered; empty where none did.
            route: One of a few, never what a stranger wrote.
            status: HTTP status.
            seconds: That it took.
        """
        self.in_flight -= 1
        key = (version, route, status)
        children = self._children.get(key)
        if children is None:  # looking a child up by its labels costs more than counting
            labels = (self.use_case, version, route, self.replica)
            children = self._requests.labels(*labels, str(status)), self._seconds.labels(*labels)
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def batch(self, rows: int) -> None:
        """Count rows that were answered together."""
        self._batches.labels(self.use_case, self.replica).observe(rows)

    def shadow(self, version: str, status: int, answers: int) -> None:
        """Count answers of the shadow with one status."""
        self._shadows.labels(self.use_case, version, self.replica, str(status)).inc(answers)

    def watch(self, name: str, text: str, kind: Kind, read: Callable[[], float]) -> None:
        """Show a number that somebody else keeps."""
        self._watched.append((name, text, kind, read))

    def collect(self) -> Iterator[Metric]:
        """Give Prometheus' registry what is watched."""
        labels = ("use_case", "replica")
        for name, text, kind, read in self._watched:
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            metric = family(name, text, labels=labels)
            metric.add_metric((self.use_case, self.replica), read())
            yield metric

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return bytes(generate_latest(self._registry))

    def export(self) -> None:
        """Show everything to the exporter of this Ray node, too, again and again; never returns.

        All of it as gauges: Ray makes a histogram anew from the middles of its buckets, one value after the other.
        """
        from ray.util.metrics import Gauge

        gauges: dict[str, Gauge] = {}
        while True:
            time.sleep(EXPORT_EVERY_S)
            for family in self._registry.collect() if self.use_case else ():
                for name, labels, value, *_ in family.samples:
                    if name.endswith("_created"):
                        continue
                    if name not in gauges:
                        gauges[name] = Gauge(name, family.documentation, tuple(labels))
                    gauges[name].set(value, labels)

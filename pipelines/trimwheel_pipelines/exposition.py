"""The pipelines' metrics and health, on one small HTTP server of their own thread.

`/metrics` for Prometheus, `/healthz` for the kubelet: healthy while the watch loop keeps passing,
so that a hung pass restarts the pod and a service that is away does not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from trimwheel_api import metrics

_CLASSES = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class PipelinesMetrics:
    """A registry with every metric of the pipelines, from the one table."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made = {row.name: self._make(row) for row in metrics.of_component("pipelines")}

    def of(self, row: metrics.Metric, *labels: str) -> Any:
        """The child of a metric with these label values."""
        made = self._made[row.name]
        return made.labels(*labels) if labels else made

    def remove(self, row: metrics.Metric, **labels: str) -> None:
        """Stop reporting the children of a metric with these label values."""
        self._made[row.name].remove_by_labels(labels)

    def keep_only(self, models: set[tuple[str, str]]) -> None:
        """Stop reporting models that are gone: a gauge that nobody sets keeps its alert firing."""
        for row in metrics.of_component("pipelines"):
            if "model_namespace" not in row.labels:
                continue
            place = row.labels.index("model_namespace"), row.labels.index("model")
            for values in self._labels_of(row):
                if (values[place[0]], values[place[1]]) not in models:
                    self._made[row.name].remove(*values)

    def _labels_of(self, row: metrics.Metric) -> list[tuple[str, ...]]:
        """The label values of a metric's children; `collect` is how the library gives them."""
        return list(
            {
                tuple(sample.labels[name] for name in row.labels)
                for family in self._made[row.name].collect()
                for sample in family.samples
            }
        )

    def _make(self, row: metrics.Metric) -> Any:
        extra: dict[str, Any] = {"buckets": row.buckets} if row.buckets else {}
        return _CLASSES[row.type](row.name, row.help, row.labels, registry=self.registry, **extra)


class Heartbeat:
    """When the loop last passed."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit`: seconds without a pass after which the process counts as hung."""
        self._limit, self._clock = limit, clock
        self._last = clock()

    def beat(self) -> None:
        """A pass ended, well or not."""
        self._last = self._clock()

    @property
    def age(self) -> float:
        """Seconds since the last pass."""
        return self._clock() - self._last

    @property
    def alive(self) -> bool:
        """Whether the loop still passes."""
        return self.age < self._limit


def serve(
    address: str, port: int, exposed: PipelinesMetrics, heartbeat: Heartbeat
) -> ThreadingHTTPServer:
    """Start answering in a thread; `shutdown()` and `server_close()` end it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(exposed.registry), CONTENT_TYPE_LATEST)
            elif path == "/healthz":
                text = f"last pass {heartbeat.age:.1f} s ago\n"
                self._answer(200 if heartbeat.alive else 503, text.encode(), "text/plain")
            else:
                self._answer(404, b"/metrics or /healthz\n", "text/plain")

        def _answer(self, code: int, body: bytes, content_type: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Scrapes are not worth a line each."""

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server

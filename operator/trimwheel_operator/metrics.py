"""The operator's own metrics, made from the one table in `trimwheel_api.metrics`.

Exposed on `names.OPERATOR_METRICS_PORT` by `__main__`; fed by `reconcile` after each pass.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from trimwheel_api import metrics, names
from trimwheel_operator.plan.actions import Plan

_CLASSES = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class OperatorMetrics:
    """A registry with every metric of the operator, and the few ways of feeding it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made = {row.name: self._make(row) for row in metrics.of_component("operator")}
        self._judged: dict[tuple[str, str], set[str]] = {}
        """Guards that a model's gauges speak of: its active rollout's, or the last one's."""

    def serve(self, address: str, port: int = names.OPERATOR_METRICS_PORT) -> None:
        """Answer scrapes, in a thread of its own."""
        start_http_server(port, addr=address, registry=self.registry)

    def passed(self, key: tuple[str, str], plan: Plan, seconds: float) -> None:
        """A plan for (namespace, model) was carried out."""
        self._of(metrics.RECONCILE_SECONDS).observe(seconds)
        for one in plan.decided:
            self._of(metrics.DECISIONS).labels(*key, one.action, one.reason).inc()
        for duration in plan.actuations:
            self._of(metrics.ROLLBACK_SECONDS).observe(duration)
        self._of(metrics.DEGRADED).labels(*key).set(float(plan.report.degraded))
        self._of(metrics.ROLLOUT_WEIGHT).labels(*key).set(plan.report.weight / 10_000)
        self._clear(key, keep={guard.name for guard in plan.report.guards})
        for guard in plan.report.guards:
            for verdict in names.VERDICTS:
                child = self._of(metrics.GUARD_VERDICT).labels(*key, guard.name, verdict)
                child.set(float(verdict == guard.verdict))
            for row, text in (
                (metrics.GUARD_VALUE, guard.value),
                (metrics.GUARD_BOUND, guard.bound),
            ):
                if text:
                    self._of(row).labels(*key, guard.name).set(float(text))

    def rule_failed(self, rule: str) -> None:
        """A rule raised in a pass; the others ran."""
        self._of(metrics.RULE_FAILURES).labels(rule).inc()

    def gone(self, key: tuple[str, str]) -> None:
        """Nothing of a model is left: its gauges would stay as they were for ever."""
        self._clear(key, keep=set())
        self._judged.pop(key, None)
        for row in (metrics.DEGRADED, metrics.ROLLOUT_WEIGHT):
            self._of(row).remove(*key)

    def _clear(self, key: tuple[str, str], keep: set[str]) -> None:
        for guard in self._judged.get(key, set()) - keep:
            for verdict in names.VERDICTS:
                self._of(metrics.GUARD_VERDICT).remove(*key, guard, verdict)
            for row in (metrics.GUARD_VALUE, metrics.GUARD_BOUND):
                self._of(row).remove(*key, guard)
        self._judged[key] = keep

    def failed(self, reason: str) -> None:
        """A pass ended early and will be tried again."""
        self._of(metrics.RECONCILE_ERRORS).labels(reason).inc()

    def _of(self, row: metrics.Metric) -> Any:
        return self._made[row.name]

    def _make(self, row: metrics.Metric) -> Any:
        extra: dict[str, Any] = {"buckets": row.buckets} if row.buckets else {}
        return _CLASSES[row.type](row.name, row.help, row.labels, registry=self.registry, **extra)

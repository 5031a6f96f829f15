"""The worker's metrics registry, derived from `trimwheel_api.metrics`, with its hot children
cached.

Children are made before their first event, so that every series starts at 0: evidence is read from
raw counters. The request path only touches cached children (`.labels()` costs four times as much as
the increment).
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from trimwheel_api import metrics as table
from trimwheel_api import names
from trimwheel_workers.arms import ModelShape
from trimwheel_workers.assignment.rule import CAUSE_LEASE
from trimwheel_workers.engine.status import LOST_REASONS

TRIP_BATCHES = "Tripwire"
TRIP_REASONS = (TRIP_BATCHES, CAUSE_LEASE)
WORKER_GUARDS = (
    names.GUARD_DISAGREEMENT, names.GUARD_ERRORS, names.GUARD_LATENCY, names.GUARD_PARITY,
)  # fmt: skip
"""Guards that workers count; capacity is read from device seconds and requests."""

SAMPLED_GUARDS = (names.GUARD_ERRORS, names.GUARD_DISAGREEMENT)
"""Guards whose sessions are sampled: latency counts those of errors, parity at most of audits."""

disable_created_metrics()  # type: ignore[no-untyped-call]


class GuardCounters:
    """Trials and events of one policy in one arm, by guard."""

    def __init__(self, metrics: WorkerMetrics, model: str, arm: str, digest: str) -> None:
        labels = {guard: (model, arm, digest, guard) for guard in WORKER_GUARDS}
        trials, events = metrics.counter(table.GUARD_TRIALS), metrics.counter(table.GUARD_EVENTS)
        largest = metrics.gauge(table.GUARD_LARGEST_SHARE)
        identities = metrics.gauge(table.GUARD_IDENTITIES)
        sample = metrics.gauge(table.GUARD_SESSION_SAMPLE)
        self.sample = {
            guard: [
                sample.labels(*labels[guard], str(slot)) for slot in range(table.GUARD_SAMPLE_SLOTS)
            ]
            for guard in SAMPLED_GUARDS
        }
        self.trials = {guard: trials.labels(*values) for guard, values in labels.items()}
        self.events = {guard: events.labels(*values) for guard, values in labels.items()}
        self.largest = {guard: largest.labels(*values) for guard, values in labels.items()}
        self.identities = {guard: identities.labels(*values) for guard, values in labels.items()}


class WorkerMetrics:
    """Every metric of the worker component; `slo` (seconds) is an exact latency bucket."""

    def __init__(self, model: str, slo: float) -> None:
        self._model = model
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in table.of_component("worker"):
            self._add(metric, slo)
        self._requests: dict[tuple[str, int | str, int], Counter] = {}
        self._exits = 0
        self.duration = {
            arm: self.histogram(table.REQUEST_DURATION).labels(model, arm) for arm in names.ARMS
        }
        by_arm = {
            metric.name: [self.counter(metric).labels(model, arm) for arm in names.ARMS]
            for metric in (table.LAYERS_RUN, table.LAYERS_FULL, table.DEVICE_SECONDS)
        }
        self.layers_run = by_arm[table.LAYERS_RUN.name]
        self.layers_full = by_arm[table.LAYERS_FULL.name]
        self.device_seconds = by_arm[table.DEVICE_SECONDS.name]
        self.audits = {
            (arm, agree): self.counter(table.AUDITS).labels(model, arm, str(agree).lower())
            for arm in names.ARMS
            for agree in (True, False)
        }
        self.dropped = {
            reason: self.counter(table.RECORDS_DROPPED).labels(model, reason)
            for reason in LOST_REASONS
        }
        self.trips = {
            reason: self.counter(table.TRIPWIRE).labels(model, reason) for reason in TRIP_REASONS
        }
        self.refusals = {arm: self.counter(table.REFUSALS).labels(model, arm) for arm in names.ARMS}
        self.records_written = self.counter(table.RECORDS_WRITTEN).labels(model)
        self.engine_restarts = self.counter(table.ENGINE_RESTARTS).labels(model)
        self.audit_seconds = self.counter(table.AUDIT_SECONDS).labels(model)
        self.first_exit_scores = self.counter(table.SCORE_SUM).labels(model)
        self.input_tokens = self.counter(table.INPUT_TOKENS).labels(model)
        self.audit_backlog = self.gauge(table.AUDIT_BACKLOG).labels(model)
        self.queue_depth = self.gauge(table.QUEUE_DEPTH).labels(model)
        self.policy_epoch = self.gauge(table.POLICY_EPOCH).labels(model)
        self.batch_size = self.histogram(table.BATCH_SIZE).labels(model)
        self.expert_tokens: list[Counter] = []
        self._policies: dict[str, str] = {}

    def counter(self, metric: table.Metric) -> Counter:
        """The counter of a row of the table."""
        return self._counters[metric.name]

    def gauge(self, metric: table.Metric) -> Gauge:
        """The gauge of a row of the table."""
        return self._gauges[metric.name]

    def histogram(self, metric: table.Metric) -> Histogram:
        """The histogram of a row of the table."""
        return self._histograms[metric.name]

    def know_model(self, shape: ModelShape) -> None:
        """Make the children that depend on the model's shape."""
        layer = str(shape.moe_layer)
        self.expert_tokens = [
            self.counter(table.EXPERT_TOKENS).labels(layer, str(expert))
            for expert in range(shape.experts)
        ]
        self._exits = len(shape.exits)
        for arm in names.ARMS:
            for exit_index in range(self._exits + 1):
                self.requests(arm, exit_index, 200)

    def requests(self, arm: str, exit_index: int | None, code: int) -> Counter:
        """Counter of requests that ended so; None for no answer."""
        key = (arm, table.EXIT_NONE if exit_index is None else exit_index, code)
        child = self._requests.get(key)
        if child is None:
            label = table.EXIT_FULL if exit_index == self._exits else str(key[1])
            child = self.counter(table.REQUESTS).labels(self._model, arm, label, str(code))
            self._requests[key] = child
        return child

    def guards(self, arm: str, digest: str) -> GuardCounters:
        """Evidence counters of a policy, made at 0."""
        return GuardCounters(self, self._model, arm, digest)

    def drop_guards(self, arm: str, digest: str) -> None:
        """Forget the series of a policy that is resident no longer."""
        for guard in WORKER_GUARDS:
            for metric in (table.GUARD_TRIALS, table.GUARD_EVENTS):
                self.counter(metric).remove(self._model, arm, digest, guard)
            for metric in (table.GUARD_LARGEST_SHARE, table.GUARD_IDENTITIES):
                self.gauge(metric).remove(self._model, arm, digest, guard)
        for guard in SAMPLED_GUARDS:
            for slot in range(table.GUARD_SAMPLE_SLOTS):
                sample = self.gauge(table.GUARD_SESSION_SAMPLE)
                sample.remove(self._model, arm, digest, guard, str(slot))

    def show_policies(self, policies: dict[str, str]) -> None:
        """`{arm: digest}` of what is resident, as series of value 1; others vanish."""
        info = self.gauge(table.POLICY_INFO)
        for arm, digest in self._policies.items():
            if policies.get(arm) != digest:
                info.remove(self._model, arm, digest)
        for arm, digest in policies.items():
            info.labels(self._model, arm, digest).set(1)
        self._policies = dict(policies)

    def render(self) -> bytes:
        """The text exposition; takes milliseconds, so call it off the event loop."""
        return generate_latest(self._registry)

    def _add(self, metric: table.Metric, slo: float) -> None:
        if metric.type == "counter":
            self._counters[metric.name] = Counter(
                metric.name, metric.help, metric.labels, registry=self._registry
            )
        elif metric.type == "gauge":
            self._gauges[metric.name] = Gauge(
                metric.name, metric.help, metric.labels, registry=self._registry
            )
        else:
            buckets = set(metric.buckets)
            if metric is table.REQUEST_DURATION:
                buckets.add(slo)
            self._histograms[metric.name] = Histogram(
                metric.name, metric.help, metric.labels, buckets=sorted(buckets),
                registry=self._registry,
            )  # fmt: skip

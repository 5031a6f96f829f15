"""A worker without a model: the real watch-and-arms loop, and counters that a test chooses.

Runs as a pod. Acknowledges assignments exactly as a worker does; every 50 ms it counts audits of
both arms, of which a share goes wrong that depends on the policy's digest (BAD_DIGEST, BAD_RATE).
"""

from __future__ import annotations

import logging
import os
import random
import time

from prometheus_client import CollectorRegistry, Counter, start_http_server

from trimwheel_api import metrics, names
from trimwheel_workers.assignment.acknowledger import LeaseAcknowledger, Pod
from trimwheel_workers.assignment.kubernetes_source import KubernetesSource
from trimwheel_workers.assignment.loop import Applied, AssignmentLoop
from trimwheel_workers.assignment.rule import Effective

TICK = 0.05
PER_TICK = 5
EVENTFUL = (names.GUARD_DISAGREEMENT,)
COUNTED = (
    names.GUARD_DISAGREEMENT, names.GUARD_ERRORS, names.GUARD_LATENCY, names.GUARD_PARITY,
)  # fmt: skip


class StandIn:
    """Applies at once, and counts."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        self.trials = self._counter(metrics.GUARD_TRIALS)
        self.events = self._counter(metrics.GUARD_EVENTS)
        self.requests = self._counter(metrics.REQUESTS)
        self.device = self._counter(metrics.DEVICE_SECONDS)
        self.effective: Effective | None = None

    def _counter(self, row: metrics.Metric) -> Counter:
        return Counter(row.name, row.help, row.labels, registry=self.registry)

    def apply(self, effective: Effective) -> Applied:
        self.effective = effective
        spec = effective.spec
        for arm, digest in self._arms():
            for guard in COUNTED:
                self.trials.labels(self.model, arm, digest, guard)
                self.events.labels(self.model, arm, digest, guard)
        candidate = spec.candidate.digest if spec.candidate else ""
        return Applied(spec.epoch, spec.stable.digest, candidate)

    def _arms(self) -> list[tuple[str, str]]:
        if self.effective is None:
            return []
        spec = self.effective.spec
        arms = [(names.ARM_STABLE, spec.stable.digest)]
        return arms + ([(names.ARM_CANDIDATE, spec.candidate.digest)] if spec.candidate else [])

    def count(self, rng: random.Random) -> None:
        effective = self.effective
        for arm, digest in self._arms():
            if effective is None:
                return
            share = effective.weight / 10_000
            serves = share > 0 if arm == names.ARM_CANDIDATE else share < 1
            guards = COUNTED if serves else EVENTFUL
            for guard in guards:
                self.trials.labels(self.model, arm, digest, guard).inc(PER_TICK)
                bad = digest == os.environ.get("BAD_DIGEST") and guard in EVENTFUL
                rate = float(os.environ.get("BAD_RATE", "0")) if bad else 0.0
                wrong = sum(rng.random() < rate for _ in range(PER_TICK))
                self.events.labels(self.model, arm, digest, guard).inc(wrong)
            if serves:
                self.requests.labels(self.model, arm, names.GUARD_ERRORS, "200").inc(PER_TICK)
                self.device.labels(self.model, arm).inc(PER_TICK * 1e-4)


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    pod = Pod(os.environ["POD_NAME"], os.environ["POD_UID"], os.environ["POD_NAMESPACE"])
    model = os.environ["MODEL"]
    worker = StandIn(model)
    source = KubernetesSource(pod.namespace, model)
    loop = AssignmentLoop(source, worker.apply, LeaseAcknowledger(model, pod))
    loop.start()
    start_http_server(names.WORKER_PORT, addr=os.environ["POD_IP"], registry=worker.registry)
    rng = random.Random(7)
    while True:
        time.sleep(TICK)
        worker.count(rng)


if __name__ == "__main__":
    main()

"""The operator, assembled: made by `__main__`, started and stopped by the Kopf handlers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from trimwheel_operator.admission import AdmissionTest
from trimwheel_operator.apply import Writer
from trimwheel_operator.cluster import KubeApi
from trimwheel_operator.evidence import EvidenceReader
from trimwheel_operator.gather import Gatherer
from trimwheel_operator.leader import Leader
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.reconcile import Key, Reconciler
from trimwheel_operator.settings import Settings
from trimwheel_operator.watching import Watches
from trimwheel_telemetry.client import Prometheus

EVIDENCE_SECONDS = 2.5
"""For each question to Prometheus, asked once: the pass that waits for it also renews canaries, and
one that hung for longer would end them by their lease. The next pass asks again."""


@dataclass(frozen=True, slots=True)
class App:
    """Reconciler, watches and lock of one process."""

    reconciler: Reconciler
    watches: Watches
    leader: Leader
    metrics: OperatorMetrics

    def start(self) -> None:
        """Begin; called inside the event loop."""
        self.reconciler.start()
        self.leader.start()
        self.watches.start()

    async def stop(self) -> None:
        """End, and give the lock back."""
        self.watches.stop()
        await self.reconciler.stop()
        await asyncio.to_thread(self.leader.stop)

    def mark(self, key: Key) -> None:
        """Look at this model soon."""
        if all(key):
            self.reconciler.mark(key)

    def mark_namespace(self, namespace: str) -> None:
        """Look at every known model of a namespace soon."""
        for key in self.reconciler.keys():
            if key[0] == namespace:
                self.reconciler.mark(key)

    def health(self) -> str:
        """For the liveness probe. Raises RuntimeError when a task or a thread died."""
        parts = {
            "a reconcile task": self.reconciler.alive,
            "the leader lock's thread": self.leader.alive,
            "a watch": self.watches.alive,
        }
        if ended := [part for part, alive in parts.items() if not alive()]:
            raise RuntimeError(f"{', '.join(ended)} ended: the process has to be started anew")
        return "leading" if self.leader.held() else "standing by"


def assemble(api: KubeApi, settings: Settings) -> App:
    """An operator on one API server."""
    prometheus = None
    if settings.prometheus_url:
        stale = 3 * settings.scrape_interval + 5.0
        prometheus = Prometheus(
            settings.prometheus_url, timeout=EVIDENCE_SECONDS, stale_after=stale, retries=0
        )
    leader = Leader(api, settings.release_namespace, settings.identity, settings.leader_seconds)
    metrics = OperatorMetrics()
    gatherer = Gatherer(
        api=api,
        admission=AdmissionTest(api),
        evidence=EvidenceReader(prometheus, settings.scrape_interval),
        settings=settings,
    )
    reconciler = Reconciler(gatherer, Writer(api, leader.require), leader, metrics)
    watches = Watches(api, settings.release_namespace, reconciler.mark)
    return App(reconciler, watches, leader, metrics)

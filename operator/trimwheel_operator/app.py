"""The operator, assembled: made by `__main__`, started and stopped by the Kopf handlers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from trimwheel_operator.admission import AdmissionTest
from trimwheel_operator.admission_watch import AdmissionWatch
from trimwheel_operator.apply import Writer
from trimwheel_operator.cluster import KubeApi
from trimwheel_operator.evidence import EvidenceReader
from trimwheel_operator.gather import Gatherer
from trimwheel_operator.informers import Informers
from trimwheel_operator.leader import Leader
from trimwheel_operator.marks import Marker
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.reconcile import WORKERS, Reconciler
from trimwheel_operator.schedule import FairQueue, Key
from trimwheel_operator.settings import Settings
from trimwheel_operator.store import Store
from trimwheel_telemetry.client import Prometheus

EVIDENCE_SECONDS = 2.5
"""For each question to Prometheus, asked once: the pass that waits for it also renews canaries, and
one that hung for longer would end them by their lease. The next pass asks again."""


@dataclass(frozen=True, slots=True)
class App:
    """Reconciler, watches and lock of one process."""

    reconciler: Reconciler
    informers: Informers
    leader: Leader
    metrics: OperatorMetrics
    admission: AdmissionWatch

    def start(self) -> None:
        """Begin."""
        self.reconciler.start()
        self.leader.start()
        self.informers.start()
        self.admission.start()

    async def stop(self) -> None:
        """End, and give the lock back."""
        self.informers.stop()
        self.admission.stop()
        await asyncio.to_thread(self.reconciler.stop)
        await asyncio.to_thread(self.leader.stop)

    def mark(self, key: Key) -> None:
        """Look at this model soon; before everything is listed, all will be looked at anyway."""
        if all(key) and not self.informers.missing():
            self.reconciler.mark(key)

    def health(self) -> str:
        """For the liveness probe. Raises RuntimeError when a thread died."""
        parts = {
            "a reconcile worker": self.reconciler.alive,
            "the leader lock's thread": self.leader.alive,
            "a watch": self.informers.alive,
            "the watch over admission": self.admission.alive,
        }
        if ended := [part for part, alive in parts.items() if not alive()]:
            raise RuntimeError(f"{', '.join(ended)} ended: the process has to be started anew")
        if missing := self.informers.missing():
            return f"waiting for lists of {', '.join(missing)}"
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
    store, queue = Store(), FairQueue(WORKERS)
    marker = Marker(store, queue.mark)
    informers = Informers(
        api, store, settings.release_namespace, changed=marker.changed, synced=marker.begin
    )
    admission = AdmissionTest(api, settings.release_namespace, leader.require)
    gatherer = Gatherer(
        api=api,
        store=store,
        admission=admission,
        evidence=EvidenceReader(prometheus, settings.scrape_interval),
        settings=settings,
        stale=informers.stale,
    )
    writer = Writer(api, leader.require, store)
    reconciler = Reconciler(gatherer, writer, leader, metrics, queue)
    watch = AdmissionWatch(admission, leader.held, settings.release_namespace)
    return App(reconciler, informers, leader, metrics, watch)

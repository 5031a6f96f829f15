"""What the watch loop reports of each model to Prometheus, and when it stops.

Called by `loop` on every pass. A gauge that nobody sets keeps its last value and with it its alert,
so whatever a pass does not know any longer (a model that is gone, drift at full depth, a signal
without samples) is taken out of the registry. Leaves out errors of the loop itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trimwheel_api import metrics
from trimwheel_api.times import instant
from trimwheel_pipelines.exposition import PipelinesMetrics
from trimwheel_pipelines.view import View
from trimwheel_pipelines.watching import Judgement

_DRIFT = (metrics.DRIFT_EVIDENCE, metrics.DISAGREEMENT_ESTIMATE, metrics.DRIFT_SIGNAL)
Key = tuple[str, str]
"""Namespace and name of a model."""


@dataclass
class ModelGauges:
    """The gauges and counters that carry a model's name."""

    exposed: PipelinesMetrics
    _signals: dict[Key, set[str]] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    """uids of TuningRuns that were counted."""

    def show_certificate(self, view: View) -> None:
        """When the certificate ends; nothing without one."""
        certificate = view.model.status.certificate
        if certificate is not None and certificate.expires_at:
            ends = instant(certificate.expires_at).timestamp()
            self.exposed.of(metrics.CERTIFICATE_EXPIRY, *_key(view)).set(ends)
        else:
            self._hide(metrics.CERTIFICATE_EXPIRY, _key(view))

    def show_drift(self, view: View, judgement: Judgement) -> None:
        """The verdict's evidence, the audited disagreement, and how far each signal has moved."""
        key = _key(view)
        self.exposed.of(metrics.DRIFT_EVIDENCE, *key).set(judgement.verdict.evidence)
        if judgement.disagreement is None:
            self._hide(metrics.DISAGREEMENT_ESTIMATE, key)
        else:
            self.exposed.of(metrics.DISAGREEMENT_ESTIMATE, *key).set(judgement.disagreement)
        known = {name: z for name, z in judgement.moved.items() if z is not None}
        for name, z in known.items():
            self.exposed.of(metrics.DRIFT_SIGNAL, *key, name).set(z)
        for name in self._signals.get(key, set()) - known.keys():
            self._hide(metrics.DRIFT_SIGNAL, key, signal=name)
        self._signals[key] = set(known)

    def hide_drift(self, view: View) -> None:
        """Full depth is served, which cannot drift."""
        for row in _DRIFT:
            self._hide(row, _key(view))
        self._signals.pop(_key(view), None)

    def count_ended(self, view: View) -> None:
        """Count each TuningRun that ended, once."""
        for run in view.runs:
            if run.status.outcome and run.metadata.uid not in self._ended:
                self._ended.add(run.metadata.uid)
                labels = (*_key(view), run.spec.reason, run.status.outcome)
                self.exposed.of(metrics.TUNING_RUNS, *labels).inc()

    def keep_only(self, views: Sequence[View]) -> None:
        """Stop reporting models that are not among these."""
        keys = {_key(view) for view in views}
        self._signals = {key: held for key, held in self._signals.items() if key in keys}
        self._ended &= {run.metadata.uid for view in views for run in view.runs}
        self.exposed.keep_only(keys)

    def _hide(self, row: metrics.Metric, key: Key, **labels: str) -> None:
        self.exposed.remove(row, model_namespace=key[0], model=key[1], **labels)


def _key(view: View) -> Key:
    return view.model.metadata.namespace, view.model.name

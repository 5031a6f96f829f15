"""What the watch loop knows of one model's audits, and the drift verdict that follows.

Called by `loop`. `AuditLog` grows with the segments that arrive and holds a few numbers for each
audit; `verdict_of` is pure and without memory: a restarted loop that has read the same records
gives the same verdict. Leaves out what is done about a verdict (`decisions`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from trimwheel_api.kinds import AdaptiveModel
from trimwheel_api.kinds.adaptive_model import DriftState
from trimwheel_api.policy import DENSE
from trimwheel_api.values import decimal_string, seconds
from trimwheel_pipelines.covariates import DAY, CovariateSettings, Signal
from trimwheel_pipelines.drift import (
    AuditStream,
    Drift,
    DriftSettings,
    DriftVerdict,
    judge_drift,
)
from trimwheel_pipelines.records import AuditRecords
from trimwheel_pipelines.tuning_plan import instant, timestamp

Floats = npt.NDArray[np.float64]

FIRST_EXIT_SCORE = "first-exit score"
SHORT_BLOCK = 60.0
FEW_SCRAPES = 4
"""Points that a block shorter than `SHORT_BLOCK` needs: it holds only a few scrapes."""
CONFIDENCE_DIGITS = 6
VALUE_DIGITS = 6


@dataclass
class AuditLog:
    """Audits of one model under the policy that is stable now, oldest first within a batch."""

    digest: str
    _batches: list[tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.int64], Floats]] = field(
        default_factory=list
    )
    _sessions: dict[str, int] = field(default_factory=dict)
    """Sessions by the order in which they were met: numbers sort and compare faster than text."""

    def add(self, records: AuditRecords) -> None:
        """Take those audits that judged our policy; others are of before or after its time."""
        mine = records.where(records.column("stable_digest") == self.digest)
        if not len(mine):
            return
        full = mine.matrix("predictions")[:, -1]
        self._batches.append(
            (
                mine.column("time").astype(np.float64),
                mine.column("stable_prediction") != full,
                self._numbers(mine.column("session")),
                mine.matrix("scores")[:, 0].astype(np.float64),
            )
        )

    def stream(self) -> AuditStream:
        """Everything so far, in order of time."""
        times, wrong, sessions, _ = self._columns()
        return AuditStream(times, wrong, sessions)

    def score_signal(self) -> Signal:
        """How sure the first exit was of each audited request."""
        times, _, _, scores = self._columns()
        return Signal(FIRST_EXIT_SCORE, times, scores)

    def disagreement(self, since: float) -> float | None:
        """Share of trials after `since` that disagreed; None without any."""
        stream = self.stream().since(since)
        return float(stream.wrong.mean()) if len(stream.wrong) else None

    def _numbers(self, sessions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        known = self._sessions
        return np.array([known.setdefault(one, len(known)) for one in sessions], np.int64)

    def _columns(
        self,
    ) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.int64], Floats]:
        if not self._batches:
            nothing = np.zeros(0)
            return nothing, nothing.astype(bool), nothing.astype(np.int64), nothing
        times, wrong, sessions, scores = (
            np.concatenate([batch[i] for batch in self._batches]) for i in range(4)
        )
        order = np.argsort(times, kind="stable")
        return times[order], wrong[order], sessions[order], scores[order]


def watched_since(model: AdaptiveModel) -> float | None:
    """When the watch over the stable policy began; None where nothing can drift: full depth."""
    stable = model.status.stable
    if stable is None or stable.digest in ("", DENSE.digest) or not stable.since:
        return None
    return instant(stable.since).timestamp()


def drift_settings(model: AdaptiveModel) -> DriftSettings:
    """What the model promises and how its traffic is watched."""
    spec = model.spec
    block = seconds(spec.drift.block)
    return DriftSettings(
        epsilon=float(spec.objectives.max_disagreement),
        false_alarm_audits=float(spec.drift.false_alarm_audits),
        alarm_audits=spec.audits.alarm_audits,
        covariates=CovariateSettings(
            block=block,
            reference=max(seconds(spec.drift.reference), 3 * block),
            minimum_count=FEW_SCRAPES if block < SHORT_BLOCK else CovariateSettings.minimum_count,
            alarm_gap=DAY,
        ),
    )


def verdict_of(
    log: AuditLog, signals: list[Signal], settings: DriftSettings, since: float, now: float
) -> DriftVerdict:
    """The verdict now. After a Harmless one what moved is the new normal: stage one restarts."""
    stream, covariates_since = log.stream(), since
    harmless: DriftVerdict | None = None
    while True:
        verdict = judge_drift(
            stream, signals, settings, since=since, now=now, covariates_since=covariates_since
        )
        if verdict.verdict is not Drift.HARMLESS:
            quiet = harmless is not None and not verdict.signal
            # Nothing new since the last alarm was judged: its answer stands.
            return replace(harmless, evidence=verdict.evidence) if quiet and harmless else verdict
        harmless, covariates_since = verdict, verdict.time


def state_of(verdict: DriftVerdict, now: float) -> DriftState:
    """A verdict as the status of a TuningRun carries it.

    Harmful speaks of disagreement; an open covariate alarm of the signal that moved: where it is,
    and where the alarm began.
    """
    value, bound = verdict.value, verdict.bound
    if verdict.verdict is Drift.NOT_ENOUGH_EVIDENCE and verdict.alarms:
        alarm = verdict.alarms[0]
        value = alarm.value
        bound = alarm.expected + (alarm.value - alarm.expected) * alarm.limit / abs(alarm.z)
    return DriftState(
        verdict=verdict.verdict.value,
        signal=verdict.signal,
        value="" if value is None else decimal_string(value, VALUE_DIGITS),
        bound=decimal_string(bound, VALUE_DIGITS),
        confidence=decimal_string(verdict.confidence, CONFIDENCE_DIGITS),
        audits=verdict.audits,
        alarm_audits=verdict.alarm_audits,
        time=timestamp_of(now),
    )


def timestamp_of(moment: float) -> str:
    """Unix seconds as RFC 3339."""
    return timestamp(datetime.fromtimestamp(moment, UTC))

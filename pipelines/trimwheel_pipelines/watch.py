"""What the watch loop knows of one model's audits, and the drift verdict that follows.

Called by `loop`. `AuditLog` grows with the segments that arrive and holds a few numbers for each
audit; `verdict_of` is pure and without memory: a restarted loop that has read the same records
gives the same verdict. Leaves out what is done about a verdict (`decisions`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from trimwheel_api.kinds import AdaptiveModel
from trimwheel_api.kinds.adaptive_model import DriftState
from trimwheel_api.policy import DENSE
from trimwheel_api.times import instant, to_text
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

FIRST_EXIT_SCORE = "first-exit score"
SHORT_BLOCK = 60.0
FEW_SCRAPES = 4
"""Points that a block shorter than `SHORT_BLOCK` needs: it holds only a few scrapes."""
CONFIDENCE_DIGITS = 6
VALUE_DIGITS = 6


_COLUMNS = np.dtype(
    [("time", np.float64), ("wrong", np.bool_), ("session", np.int64), ("score", np.float64)]
)
_LEAST_ROOM = 1024


class AuditLog:
    """Audits of one model under the policy that is stable now, in order of time.

    Grows in place: each pass adds a few rows to what may be a million.
    """

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self._rows = np.empty(_LEAST_ROOM, _COLUMNS)
        self._count = 0
        # Numbers compare faster than text, and repeat in a few bytes.
        self._sessions: dict[str, int] = {}

    def add(self, records: AuditRecords) -> None:
        """Take those audits that judged our policy; others are of before or after its time."""
        mine = records.where(records.column("stable_digest") == self.digest)
        if not len(mine):
            return
        fresh = np.empty(len(mine), _COLUMNS)
        fresh["time"] = mine.column("time")
        fresh["wrong"] = mine.column("stable_prediction") != mine.last("predictions")
        fresh["session"] = self._numbers(mine.column("session"))
        fresh["score"] = mine.first("scores")
        self._append(fresh)

    def stream(self) -> AuditStream:
        """Everything so far."""
        rows = self._rows[: self._count]
        return AuditStream(rows["time"], rows["wrong"], rows["session"])

    def score_signal(self) -> Signal:
        """How sure the first exit was of each audited request."""
        rows = self._rows[: self._count]
        return Signal(FIRST_EXIT_SCORE, rows["time"], rows["score"])

    def disagreement(self, since: float) -> float | None:
        """Share of trials after `since` that disagreed; None without any."""
        stream = self.stream().since(since)
        return float(stream.wrong.mean()) if len(stream.wrong) else None

    def _numbers(self, sessions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        known = self._sessions
        return np.array([known.setdefault(one, len(known)) for one in sessions], np.int64)

    def _append(self, fresh: npt.NDArray[np.void]) -> None:
        end = self._count + len(fresh)
        if end > len(self._rows):
            grown = np.empty(2 * end, _COLUMNS)
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        self._rows[self._count : end] = fresh
        # Segments of several workers interleave; only what they overlap is sorted again.
        known = self._rows["time"][: self._count]
        start = int(np.searchsorted(known, fresh["time"].min(), side="right"))
        tail = self._rows[start:end]
        tail[:] = tail[np.argsort(tail["time"], kind="stable")]
        self._count = end


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
    return to_text(datetime.fromtimestamp(moment, UTC))

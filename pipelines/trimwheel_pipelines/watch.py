"""What the watch loop knows of one model's audits, and the drift verdict that follows.

Called by `loop`. `AuditWatch` takes the segments that arrive and keeps sums (`drift_sums`);
`verdict_of` computes the same from all audits and without memory: the slow reference of the tests.
Leaves out what is done about a verdict (`decisions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from trimwheel_api.kinds import AdaptiveModel
from trimwheel_api.kinds.adaptive_model import DriftState
from trimwheel_api.policy import DENSE
from trimwheel_api.times import instant, to_text
from trimwheel_api.values import decimal_string, seconds
from trimwheel_pipelines.covariates import DAY, Covariate, CovariateSettings
from trimwheel_pipelines.drift import (
    AuditStream,
    Drift,
    DriftSettings,
    DriftVerdict,
    judge_drift,
)
from trimwheel_pipelines.drift_sums import DriftSums
from trimwheel_pipelines.records import AuditRecords
from trimwheel_pipelines.sessions import session_hashes

FIRST_EXIT_SCORE = "first-exit score"
COLUMNS = ("time", "session", "stable_digest", "stable_prediction", "scores", "predictions")
"""Of a record, what the watch needs: inputs are not among them."""
SHORT_BLOCK = 60.0
FEW_SCRAPES = 4
"""Points that a block shorter than `SHORT_BLOCK` needs: it holds only a few scrapes."""
CONFIDENCE_DIGITS = 6
VALUE_DIGITS = 6


class AuditWatch:
    """The audits of one model under the policy that is stable now, as sums."""

    def __init__(self, digest: str, since: float, settings: DriftSettings) -> None:
        self.digest, self.settings = digest, settings
        self.sums = DriftSums.start(settings, since, FIRST_EXIT_SCORE)

    def add(self, records: AuditRecords, now: float) -> None:
        """Take those audits that judged our policy; others are of before or after its time."""
        mine = records.where(records.column("stable_digest") == self.digest)
        if not len(mine):
            return
        self.sums.add(
            mine.column("time"),
            mine.column("stable_prediction") != mine.last("predictions"),
            session_hashes(mine.column("session")),
            mine.first("scores").astype(np.float64),
            now,
        )


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
    stream: AuditStream,
    signals: Sequence[Covariate],
    settings: DriftSettings,
    since: float,
    now: float,
) -> DriftVerdict:
    """The verdict now. After a Harmless one what moved is the new normal: stage one restarts."""
    covariates_since = since
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


def state_of(verdict: DriftVerdict, now: float, policy_digest: str = "") -> DriftState:
    """A verdict as the status of a TuningRun carries it; `policy_digest`: of which policy.

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
        since=timestamp_of(verdict.since),
        policy_digest=policy_digest,
    )


def timestamp_of(moment: float) -> str:
    """Unix seconds as RFC 3339."""
    return to_text(datetime.fromtimestamp(moment, UTC))

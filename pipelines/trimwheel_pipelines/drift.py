"""Drift: has the traffic changed, and does the change break the promise?

The types and rules of drift, and `judge_drift`, the slow reference: pure and without memory, it
recomputes everything from all audits since a start time. The watch loop runs `drift_sums`, which
keeps the same numbers up to date and is tested equal to it. The clock is an argument.

Stage one (`covariates`) finds moved signals; it raises the audit rate and may start tuning. Stage
two always runs on audited disagreement, because a change of class mix moves no covariate:

    Harmful            Shiryaev-Roberts on "disagreement <= epsilon", over blocks of audits whose
                       dependence is measured (`change_detection`), reached its alarm level
    Harmless           since a covariate alarm, disagreement is proven below 1.5 epsilon
    NotEnoughEvidence  neither yet

Only Harmful may take a policy out of service, and only audits decide it. Leaves out: what is done
about it (the operator), and the audit rate itself (the assignment).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from trimwheel_api.times import to_text
from trimwheel_pipelines.covariates import (
    DAY,
    Covariate,
    CovariateAlarm,
    CovariateSettings,
    covariate_alarms,
)
from trimwheel_telemetry.change_detection import ChangeDetector
from trimwheel_telemetry.evidence import CHANGE_RATIOS, log_e_under

Floats = npt.NDArray[np.float64]

DISAGREEMENT: Final = "disagreement"
"""Name of the audited signal in verdicts; covariates carry their own."""
HARMLESS_MARGIN: Final = 1.5
"""Times epsilon that disagreement must be proven below after an alarm."""
SESSION_SPAN: Final = DAY
"""Seconds in which a session is one trial. Later audits of a session repeat its first, but sessions
that never end must not leave the watch without evidence: after a day they speak of new traffic."""


class Drift(StrEnum):
    """The three answers, spelled as in the status of an AdaptiveModel."""

    HARMFUL = "Harmful"
    HARMLESS = "Harmless"
    NOT_ENOUGH_EVIDENCE = "NotEnoughEvidence"


@dataclass(frozen=True)
class AuditStream:
    """Audits of the stable policy, oldest first; times in Unix seconds."""

    times: Floats
    wrong: npt.NDArray[np.bool_]  # the stable policy's answer differed from full depth
    sessions: npt.NDArray[np.int64]  # a small number for each session, from 0

    def __len__(self) -> int:
        return len(self.times)

    def until(self, moment: float) -> AuditStream:
        """Audits up to a moment."""
        return self._where(slice(int(np.searchsorted(self.times, moment, side="right"))))

    def since(self, moment: float) -> AuditStream:
        """Trials after a moment: a session's first audit in each `SESSION_SPAN` from there on."""
        later = self._where(slice(int(np.searchsorted(self.times, moment, side="right")), None))
        return later._where(later._firsts(moment))

    def _firsts(self, moment: float) -> npt.NDArray[np.bool_]:
        """Which audits are their session's first in their span since `moment`."""
        firsts = np.zeros(len(self), bool)
        if not len(self):
            return firsts
        places = np.arange(len(self))
        first_place = np.zeros(int(self.sessions.max()) + 1, np.int64)
        ends = np.arange(moment + SESSION_SPAN, float(self.times[-1]), SESSION_SPAN)
        for span in np.split(places, np.searchsorted(self.times, ends, side="right")):
            sessions = self.sessions[span]
            # Written backwards, so that a session's first audit is what stays.
            first_place[sessions[::-1]] = span[::-1]
            firsts[span] = first_place[sessions] == span
        return firsts

    def _where(self, chosen: slice | npt.NDArray[np.bool_]) -> AuditStream:
        return AuditStream(self.times[chosen], self.wrong[chosen], self.sessions[chosen])


@dataclass(frozen=True)
class DriftSettings:
    """What is promised and how sure a verdict must be."""

    epsilon: float
    false_alarm_audits: float  # A: mean number of audits to a false Harmful at risk epsilon
    alarm_audits: int  # audits, of any kind, that a covariate alarm may spend
    harmless_level: float = 0.05
    covariates: CovariateSettings = field(default_factory=CovariateSettings)


@dataclass(frozen=True)
class DriftVerdict:
    """The verdict with its numbers.

    `signal` is what moved: "disagreement" when Harmful, else the alarmed covariate, else "".
    `value` and `bound` are in that verdict's unit: a disagreement rate against epsilon (Harmful) or
    1.5 epsilon (otherwise). `confidence` is 1 minus the chance of the verdict if it were wrong.
    """

    verdict: Drift
    signal: str
    value: float | None
    bound: float
    confidence: float
    audits: int  # trials behind the verdict: one a session
    time: float  # of the audit that decided, else now
    since: float  # start of what `value` speaks of: the estimated change, or the alarm
    evidence: float  # Shiryaev-Roberts over its alarm level; 1 alarms
    alarms: tuple[CovariateAlarm, ...] = ()
    alarm_audits: int = 0  # audits of any kind since the open covariate alarm began
    wants_audits: bool = False  # that alarm is unjudged and may spend more: raise the audit rate

    @property
    def reason(self) -> str:
        """One sentence for an Event."""
        if self.verdict is Drift.NOT_ENOUGH_EVIDENCE and not self.signal:
            return f"nothing moved in {self.audits} audits"
        rate = "unknown" if self.value is None else f"{self.value:.2%}"
        moved = [
            f"{alarm.signal} {alarm.expected:.4g} -> {alarm.value:.4g} (z {alarm.z:+.1f})"
            for alarm in self.alarms
        ]
        seen = f"; moved: {', '.join(moved)}" if moved else ""
        since = to_text(datetime.fromtimestamp(self.since, UTC))
        return (
            f"disagreement {rate} against {self.bound:.2%} in {self.audits} audits since {since}, "
            f"confidence {self.confidence:.4f}{seen}"
        )


def judge_drift(
    audits: AuditStream,
    signals: Sequence[Covariate],
    settings: DriftSettings,
    *,
    since: float,
    now: float,
    covariates_since: float | None = None,
) -> DriftVerdict:
    """The verdict on everything after `since` (the promotion of the stable policy) up to `now`.

    `covariates_since` restarts stage one alone: after a Harmless verdict the moved signals are the
    new normal. Audits after `now` are ignored.
    """
    seen = audits.until(now)
    stream = seen.since(since)
    start = since if covariates_since is None else covariates_since
    alarms = sorted(
        (
            alarm
            for signal in signals
            for alarm in covariate_alarms(signal, settings.covariates, start, now)
        ),
        key=lambda alarm: (alarm.time, -abs(alarm.z / alarm.limit)),
    )
    watch = ChangeDetector(settings.epsilon, settings.false_alarm_audits)
    index = watch.update(stream.wrong)
    if index is not None:
        return _harmful(stream, index, watch, settings, alarms)
    verdict = _unharmed(seen, watch, settings, alarms, since, now)
    # Later audits of a session prove nothing more, and cost as much.
    spent = int(np.count_nonzero(seen.times > alarms[0].time)) if alarms else 0
    wants = verdict.verdict is Drift.NOT_ENOUGH_EVIDENCE and bool(alarms)
    return replace(
        verdict, alarm_audits=spent, wants_audits=wants and spent < settings.alarm_audits
    )


def change_point(wrong: npt.NDArray[np.bool_], epsilon: float) -> int:
    """Most likely index of the first audit at a raised rate: maximum likelihood over ratios."""
    best, found = 0.0, 0
    for ratio in CHANGE_RATIOS:
        rate = ratio * epsilon
        step = np.where(wrong, math.log(ratio), math.log((1 - rate) / (1 - epsilon)))
        tail = np.cumsum(step[::-1])[::-1]
        index = int(tail.argmax()) if len(tail) else 0
        if len(tail) and tail[index] > best:
            best, found = float(tail[index]), index
    return found


def _harmful(
    stream: AuditStream,
    index: int,
    watch: ChangeDetector,
    settings: DriftSettings,
    alarms: Sequence[CovariateAlarm],
) -> DriftVerdict:
    wrong = stream.wrong[: index + 1]
    start = change_point(wrong, settings.epsilon)
    moment = float(stream.times[index])
    # R_n - n is a martingale under the promise, so P(an alarm within n audits) <= n / A.
    confidence = max(0.0, 1.0 - (index + 1) / settings.false_alarm_audits)
    return DriftVerdict(
        verdict=Drift.HARMFUL,
        signal=DISAGREEMENT,
        value=float(wrong[start:].mean()),
        bound=settings.epsilon,
        confidence=confidence,
        audits=index + 1 - start,
        time=moment,
        since=float(stream.times[start]),
        evidence=watch.progress,
        alarms=tuple(alarm for alarm in alarms if alarm.time <= moment),
    )


def _unharmed(
    audits: AuditStream,
    watch: ChangeDetector,
    settings: DriftSettings,
    alarms: Sequence[CovariateAlarm],
    since: float,
    now: float,
) -> DriftVerdict:
    """Without harm: Harmless if an alarm is open and the audits since it prove so."""
    bound = HARMLESS_MARGIN * settings.epsilon
    start = alarms[0].time if alarms else since
    recent = audits.since(start)
    events, trials = np.cumsum(recent.wrong), np.arange(1, len(recent.wrong) + 1)
    log_e = log_e_under(events, trials, bound) if alarms else np.empty(0)
    proven = np.flatnonzero(log_e >= math.log(1.0 / settings.harmless_level))
    count = int(proven[0]) + 1 if len(proven) else len(recent.wrong)
    harmless = len(proven) > 0
    strongest = float(log_e[count - 1]) if len(log_e) else 0.0
    return DriftVerdict(
        verdict=Drift.HARMLESS if harmless else Drift.NOT_ENOUGH_EVIDENCE,
        signal=alarms[0].signal if alarms else "",
        value=float(recent.wrong[:count].mean()) if count else None,
        bound=bound if alarms else settings.epsilon,
        confidence=max(0.0, 1.0 - math.exp(-max(strongest, 0.0))),
        audits=count,
        time=float(recent.times[count - 1]) if harmless else now,
        since=start,
        evidence=watch.progress,
        alarms=tuple(alarms),
    )

"""The drift verdict from sums: what `drift.judge_drift` computes from all audits, kept up to date.

Called by the watch loop (`loop`) through `watch`. Holds a few numbers, the sessions of the current
day and the audits of the last minutes, whatever the traffic was in the month before; `judge_drift`
holds every audit and is the slow reference. Leaves out where the numbers are kept (`checkpoints`).

How it agrees with the reference
* Audits arrive out of order, since workers deliver every few seconds. Those of the last `SETTLE`
  seconds are kept as they are and judged anew on every pass, in order; older ones are folded into
  the sums. An audit that is later than that counts when it comes.
* The first Harmful or Harmless verdict stands: later news of older audits does not take it back.
* What a covariate alarm may look back on is the last `SETTLE` seconds too: one that is found later
  (Prometheus was away) counts audits from there on.
* Sessions are approximate as `sessions` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from trimwheel_pipelines.block_sums import MOST_BLOCKS, BlockSums
from trimwheel_pipelines.covariates import Covariate, CovariateAlarm, covariate_alarms
from trimwheel_pipelines.drift import (
    DISAGREEMENT,
    HARMLESS_MARGIN,
    Drift,
    DriftSettings,
    DriftVerdict,
)
from trimwheel_pipelines.sessions import Floats, Hashes, SessionMemory
from trimwheel_telemetry.change_detection import ChangeDetector
from trimwheel_telemetry.evidence import CHANGE_RATIOS, log_e_under

Flags = npt.NDArray[np.bool_]

SETTLE: Final = 600.0
"""Seconds after which an audit is folded into the sums."""
EARLY: Final = 3600.0
"""An audit that claims to be from further ahead is left out: no clock is that wrong."""
ROW: Final = np.dtype([("time", np.float64), ("wrong", np.bool_), ("session", np.uint64)])
Rows = npt.NDArray[np.void]


@dataclass
class Rise:
    """Where a rate most likely rose to one multiple of epsilon: the largest sum of a tail."""

    ratio: float
    height: float = 0.0
    """That sum, in log likelihood."""
    trials: int = 0
    events: int = 0
    time: float = 0.0
    """Of the first trial after the rise; `trials` and `events` are those before it."""

    def fold(self, times: Floats, wrong: Flags, trials: int, events: int, epsilon: float) -> None:
        """Take trials in order; `trials` and `events` were counted before them."""
        rate = self.ratio * epsilon
        step = np.where(wrong, math.log(self.ratio), math.log((1 - rate) / (1 - epsilon)))
        total = np.cumsum(step)
        before = self.height + np.concatenate([[0.0], total[:-1]])
        lowest = int(before.argmin())
        if before[lowest] < 0.0 or not trials:
            self.trials, self.time = trials + lowest, float(times[lowest])
            self.events = events + int(wrong[:lowest].sum())
        self.height += float(total[-1]) - min(0.0, float(before[lowest]))


@dataclass
class Trials:
    """Everything about the trials so far that a verdict of harm needs."""

    epsilon: float
    threshold: float
    watch: ChangeDetector
    rises: list[Rise]
    count: int = 0
    events: int = 0
    first: float = 0.0
    all_count: int = 0
    all_events: int = 0
    """Those after an alarm as well."""

    @classmethod
    def under(cls, settings: DriftSettings) -> Trials:
        """No trials yet."""
        watch = ChangeDetector(settings.epsilon, settings.false_alarm_audits)
        rises = [Rise(ratio) for ratio in CHANGE_RATIOS]
        return cls(settings.epsilon, settings.false_alarm_audits, watch, rises)

    def copy(self) -> Trials:
        """The same, to go on from."""
        watch = ChangeDetector.from_state(self.watch.to_state())
        return replace(self, watch=watch, rises=[replace(rise) for rise in self.rises])

    def fold(self, times: Floats, wrong: Flags) -> float | None:
        """Take trials in order; the time of the one that alarms, after which none is evidence."""
        self.all_count += len(times)
        self.all_events += int(wrong.sum())
        if not len(times) or self.watch.alarmed:
            return None
        index = self.watch.update(wrong)
        if index is not None:
            times, wrong = times[: index + 1], wrong[: index + 1]
        for rise in self.rises:
            rise.fold(times, wrong, self.count, self.events, self.epsilon)
        if not self.count:
            self.first = float(times[0])
        self.count += len(times)
        self.events += int(wrong.sum())
        return None if index is None else float(times[-1])

    def likeliest(self) -> Rise:
        """Where the rate rose, over all ratios; the first trial where nothing points to a rise."""
        best = max(self.rises, key=lambda rise: rise.height)
        return best if best.height > 0.0 else Rise(1.0, time=self.first)


@dataclass
class Window:
    """Audits since a covariate alarm: are they harmless?"""

    since: float
    bound: float
    level: float
    sessions: SessionMemory
    audits: int = 0
    trials: int = 0
    events: int = 0
    log_e: float = 0.0
    proven: float | None = None
    """Time of the trial that proved it; nothing is counted after it."""

    def copy(self) -> Window:
        """The same, to go on from."""
        return replace(self, sessions=self.sessions.copy())

    def fold(self, rows: Rows) -> None:
        """Take audits in order; those up to the alarm are not its."""
        rows = rows[rows["time"] > self.since]
        self.audits += len(rows)
        if self.proven is not None or not len(rows):
            return
        rows = rows[self.sessions.firsts(rows["time"], rows["session"])]
        if not len(rows):
            return
        events = self.events + np.cumsum(rows["wrong"])
        trials = self.trials + np.arange(1, len(rows) + 1)
        log_e = log_e_under(events, trials, self.bound)
        proven = np.flatnonzero(log_e >= math.log(1.0 / self.level))
        last = int(proven[0]) if len(proven) else len(rows) - 1
        self.events, self.trials = int(events[last]), int(trials[last])
        self.log_e = float(log_e[last])
        self.proven = float(rows["time"][last]) if len(proven) else None


@dataclass
class DriftSums:
    """The watch over one stable policy, since it became stable (Unix seconds)."""

    settings: DriftSettings
    since: float
    score: BlockSums
    trials: Trials
    sessions: SessionMemory
    covariates_since: float
    recent: Rows = field(default_factory=lambda: np.empty(0, ROW))
    window: Window | None = None
    harmful: DriftVerdict | None = None
    harmless: DriftVerdict | None = None

    @classmethod
    def start(cls, settings: DriftSettings, since: float, score: str) -> DriftSums:
        """Nothing seen yet; `score` names the signal of the first exit's score."""
        return cls(
            settings=settings,
            since=since,
            score=BlockSums(score, since, settings.covariates.block),
            trials=Trials.under(settings),
            sessions=SessionMemory(since),
            covariates_since=since,
        )

    def add(
        self, times: Floats, wrong: Flags, sessions: Hashes, scores: Floats, now: float
    ) -> None:
        """Take audits of the stable policy, in any order."""
        inside = (times > self.since) & (times <= now + EARLY)
        self.score.add(times[inside], scores[inside])
        fresh = np.empty(int(inside.sum()), ROW)
        fresh["time"], fresh["wrong"] = times[inside], wrong[inside]
        fresh["session"] = sessions[inside]
        joined = np.concatenate([self.recent, fresh])
        self.recent = joined[np.argsort(joined["time"], kind="stable")]

    def verdict(self, signals: Sequence[Covariate], now: float) -> DriftVerdict:
        """The verdict now. After a Harmless one what moved is the new normal: stage one restarts.

        Folds what has settled, so `now` never goes back.
        """
        if now - self.covariates_since > MOST_BLOCKS * self.settings.covariates.block:
            self._restart(now, signals)
        verdict = self._judged(signals, now)
        while verdict.verdict is Drift.HARMLESS:
            self.harmless = verdict
            self._restart(verdict.time, signals)
            verdict = self._judged(signals, now)
        self._fold(now)
        if self.harmless is not None and verdict.verdict is not Drift.HARMFUL:
            # Nothing new since the last alarm was judged: its answer stands.
            if not verdict.signal:
                return replace(self.harmless, evidence=verdict.evidence)
        return verdict

    def disagreement(self, now: float) -> float | None:
        """Share of trials that disagreed; None without any."""
        trials = self._trials_at(now)[0]
        return trials.all_events / trials.all_count if trials.all_count else None

    # ------------------------------------------------------------------ judging

    def _judged(self, signals: Sequence[Covariate], now: float) -> DriftVerdict:
        if self.harmful is not None:
            return self.harmful
        alarms = self._alarms(signals, now)
        trials, alarmed = self._trials_at(now)
        if alarmed is not None:
            self.harmful = self._harm(trials, alarmed, alarms)
            return self.harmful
        window = self._window_at(alarms, now)
        return self._unharmed(trials, window, alarms, now)

    def _alarms(self, signals: Sequence[Covariate], now: float) -> list[CovariateAlarm]:
        return sorted(
            (
                alarm
                for signal in signals
                for alarm in covariate_alarms(
                    signal, self.settings.covariates, self.covariates_since, now
                )
            ),
            key=lambda alarm: (alarm.time, -abs(alarm.z / alarm.limit)),
        )

    def _trials_at(self, now: float) -> tuple[Trials, float | None]:
        """The sums with what is recent, and when that raised the alarm."""
        trials, sessions, rows = self.trials.copy(), self.sessions.copy(), self._until(now)
        rows = rows[sessions.firsts(rows["time"], rows["session"])]
        return trials, trials.fold(rows["time"], rows["wrong"])

    def _window_at(self, alarms: Sequence[CovariateAlarm], now: float) -> Window | None:
        """The open alarm's window with what is recent; opened or closed as alarms say."""
        if not alarms:
            self.window = None
            return None
        since = alarms[0].time
        if self.window is None or self.window.since != since:
            bound = HARMLESS_MARGIN * self.settings.epsilon
            level = self.settings.harmless_level
            self.window = Window(since, bound, level, SessionMemory(since))
        window = self.window.copy()
        window.fold(self._until(now))
        return window

    def _harm(
        self, trials: Trials, moment: float, alarms: Sequence[CovariateAlarm]
    ) -> DriftVerdict:
        rise = trials.likeliest()
        audits = trials.count - rise.trials
        settings = self.settings
        # R_n - n is a martingale under the promise, so P(an alarm within n audits) <= n / A.
        return DriftVerdict(
            verdict=Drift.HARMFUL,
            signal=DISAGREEMENT,
            value=(trials.events - rise.events) / audits,
            bound=settings.epsilon,
            confidence=max(0.0, 1.0 - trials.count / settings.false_alarm_audits),
            audits=audits,
            time=moment,
            since=rise.time,
            evidence=trials.watch.progress,
            alarms=tuple(alarm for alarm in alarms if alarm.time <= moment),
        )

    def _unharmed(
        self,
        trials: Trials,
        window: Window | None,
        alarms: Sequence[CovariateAlarm],
        now: float,
    ) -> DriftVerdict:
        settings = self.settings
        counted = trials.count if window is None else window.trials
        events = trials.events if window is None else window.events
        proven = window.proven if window else None
        spent = window.audits if window else 0
        return DriftVerdict(
            verdict=Drift.NOT_ENOUGH_EVIDENCE if proven is None else Drift.HARMLESS,
            signal=alarms[0].signal if alarms else "",
            value=events / counted if counted else None,
            bound=window.bound if window else settings.epsilon,
            confidence=max(0.0, 1.0 - math.exp(-max(window.log_e if window else 0.0, 0.0))),
            audits=counted,
            time=now if proven is None else proven,
            since=window.since if window else self.since,
            evidence=trials.watch.progress,
            alarms=tuple(alarms),
            alarm_audits=spent,
            wants_audits=window is not None and proven is None and spent < settings.alarm_audits,
        )

    # ------------------------------------------------------------------ keeping

    def _until(self, now: float) -> Rows:
        return self.recent[: int(np.searchsorted(self.recent["time"], now, side="right"))]

    def _fold(self, now: float) -> None:
        """Move settled audits into the sums; a long history settles by its own clock."""
        if not len(self.recent):
            return
        newest = min(now, float(self.recent["time"][-1]))
        count = int(np.searchsorted(self.recent["time"], newest - SETTLE, side="right"))
        settled, self.recent = self.recent[:count], self.recent[count:].copy()
        trials = settled[self.sessions.firsts(settled["time"], settled["session"])]
        self.trials.fold(trials["time"], trials["wrong"])
        if self.window is not None:
            self.window.fold(settled)

    def _restart(self, moment: float, signals: Sequence[Covariate]) -> None:
        """Stage one again from a moment on, at the next edge of a block."""
        self.covariates_since, self.window = moment, None
        for signal in (self.score, *signals):
            if isinstance(signal, BlockSums):
                signal.forget(moment)

"""A rollout's counters as sums, fed with what is new: what its guards need of a day of samples.

Used by `evidence`, which asks Prometheus. Held are, for each line, its last sample (for requests,
those of the last minutes), and for each guard sums and blocks of all workers together: fifty
workers of a day-long canary take some megabytes, where their samples took hundreds.
`trimwheel_telemetry.counters`, on all samples at once, is the slow reference and says what each
number means. Losing this (a restart) costs reading the rollout's history again, a window at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trimwheel_api import metrics, names
from trimwheel_telemetry.answers import Series
from trimwheel_telemetry.counters import (
    BLOCK_SECONDS,
    Increments,
    Window,
    evidence_state,
    increments,
    reaches_back,
)
from trimwheel_telemetry.verdicts import DataState, GuardEvidence

Floats = npt.NDArray[np.float64]
Labels = tuple[tuple[str, str], ...]

RECENT_SECONDS = 600.0
STEP_SLACK_SECONDS = 60.0


@dataclass(slots=True)
class Line:
    """One counter of one worker: its last sample, and what it added since the start."""

    time: float
    value: float
    added: float = 0.0


@dataclass
class Lines:
    """All lines of one metric since `since`, read up to `until`."""

    since: float
    until: float | None = None
    reaches_back: bool = False
    first: float | None = None
    """Time of the first sample, where the answer did not reach back."""
    lines: dict[Labels, Line] = field(default_factory=dict)

    def feed(self, series: Sequence[Series], until: float) -> list[tuple[Labels, Increments]]:
        """Take an answer up to `until`; what each line added since the one before."""
        whole = Window(since=self.since, until=until, max_age=0.0)
        if not self.lines:
            self.reaches_back = reaches_back(series, whole)
            if not self.reaches_back:
                self.first = next((float(s.times[0]) for s in series if len(s.times)), None)
        added = []
        for line in series:
            key = tuple(sorted(line.labels.items()))
            fresh = self._fresh(key, line, whole)
            if fresh is not None:
                added.append((key, fresh))
        self.until = until
        return added

    def _fresh(self, key: Labels, line: Series, whole: Window) -> Increments | None:
        known = self.lines.get(key)
        if known is not None:
            newer = line.times > known.time
            line = Series(
                line.labels,
                np.concatenate([[known.time], line.times[newer]]),
                np.concatenate([[known.value], line.values[newer]]),
            )
            since = max(whole.since, known.time)
            whole = Window(since=since, until=whole.until, max_age=0.0)
        seen = line.times <= whole.until
        if not seen.any():
            return None
        found = increments(line, whole, history=self.reaches_back)
        last = int(np.flatnonzero(seen)[-1])
        total = (known.added if known else 0.0) + found.total
        self.lines[key] = Line(float(line.times[last]), float(line.values[last]), total)
        return found

    def totals(self) -> tuple[Series, ...]:
        """Each line as the two samples that say what it added since the start."""
        return tuple(
            Series(
                dict(key),
                np.array([self.since, max(line.time, self.since + 1e-3)]),
                np.array([0.0, line.added]),
            )
            for key, line in self.lines.items()
        )


@dataclass
class GuardTally:
    """One guard's trials and events of both arms."""

    table: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    sums: Floats = field(default_factory=lambda: np.zeros(4))
    newest: float | None = None
    reset: float | None = None

    def add(self, column: int, found: Increments, since: float) -> None:
        """Take what a line of this column (`_column`) added."""
        self.sums[column] += found.total
        if found.resets:
            self.reset = max(self.reset or 0.0, *found.resets)
        if column == 0 and found.newest is not None:
            self.newest = max(self.newest or 0.0, found.newest)
        near = found.spans <= 2 * BLOCK_SECONDS
        index = ((found.times[near] - since) / BLOCK_SECONDS).astype(np.int64)
        if not len(index):
            return
        width = int(index.max()) + 1
        if width > len(self.table):
            grown = np.zeros((max(width, 2 * len(self.table)), 4))
            grown[: len(self.table)] = self.table
            self.table = grown
        self.table[:width, column] += np.bincount(
            index, weights=found.amounts[near], minlength=width
        )


@dataclass
class Tallies:
    """One attempt: a rollout since its start, judged for one candidate digest."""

    uid: str
    candidate: str
    since: float
    step_since: float
    read: dict[str, Lines] = field(default_factory=dict)
    guards: dict[str, GuardTally] = field(default_factory=dict)
    answered: float = 0.0
    """By the candidate since the start."""
    step_answered: float = 0.0
    """By the candidate since the step began."""
    device: float = 0.0
    """Engine seconds of the candidate since the start."""
    recent: dict[Labels, Series] = field(default_factory=dict)
    """Requests of the last `RECENT_SECONDS`: arrivals are counted over less."""

    def step(self, since: float) -> bool:
        """Go on with a step that began then; False where that was long before the last look.

        Then its requests cannot be told from those before it, and everything is read again. A step
        begins in the pass of a look, written in whole seconds: what was read of that second counts
        for the step before it.
        """
        if since != self.step_since:
            read = self.lines(metrics.REQUESTS).until
            if read is not None and since < read - STEP_SLACK_SECONDS:
                return False
            self.step_since, self.step_answered = since, 0.0
        return True

    def lines(self, metric: metrics.Metric) -> Lines:
        """The lines of a metric."""
        return self.read.setdefault(metric.name, Lines(self.since))

    def feed(self, metric: metrics.Metric, series: Sequence[Series], until: float) -> None:
        """Take an answer; samples that were taken before are left."""
        if metric is metrics.REQUESTS:
            self._remember(series, until)
        for key, found in self.lines(metric).feed(series, until):
            labels = dict(key)
            if metric in (metrics.GUARD_TRIALS, metrics.GUARD_EVENTS):
                self._feed_guard(metric, labels, found)
            elif labels.get("arm") != names.ARM_CANDIDATE:
                continue
            elif metric is metrics.DEVICE_SECONDS:
                self.device += found.total
            elif labels.get("code") == metrics.CODE_ANSWERED:
                self.answered += found.total
                self.step_answered += float(found.amounts[found.times > self.step_since].sum())

    def evidence(self, guard: str, window: Window) -> GuardEvidence:
        """What `counters.guard_evidence` says of all samples so far."""
        tally = self.guards.get(guard, GuardTally())
        trials = self.lines(metrics.GUARD_TRIALS)
        resets = [moment for moment in (tally.reset,) if moment is not None]
        if not trials.reaches_back and trials.first is not None:
            resets.append(trials.first)
        newest = [] if tally.newest is None else [tally.newest]
        state, reason = evidence_state(newest, resets, window)
        if self._unpaired(guard):
            state = DataState.ABSENT
            reason = "a worker reports this guard's trials but not its events"
        sums = tally.sums
        return GuardEvidence(
            trials=float(sums[0]),
            events=float(min(sums[2], sums[0])),
            stable_trials=float(sums[1]),
            stable_events=float(sums[3]),
            blocks=tally.table[tally.table.any(axis=1)],
            state=state,
            reason=reason,
        )

    def _remember(self, series: Sequence[Series], until: float) -> None:
        held = dict(self.recent)
        for line in series:
            key = tuple(sorted(line.labels.items()))
            known = held.get(key)
            if known is None:
                held[key] = line
            else:
                newer = line.times > known.times[-1]
                times = np.concatenate([known.times, line.times[newer]])
                values = np.concatenate([known.values, line.values[newer]])
                held[key] = Series(line.labels, times, values)
        self.recent = {}
        for key, line in held.items():
            kept = line.times > until - RECENT_SECONDS
            if kept.any():
                self.recent[key] = Series(line.labels, line.times[kept], line.values[kept])

    def _feed_guard(
        self, metric: metrics.Metric, labels: dict[str, str], found: Increments
    ) -> None:
        column = _column(labels, self.candidate, metric is metrics.GUARD_EVENTS)
        if column is not None:
            tally = self.guards.setdefault(labels.get("guard", ""), GuardTally())
            tally.add(column, found, self.since)

    def _unpaired(self, guard: str) -> bool:
        """Whether some worker's event counter is missing: its silence must not look like success"""
        wanted = {("guard", guard), ("arm", names.ARM_CANDIDATE), ("digest", self.candidate)}

        def keys(lines: Iterable[Labels]) -> set[frozenset[tuple[str, str]]]:
            chosen = (frozenset(one for one in key if one[0] != "__name__") for key in lines)
            return {key for key in chosen if wanted <= key}

        trials, events = (self.lines(one).lines for one in (metrics.GUARD_TRIALS,
                                                            metrics.GUARD_EVENTS))  # fmt: skip
        return not keys(trials) <= keys(events)


def _column(labels: dict[str, str], candidate: str, is_event: bool) -> int | None:
    """Candidate's trials, stable's trials, candidate's events, stable's events; None for others."""
    arm, digest = labels.get("arm"), labels.get("digest")
    if arm == names.ARM_CANDIDATE and digest == candidate:
        return 2 * is_event
    if arm == names.ARM_STABLE and digest != candidate:
        return 1 + 2 * is_event
    return None

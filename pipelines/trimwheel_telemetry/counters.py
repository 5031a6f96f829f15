"""From raw counter samples to counts: reset-aware, baselined, cut into short blocks.

Called by the operator with what `client.Prometheus.raw` returned for `trimwheel_guard_trials_total`
and `trimwheel_guard_events_total`. Pure. It never uses `rate()` or `increase()`: both extrapolate
to the window's edges and lose the first event of a new series, which on thin traffic is the
evidence itself.

Rules
* An increment is the difference of neighbouring samples; after a reset, the new value itself.
* A series that was there before `since` is baselined at its last sample up to `since`. One that
  appears later counts from 0, because workers create their series at 0; but only if the answer
  reaches back to `since` at all, else Prometheus lost its history and the first sample is the base.
* Blocks are at most 15 s and only take increments between neighbouring scrapes, so that both arms
  of a block saw the same background.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trimwheel_api.names import ARM_CANDIDATE, ARM_STABLE
from trimwheel_telemetry.answers import Series
from trimwheel_telemetry.verdicts import DataState, GuardEvidence

Floats = npt.NDArray[np.float64]

BLOCK_SECONDS: Final = 15.0
"""Longest block of the relative test."""
LOOKBACK_SECONDS: Final = 300.0
"""How far before `since` to ask for samples, so that a series' baseline is found."""
SETTLE_SECONDS: Final = 60.0
"""After a reset, how long no Pass is given: what a worker counted last before it died is lost."""


@dataclass(frozen=True)
class Window:
    """The time that evidence is taken from, and how fresh it must be. Unix seconds."""

    since: float
    until: float
    max_age: float  # the newest sample may be this old
    block: float = BLOCK_SECONDS
    settle: float = SETTLE_SECONDS

    def __post_init__(self) -> None:
        if not 0 < self.block <= BLOCK_SECONDS:
            raise ValueError(f"block: must lie in (0, {BLOCK_SECONDS:g}] s, got {self.block}")

    @property
    def blocks(self) -> int:
        """Number of blocks that cover the window."""
        return max(1, int(np.ceil((self.until - self.since) / self.block)))


@dataclass(frozen=True)
class Increments:
    """What one series added inside a window."""

    times: Floats  # of the later sample of each pair
    amounts: Floats
    spans: Floats  # seconds between the two samples
    newest: float | None  # time of the newest sample up to the window's end
    resets: tuple[float, ...]  # times of samples below their predecessor

    @property
    def total(self) -> float:
        """Everything added."""
        return float(self.amounts.sum())


def increments(series: Series, window: Window, *, history: bool = True) -> Increments:
    """Increments of one counter in (since, until].

    `history`: whether the answer reaches back to `since`, so that a series without a sample
    before it really is new and starts at 0.
    """
    seen = series.times <= window.until
    times, values = series.times[seen], series.values[seen]
    start = int(np.searchsorted(times, window.since, side="right"))
    if start > 0:
        base, base_time = float(values[start - 1]), float(times[start - 1])
    elif history and len(times):
        base, base_time = 0.0, max(window.since, float(times[0]) - window.block)
    elif len(times):
        base, base_time, start = float(values[0]), float(times[0]), 1
    else:
        base, base_time = 0.0, window.since
    inside_times, inside = times[start:], values[start:]
    previous = np.concatenate([[base], inside[:-1]])
    before = np.concatenate([[base_time], inside_times[:-1]])
    fell = inside < previous[: len(inside)]
    return Increments(
        times=inside_times,
        amounts=np.where(fell, inside, inside - previous[: len(inside)]),
        spans=inside_times - before[: len(inside)],
        newest=float(times[-1]) if len(times) else None,
        resets=tuple(float(moment) for moment in inside_times[fell]),
    )


def total(
    series: Iterable[Series], window: Window, *, history_of: Iterable[Series] | None = None
) -> float:
    """Sum of increments over many series (pods, exits, codes).

    `history_of`: lines that show how far the answer reaches back, when `series` are only some.
    """
    lines = tuple(series)
    history = reaches_back(lines if history_of is None else history_of, window)
    return sum((increments(line, window, history=history).total for line in lines), 0.0)


def reaches_back(series: Iterable[Series], window: Window) -> bool:
    """Whether any line has a sample from before the window, so that "absent" means "new"."""
    return any(len(line.times) and line.times[0] <= window.since for line in series)


def newest_sample(series: Iterable[Series], window: Window) -> float | None:
    """Time of the newest sample up to the window's end; None without any."""
    moments = [line.times[line.times <= window.until] for line in series]
    return max((float(times[-1]) for times in moments if len(times)), default=None)


def reporting_pods(series: Iterable[Series], window: Window) -> int:
    """How many pods have a fresh sample: what the others count is missing, not nothing."""
    return len(
        {
            line.labels.get("pod", "")
            for line in series
            if (newest := newest_sample([line], window)) is not None
            and window.until - newest <= window.max_age
        }
    )


def covered_seconds(series: Iterable[Series], window: Window) -> float:
    """How much of the window counters speak of: up to the newest sample, from the window's start,
    or from the first sample where the answer does not reach back (Prometheus lost its history).
    """
    lines = tuple(series)
    newest = newest_sample(lines, window)
    if newest is None:
        return 0.0
    started = window.since
    if not reaches_back(lines, window):
        started = min(float(line.times[0]) for line in lines if len(line.times))
    return max(0.0, newest - started)


def matching(series: Iterable[Series], **labels: str) -> tuple[Series, ...]:
    """The lines that carry these label values."""
    return tuple(
        line
        for line in series
        if all(line.labels.get(name) == value for name, value in labels.items())
    )


def guard_evidence(
    trials: Sequence[Series],
    events: Sequence[Series],
    *,
    guard: str,
    candidate: str,
    window: Window,
) -> GuardEvidence:
    """Evidence of one guard about the candidate digest, with the stable arm as the background.

    `trials` and `events` are all lines of the two guard metrics for this model, from
    `LOOKBACK_SECONDS` before `since`; other guards, arms and candidates in them are ignored, save
    that they show how far back the history goes. Stable may change under a canary (an expired
    certificate sends everyone to full depth); whatever it was then is the background.
    """
    history = reaches_back(trials, window)
    table = np.zeros((window.blocks, 4))
    sums = np.zeros(4)
    newest: list[float] = []
    resets: list[float] = []
    if not history:  # Prometheus started anew inside the window: that is a reset of everything
        resets += [float(line.times[0]) for line in trials if len(line.times)][:1]
    roles = [
        arm
        for lines in (matching(trials, guard=guard), matching(events, guard=guard))
        for arm in (
            matching(lines, arm=ARM_CANDIDATE, digest=candidate),
            [one for one in matching(lines, arm=ARM_STABLE) if one.labels["digest"] != candidate],
        )
    ]
    for column, lines in enumerate(roles):
        for line in lines:
            found = increments(line, window, history=history)
            sums[column] += found.total
            table[:, column] += _by_block(found, window)
            resets += found.resets
            if column == 0 and found.newest is not None:
                newest.append(found.newest)
    state, reason = evidence_state(newest, resets, window)
    if _unpaired(trials, events, guard, candidate):
        state, reason = DataState.ABSENT, "a worker reports this guard's trials but not its events"
    return GuardEvidence(
        trials=float(sums[0]),
        events=float(min(sums[2], sums[0])),
        stable_trials=float(sums[1]),
        stable_events=float(sums[3]),
        blocks=table[table.any(axis=1)],
        state=state,
        reason=reason,
    )


def _unpaired(
    trials: Sequence[Series], events: Sequence[Series], guard: str, candidate: str
) -> bool:
    """Whether some worker's event counter is missing: its silence must not look like success."""

    def keys(lines: Sequence[Series]) -> set[frozenset[tuple[str, str]]]:
        chosen = matching(lines, guard=guard, arm=ARM_CANDIDATE, digest=candidate)
        return {
            frozenset((name, value) for name, value in line.labels.items() if name != "__name__")
            for line in chosen
        }

    return not keys(trials) <= keys(events)


def _by_block(found: Increments, window: Window) -> Floats:
    """Amounts summed by block; an increment across a gap in the scrapes belongs to none."""
    near = found.spans <= 2 * window.block
    index = ((found.times[near] - window.since) / window.block).astype(np.int64)
    index = np.clip(index, 0, window.blocks - 1)
    blocks = np.bincount(index, weights=found.amounts[near], minlength=window.blocks)
    return blocks.astype(np.float64)


def evidence_state(
    newest: Sequence[float], resets: Sequence[float], window: Window
) -> tuple[DataState, str]:
    """Whether counters are fresh enough to judge by, and why not."""
    if not newest:
        return DataState.ABSENT, "no worker reports this guard for the candidate"
    age = window.until - max(newest)
    if age > window.max_age:
        return (
            DataState.STALE,
            f"the newest sample is {age:.0f} s old, more than {window.max_age:g} s",
        )
    if resets and window.until - max(resets) < window.settle:
        return (
            DataState.RESET,
            f"counters, or Prometheus itself, restarted {window.until - max(resets):.0f} s ago",
        )
    return DataState.FRESH, ""

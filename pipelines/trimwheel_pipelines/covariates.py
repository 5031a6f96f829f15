"""Stage one of drift detection: has a covariate signal (exit depth, confidence, length) moved?

Called by `drift`. Pure: blocks are means over time, the past sets the alarm level, the clock is an
argument. A covariate alarm is a reason to look closer (more audits, a tuning run), never a reason
to roll back: half of such moves are harmless, and a harmful change of class mix shows in none.

Two forms, chosen by the length of the reference
* profile (reference of at least two days): block mean less its hour-of-day profile; alarm when two
  consecutive blocks exceed 1.1 times the largest residual of that sign in the reference and a
  minimum effect.
  Telemetry is autocorrelated, so the level is calibrated on the signal's own past, not on theory.
* z (shorter): two consecutive blocks beyond 6 standard errors of the reference mean. Right only for
  independent requests, such as those of a load generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONSTANT_MOVE: Final = 0.01
"""Part of a constant signal's value by which it must change to have moved."""
LEAST_BLOCKS: Final = 3
"""Reference blocks that show how much blocks differ."""
NOISE_TAIL: Final = 4.0
"""Largest residual of noise in its median: 1,300 normal ones reach five, these are mostly few."""
DAY: Final = 86_400.0
HOUR: Final = 3_600.0


@dataclass(frozen=True)
class CovariateSettings:
    """When a signal counts as moved."""

    block: float = 900.0  # seconds
    reference: float = 14 * DAY  # seconds of clean history, from the start of the watch
    residual_factor: float = 1.1  # profile: times the largest clean residual
    minimum_effect: float = 0.1  # in standard deviations of single requests
    z_limit: float = 6.0  # z: standard errors
    consecutive: int = 2
    minimum_count: int = 20  # a thinner block is skipped
    alarm_gap: float = DAY  # after an alarm, none for this long

    def __post_init__(self) -> None:
        if self.block <= 0 or self.reference < 3 * self.block:
            raise ValueError(
                f"reference: must hold at least 3 blocks of {self.block:g} s, "
                f"got {self.reference:g} s"
            )

    @property
    def by_profile(self) -> bool:
        """Whether an hour-of-day profile can be learnt."""
        return self.reference >= 2 * DAY


@dataclass(frozen=True)
class CovariateAlarm:
    """A signal moved: what it was expected to be, and what it is."""

    signal: str
    time: float  # end of the block that completed the alarm
    value: float
    expected: float
    z: float  # standard errors (z form), or residuals of the reference's largest (profile form)
    limit: float


@dataclass(frozen=True)
class Blocks:
    """Whole blocks with enough samples, oldest first."""

    ends: Floats
    means: Floats
    counts: Floats


@dataclass(frozen=True)
class Cut:
    """A signal cut into blocks from `start` on; `spread` is that of single requests early on."""

    blocks: Blocks
    spread: float
    start: float


class Covariate(Protocol):
    """What stage one asks of a signal: `Signal` holds its samples, `BlockSums` their sums."""

    @property
    def name(self) -> str:
        """What moved, in verdicts."""

    def cut(self, settings: CovariateSettings, since: float, now: float) -> Cut:
        """The signal's whole blocks in (since, now]."""


@dataclass(frozen=True)
class Signal:
    """One covariate of single requests; times in Unix seconds, any order."""

    name: str
    times: Floats
    values: Floats

    def cut(self, settings: CovariateSettings, since: float, now: float) -> Cut:
        """Means of whole blocks, and the spread of single requests in the reference."""
        whole = max(0, int((now - since) // settings.block))
        index = np.floor((self.times - since) / settings.block).astype(np.int64)
        inside = (self.times > since) & (index < whole)
        index, values = index[inside], self.values[inside]
        counts = np.bincount(index, minlength=whole).astype(np.float64)
        sums = np.bincount(index, weights=values, minlength=whole).astype(np.float64)
        kept = counts >= settings.minimum_count
        ends: Floats = since + (np.arange(whole, dtype=np.float64) + 1.0) * settings.block
        early = values[index < settings.reference / settings.block]
        spread = float(early.std()) if len(early) > 1 else 0.0
        means: Floats = sums[kept] / counts[kept]
        return Cut(Blocks(ends[kept], means, counts[kept]), spread, since)


def covariate_alarms(
    signal: Covariate, settings: CovariateSettings, since: float, now: float
) -> list[CovariateAlarm]:
    """All alarms of one signal in (since, now], oldest first; whole blocks only.

    The watch starts at `since` (a promotion, or a harmless verdict) with its reference.
    """
    cut = signal.cut(settings, since, now)
    blocks, spread = cut.blocks, cut.spread
    form = _profile if settings.by_profile else _z
    ratios, expected = form(blocks, spread, settings, cut.start)
    limit = settings.residual_factor if settings.by_profile else settings.z_limit
    alarms: list[CovariateAlarm] = []
    run, last = 0, -1
    effects = np.abs(blocks.means - expected)
    beyond = (np.abs(ratios) > limit) & (effects >= settings.minimum_effect * spread)
    for index in (int(place) for place in np.flatnonzero(beyond)):
        ratio = float(ratios[index])
        follows = index == last + 1 and run and ratio * float(ratios[last]) >= 0
        run, last = (run + 1 if follows else 1), index
        time = float(blocks.ends[index])
        quiet = not alarms or time - alarms[-1].time >= settings.alarm_gap
        if run >= settings.consecutive and quiet:
            alarms.append(
                CovariateAlarm(
                    signal.name,
                    time,
                    float(blocks.means[index]),
                    float(expected[index]),
                    ratio,
                    limit,
                )
            )
    return alarms


def newest_z(
    signal: Covariate, settings: CovariateSettings, since: float, now: float
) -> float | None:
    """How far the newest whole block is from its reference, in the alarm's unit; for dashboards."""
    cut = signal.cut(settings, since, now)
    form = _profile if settings.by_profile else _z
    ratios, _ = form(cut.blocks, cut.spread, settings, cut.start)
    return float(ratios[-1]) if len(ratios) and np.isfinite(ratios[-1]) else None


def _z(
    blocks: Blocks, spread: float, settings: CovariateSettings, since: float
) -> tuple[Floats, Floats]:
    """Standard errors from the reference mean; 0 inside the reference itself.

    Requests of one block may resemble each other, so an error is never smaller than what the
    reference's own blocks show; nor than what counts as a move of a constant signal.
    """
    past = blocks.ends <= since + settings.reference + 1e-6
    total = blocks.counts[past].sum()
    if not total:
        return np.zeros(len(blocks.ends)), blocks.means
    centre = float(blocks.means[past] @ blocks.counts[past] / total)
    error = spread * np.sqrt(1.0 / blocks.counts + 1.0 / total)
    if past.sum() >= LEAST_BLOCKS:
        error = np.maximum(error, float(blocks.means[past].std(ddof=1)))
    error = np.maximum(error, _least_move(centre, settings) / settings.z_limit)
    ratios = np.where(past, 0.0, (blocks.means - centre) / error)
    return ratios, np.full(len(blocks.ends), centre)


def _profile(
    blocks: Blocks, spread: float, settings: CovariateSettings, since: float
) -> tuple[Floats, Floats]:
    """Residuals from the hour-of-day profile, over the largest one of that sign in the reference.

    The two signs apart: a reference that once stepped up says nothing of how far down is usual. A
    reference block is compared with the *other* blocks of its hour, else a single block would fit
    itself; an hour without any is compared with all blocks, over their largest distance.
    """
    past = blocks.ends <= since + settings.reference + 1e-6
    if not past.any():
        return np.zeros(len(blocks.ends)), blocks.means
    hours = ((blocks.ends - settings.block / 2) % DAY // HOUR).astype(np.int64)
    means = blocks.means
    overall = float(means[past].mean())
    counts = np.bincount(hours[past], minlength=24).astype(np.float64)
    sums = np.bincount(hours[past], weights=means[past], minlength=24)
    others = counts[hours] - past
    known = others > 0
    expected = np.where(
        known, (sums[hours] - np.where(past, means, 0.0)) / np.maximum(others, 1.0), overall
    )
    residual = means - expected
    least = _least_move(overall, settings)
    by_hour, strangers = residual[past & known], (means - overall)[past]
    scale = np.where(
        known,
        np.where(residual >= 0, _largest(by_hour, 1, least), _largest(by_hour, -1, least)),
        np.where(residual >= 0, _largest(strangers, 1, least), _largest(strangers, -1, least)),
    )
    return np.where(past, 0.0, residual / scale), expected


def _largest(residuals: Floats, sign: int, least: float) -> float:
    """The largest residual of a sign, at least what counts as a move.

    Nor is it below `NOISE_TAIL` median residuals: noise is not one-sided, steps are.
    """
    if not len(residuals):
        return least
    largest = float((sign * residuals).max())
    return max(largest, float(np.median(np.abs(residuals))) * NOISE_TAIL, least)


def _least_move(centre: float, settings: CovariateSettings) -> float:
    """The smallest change that is a move of a signal that never changed in the reference."""
    return max(CONSTANT_MOVE * abs(centre), 1e-9) / settings.residual_factor

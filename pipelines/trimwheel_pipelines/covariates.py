"""Stage one of drift detection: has a covariate signal (exit depth, confidence, length) moved?

Called by `drift`. Pure: blocks are means over time, the past sets the alarm level, the clock is an
argument. A covariate alarm is a reason to look closer (more audits, a tuning run), never a reason
to roll back: half of such moves are harmless, and a harmful change of class mix shows in none.

Two forms, chosen by the length of the reference
* profile (reference of at least two days): block mean less its hour-of-day profile; alarm when two
  consecutive blocks exceed 1.1 times the largest residual of the reference and a minimum effect.
  Telemetry is autocorrelated, so the level is calibrated on the signal's own past, not on theory.
* z (shorter): two consecutive blocks beyond 6 standard errors of the reference mean. Right only for
  independent requests, such as those of a load generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DAY: Final = 86_400.0
HOUR: Final = 3_600.0


@dataclass(frozen=True)
class Signal:
    """One covariate of single requests; times in Unix seconds, any order."""

    name: str
    times: Floats
    values: Floats


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
class _Blocks:
    ends: Floats
    means: Floats
    counts: Floats


def covariate_alarms(
    signal: Signal, settings: CovariateSettings, since: float, now: float
) -> list[CovariateAlarm]:
    """All alarms of one signal in (since, now], oldest first; whole blocks only.

    The watch starts at `since` (a promotion, or a harmless verdict) with its reference.
    """
    blocks, spread = _cut(signal, settings, since, now)
    ratios, expected = (_profile if settings.by_profile else _z)(blocks, spread, settings, since)
    limit = settings.residual_factor if settings.by_profile else settings.z_limit
    alarms: list[CovariateAlarm] = []
    run = 0
    previous = 0.0
    for index in range(len(ratios)):
        ratio = float(ratios[index])
        beyond = abs(ratio) > limit
        effect = abs(float(blocks.means[index] - expected[index]))
        if not beyond or effect < settings.minimum_effect * spread:
            run, previous = 0, 0.0
            continue
        run = run + 1 if ratio * previous >= 0 else 1
        previous = ratio
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


def newest_z(signal: Signal, settings: CovariateSettings, since: float, now: float) -> float | None:
    """How far the newest whole block is from its reference, in the alarm's unit; for dashboards."""
    blocks, spread = _cut(signal, settings, since, now)
    form = _profile if settings.by_profile else _z
    ratios, _ = form(blocks, spread, settings, since)
    return float(ratios[-1]) if len(ratios) and np.isfinite(ratios[-1]) else None


def _cut(
    signal: Signal, settings: CovariateSettings, since: float, now: float
) -> tuple[_Blocks, float]:
    """Means of whole blocks, and the spread of single requests in the reference."""
    whole = int((now - since) // settings.block)
    index = np.floor((signal.times - since) / settings.block).astype(np.int64)
    inside = (signal.times > since) & (index < whole)
    index, values = index[inside], signal.values[inside]
    counts = np.bincount(index, minlength=whole).astype(np.float64)
    sums = np.bincount(index, weights=values, minlength=whole).astype(np.float64)
    kept = counts >= settings.minimum_count
    ends: Floats = since + (np.arange(whole, dtype=np.float64) + 1.0) * settings.block
    early = values[index < settings.reference / settings.block]
    spread = float(early.std()) if len(early) > 1 else 0.0
    means: Floats = sums[kept] / counts[kept]
    return _Blocks(ends[kept], means, counts[kept]), spread


def _z(
    blocks: _Blocks, spread: float, settings: CovariateSettings, since: float
) -> tuple[Floats, Floats]:
    """Standard errors from the reference mean; 0 inside the reference itself."""
    past = blocks.ends <= since + settings.reference + 1e-6
    total = blocks.counts[past].sum()
    if not total or spread == 0.0:
        return np.zeros(len(blocks.ends)), blocks.means
    centre = float(blocks.means[past] @ blocks.counts[past] / total)
    error = spread * np.sqrt(1.0 / blocks.counts + 1.0 / total)
    ratios = np.where(past, 0.0, (blocks.means - centre) / error)
    return ratios, np.full(len(blocks.ends), centre)


def _profile(
    blocks: _Blocks, spread: float, settings: CovariateSettings, since: float
) -> tuple[Floats, Floats]:
    """Residuals from the hour-of-day profile, over the largest one in the reference."""
    past = blocks.ends <= since + settings.reference + 1e-6
    hours = ((blocks.ends - settings.block / 2) % DAY // HOUR).astype(np.int64)
    counts = np.bincount(hours[past], minlength=24)
    sums = np.bincount(hours[past], weights=blocks.means[past], minlength=24)
    overall = blocks.means[past].mean() if past.any() else 0.0
    profile = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    expected = profile[hours]
    residual = blocks.means - expected
    largest = float(np.abs(residual[past]).max()) if past.any() else 0.0
    if largest == 0.0:
        return np.zeros(len(blocks.ends)), expected
    return np.where(past, 0.0, residual / largest), expected

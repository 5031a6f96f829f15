"""Covariate signals of every shape: a real move beyond the reference alarms, none does not."""

from __future__ import annotations

import numpy as np
import pytest

from trimwheel_pipelines.covariates import (
    DAY,
    HOUR,
    CovariateAlarm,
    CovariateSettings,
    Signal,
    covariate_alarms,
)

SETTINGS = CovariateSettings()
SAMPLES = 24
"""Requests of a block."""
DAYS, AFTER = 14, 3


def shape(name: str, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    day, hour = times / DAY, times % DAY / HOUR
    noise = rng.normal(scale=0.2, size=len(times))
    swing = np.sin(2 * np.pi * hour / 24)
    match name:
        case "constant":
            return np.full(len(times), 0.8)
        case "constant zero":
            return np.zeros(len(times))
        case "noise":
            return 1.0 + noise
        case "step":
            return 1.0 + 0.5 * (day > 12) + noise
        case "steps up and back":
            return 1.0 + 0.5 * ((day > 4) & (day < 5)) + noise
        case "seasonal":
            return 1.0 + 0.4 * swing + noise
        case "weekly":
            return 1.0 + 0.4 * swing + 0.3 * (day % 7 >= 5) + noise
        case "two values":
            return (rng.random(len(times)) < 0.3).astype(float)
    raise AssertionError(name)


def played(name: str, move: float, seed: int, open_hours: int = 24) -> list[CovariateAlarm]:
    """Alarms of a reference and three more days, in which the signal moves after six hours."""
    rng = np.random.default_rng(seed)
    blocks = int((DAYS + AFTER) * DAY / SETTINGS.block)
    times = (np.repeat(np.arange(blocks), SAMPLES) + rng.random(blocks * SAMPLES)) * SETTINGS.block
    times = times[times % DAY < open_hours * HOUR]
    values = shape(name, times, rng)
    # The move comes on top of what the signal would have been: the shape goes on.
    values = values + move * (times > (DAYS + 0.25) * DAY)
    return covariate_alarms(
        Signal(name, times, values), SETTINGS, 0.0, float(blocks) * SETTINGS.block
    )


MOVES = {
    "constant": (0.1, -0.1),
    "constant zero": (0.1,),
    "noise": (0.3, -0.3),
    "step": (0.4, -0.9),
    "steps up and back": (1.0, -0.3),
    "seasonal": (0.4, -0.4),
    "weekly": (0.8, -0.8),
    "two values": (0.5, -0.29),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("open_hours", [24, 3])
def test_what_does_not_move_does_not_alarm(name: str, open_hours: int) -> None:
    assert [seed for seed in range(6) if played(name, 0.0, seed, open_hours)] == []


@pytest.mark.parametrize(("name", "move"), [(name, m) for name, ms in MOVES.items() for m in ms])
@pytest.mark.parametrize("open_hours", [24, 3])
def test_a_move_beyond_the_reference_alarms(name: str, move: float, open_hours: int) -> None:
    for seed in range(3):
        alarms = played(name, move, seed, open_hours)
        assert alarms, (name, move, seed)
        assert np.sign(alarms[0].value - alarms[0].expected) == np.sign(move)
        assert alarms[0].time > (DAYS + 0.25) * DAY


def test_an_hour_that_the_reference_never_saw_is_compared_with_all_others() -> None:
    rng = np.random.default_rng(0)
    blocks = int(16 * DAY / SETTINGS.block)
    times = (np.repeat(np.arange(blocks), SAMPLES) + rng.random(blocks * SAMPLES)) * SETTINGS.block
    late = times > 14 * DAY
    times = times[np.where(late, True, times % DAY < 3 * HOUR)]
    quiet = 1.0 + rng.normal(scale=0.2, size=len(times))
    end = 16 * DAY
    assert covariate_alarms(Signal("quiet", times, quiet), SETTINGS, 0.0, end) == []
    moved = quiet + 0.5 * ((times > 14 * DAY) & (times % DAY > 12 * HOUR))
    assert covariate_alarms(Signal("moved", times, moved), SETTINGS, 0.0, end)


@pytest.mark.parametrize("move", [0.0, 0.1, -0.1])
def test_a_short_reference_that_is_constant_alarms_when_it_moves(move: float) -> None:
    settings = CovariateSettings(block=5.0, reference=45.0)
    times = np.arange(0.0, 120.0, 0.1)
    values = 0.8 + move * (times > 80)
    assert bool(covariate_alarms(Signal("x", times, values), settings, 0.0, 120.0)) == bool(move)


def test_a_short_reference_whose_blocks_differ_does_not_alarm_by_itself() -> None:
    settings = CovariateSettings(block=5.0, reference=60.0)
    alarmed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        times = np.arange(0.0, 180.0, 0.02)
        level = rng.normal(scale=0.3, size=36)[(times // 5).astype(int)]
        values = 1.0 + level + rng.normal(scale=0.2, size=len(times))
        alarmed += bool(covariate_alarms(Signal("x", times, values), settings, 0.0, 180.0))
    assert alarmed == 0

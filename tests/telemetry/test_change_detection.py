"""The change detector: silent for bursts, early for real rises, the same however it is fed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trimwheel_telemetry.change_detection import BLOCK_CAP, ChangeDetector
from trimwheel_telemetry.evidence import ShiryaevRoberts

EPSILON, THRESHOLD = 0.02, 5e6


def detector(threshold: float = THRESHOLD) -> ChangeDetector:
    return ChangeDetector(EPSILON, threshold)


def runs(audits: int, risk: float, length: int, rng: np.random.Generator) -> np.ndarray:
    losses, place = np.zeros(audits), 0
    while place < audits:
        place += int(rng.geometric(risk / (length * (1 - risk))))
        run = int(rng.geometric(1 / length))
        losses[place : place + run] = 1.0
        place += run
    return losses


@pytest.mark.parametrize("length", [9, 15, 30, 60])
@pytest.mark.parametrize("threshold", [1e5, 5e6])
def test_one_burst_of_wrong_audits_is_no_drift(length: int, threshold: float) -> None:
    losses = np.zeros(2_000)
    losses[1_000 : 1_000 + length] = 1.0
    assert ShiryaevRoberts(EPSILON, threshold).update(losses) is not None  # what it replaces
    assert detector(threshold).update(losses) is None


@pytest.mark.parametrize("length", [1, 3, 10])
def test_quiet_streams_in_runs_stay_quiet(length: int) -> None:
    rng = np.random.default_rng(length)
    assert all(detector().update(runs(20_000, 0.014, length, rng)) is None for _ in range(12))


@pytest.mark.parametrize(("risk", "limit"), [(0.045, 1_300), (0.08, 500), (0.3, 250), (1.0, 250)])
def test_a_real_rise_is_found(risk: float, limit: int) -> None:
    rng = np.random.default_rng(4)
    delays = []
    for _ in range(30):
        stream = np.concatenate([rng.random(2_000) < 0.015, rng.random(20_000) < risk])
        index = detector().update(stream)
        assert index is not None
        delays.append(index + 1 - 2_000)
    assert np.median(delays) <= limit


def test_graded_losses_of_the_same_mean_are_found_as_well() -> None:
    rng = np.random.default_rng(5)
    losses = np.concatenate([rng.random(2_000) < 0.015, rng.random(20_000) < 0.09])
    index = detector().update(losses * rng.uniform(0.0, 1.0, 22_000))
    assert index is not None and index >= 2_000


@pytest.mark.parametrize("size", [1, 7, 25, 333])
def test_parts_give_what_the_whole_gives(size: int) -> None:
    rng = np.random.default_rng(6)
    stream = np.concatenate([rng.random(1_010) < 0.015, rng.random(3_000) < 0.06])
    whole = detector()
    expected = whole.update(stream)
    parts, alarm = detector(), None
    for place in range(0, len(stream), size):
        parts = ChangeDetector.from_state(json.loads(json.dumps(parts.to_state())))
        index = parts.update(stream[place : place + size])
        if index is not None:
            alarm = place + index
            break
    assert alarm == expected
    assert parts.to_state() == whole.to_state()
    assert parts.update(np.ones(100)) is None  # it found the change; only a reset starts again


def test_a_block_proves_no_more_than_its_cap() -> None:
    first, second = detector(), detector()
    block = np.zeros(first.size)
    block[: int(BLOCK_CAP)] = 1.0
    first.update(block)
    second.update(np.ones(second.size))
    assert second.statistics == pytest.approx(first.statistics)


def test_a_bound_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="bound"):
        ChangeDetector(0.5, 1e5)

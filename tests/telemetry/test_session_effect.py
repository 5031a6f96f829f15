"""How often pods count one session: from the smallest hashes that each publishes."""

from __future__ import annotations

import numpy as np
import pytest

from trimwheel_api.metrics import GUARD_SAMPLE_SLOTS
from trimwheel_telemetry.session_effect import LEAST, session_effect


def published(pods: int, sessions: int, reached: int, seed: int = 0) -> list[np.ndarray]:
    """What pods publish of sessions that each reach `reached` of them."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(1, 2**48, sessions).astype(float)
    counted: list[list[float]] = [[] for _ in range(pods)]
    for value in hashes:
        for pod in rng.choice(pods, reached, replace=False):
            counted[pod].append(value)
    slots = GUARD_SAMPLE_SLOTS
    return [np.array((sorted(each) + [0.0] * slots)[:slots]) for each in counted]


@pytest.mark.parametrize("reached", [1, 2, 4, 12])
@pytest.mark.parametrize("sessions", [60, 5_000])
def test_sessions_that_reach_m_pods_are_counted_m_times(reached: int, sessions: int) -> None:
    assert session_effect(published(12, sessions, reached)) == pytest.approx(reached, rel=0.02)


def test_one_pod_or_no_session_counts_once() -> None:
    empty = np.zeros(GUARD_SAMPLE_SLOTS)
    assert session_effect([]) == 1.0
    assert session_effect([empty, empty]) == 1.0
    assert session_effect(published(1, 500, 1)) == 1.0
    assert session_effect([*published(1, 500, 1), empty]) == 1.0


def test_too_few_sessions_say_nothing_and_the_worst_is_assumed() -> None:
    assert session_effect(published(6, LEAST - 1, 2)) == 6.0


def test_pods_that_began_late_do_not_hide_what_the_others_share() -> None:
    early = published(4, 4_000, 4)
    late = np.sort(np.random.default_rng(1).integers(1, 2**48, 5).astype(float))
    assert session_effect([*early, late]) > 3.0

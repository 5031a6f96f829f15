"""The three e-values: published values, exact references, and simulated error levels."""

from __future__ import annotations

import json
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimwheel_telemetry.evidence import (
    CHANGE_RATIOS,
    Block,
    ShiryaevRoberts,
    log_betainc,
    log_betaincc,
    log_e_over,
    log_e_relative,
    log_e_under,
    shiryaev_roberts_run_lengths,
)


def test_published_check_values_are_reproduced() -> None:
    assert float(log_e_over(20, 200, 0.02)) == pytest.approx(15.332, abs=5e-4)
    assert float(log_e_under(13, 945, 0.02)) == pytest.approx(0.210, abs=5e-4)


def exact_log_e(events: int, trials: int, bound: float, over: bool) -> float:
    """F1 by 60-digit quadrature of its definition: E_prior[likelihood / likelihood at bound]."""
    with mpmath.workdps(60):
        b = mpmath.mpf(bound)
        a, c = (mpmath.mpf(1), mpmath.mpf("0.4") / b) if over else (mpmath.mpf(1), mpmath.mpf(1))

        def mass(first: mpmath.mpf, second: mpmath.mpf) -> mpmath.mpf:
            # The upper tail by reflection: as a difference it would cancel to nothing.
            return (
                mpmath.betainc(second, first, 0, 1 - b)
                if over
                else mpmath.betainc(first, second, 0, b)
            )

        ratio = mass(a + events, c + trials - events) / mass(a, c)
        return float(
            mpmath.log(ratio) - events * mpmath.log(b) - (trials - events) * mpmath.log(1 - b)
        )


@pytest.mark.parametrize(
    ("events", "trials", "bound"),
    [
        (0, 0, 0.02),
        (0, 1, 0.02),
        (1, 1, 0.02),
        (20, 200, 0.02),
        (0, 5_000, 0.02),
        (40, 40, 0.001),
        (0, 60_000, 0.02),  # the tail underflows: exp(-1212)
        (60_000, 60_000, 0.02),
        (3_000, 60_000, 0.02),
        (600, 60_000, 0.02),
        (7, 3_000, 0.002),
    ],
)
def test_count_e_values_agree_with_high_precision_arithmetic(
    events: int, trials: int, bound: float
) -> None:
    for over, function in ((True, log_e_over), (False, log_e_under)):
        value = float(function(events, trials, bound))
        assert math.isfinite(value)
        assert value == pytest.approx(exact_log_e(events, trials, bound, over), rel=1e-7, abs=1e-7)


def test_log_incomplete_beta_joins_smoothly_where_the_fraction_takes_over() -> None:
    b = np.linspace(20_000, 60_000, 4_001)  # I_(1-.02)(b, 1) = .98 ** b passes 1e-280 in the middle
    difference = log_betainc(b, 1.0, 0.98) - b * math.log(0.98)
    assert np.abs(difference).max() < 1e-8
    assert np.all(np.isfinite(log_betaincc([1.0, 5.0], [1e7, 1e8], 0.5)))


@given(
    trials=st.integers(0, 3_000),
    share=st.floats(0, 1),
    bound=st.floats(0.001, 0.5),
)
@settings(max_examples=80, deadline=None)
def test_one_more_event_never_lowers_over_nor_raises_under(
    trials: int, share: float, bound: float
) -> None:
    events = int(share * trials)
    counts = [events, events + 1]
    over = log_e_over(counts, trials + 1, bound)
    under = log_e_under(counts, trials + 1, bound)
    assert over[1] >= over[0] - 1e-9
    assert under[1] <= under[0] + 1e-9


@pytest.mark.parametrize(
    ("events", "trials", "bound", "names"),
    [(1, 0, 0.02, "events"), (-1, 5, 0.02, "events"), (0, 5, 0.0, "bound"), (0, 5, 1.0, "bound")],
)
def test_impossible_counts_are_refused_by_name(
    events: int, trials: int, bound: float, names: str
) -> None:
    with pytest.raises(ValueError, match=names):
        log_e_over(events, trials, bound)


def exceedances(rates: float, function: object, looks: int, streams: int, seed: int) -> float:
    """Share of streams at the null's boundary that ever reach level .05, looking at each trial."""
    rng = np.random.default_rng(seed)
    events = np.cumsum(rng.random((streams, looks)) < rates, axis=1)
    # Streams often stand at the same count at the same look: each pair is evaluated once.
    keys, inverse = np.unique(events * looks + np.arange(looks), return_inverse=True)
    values = function(keys // looks, keys % looks + 1, 0.02)  # type: ignore[operator]
    return float(np.mean(values[inverse].reshape(events.shape).max(axis=1) >= math.log(20)))


def test_looking_at_every_trial_keeps_the_promised_level() -> None:
    # 400 streams at a true level of .05: 99.9 % of honest runs stay at or below .09.
    assert exceedances(0.02, log_e_over, looks=2_000, streams=400, seed=1) <= 0.09
    assert exceedances(0.02, log_e_under, looks=2_000, streams=400, seed=2) <= 0.09


def test_a_clear_violation_is_found_in_about_the_published_number_of_audits() -> None:
    rng = np.random.default_rng(3)
    events = np.cumsum(rng.random((400, 600)) < 0.15, axis=1)
    found = log_e_over(events, np.arange(1, 601), 0.02) >= math.log(20)
    assert found.any(axis=1).all()
    assert 15 <= np.median(found.argmax(axis=1) + 1) <= 30  # published median 21


def test_relative_evidence_is_silent_without_a_background() -> None:
    assert log_e_relative([]) == 0.0
    assert log_e_relative([Block(100, 0, 30, 0), Block(0, 100, 0, 4)]) == 0.0
    assert log_e_relative([Block(0, 100, 3, 1)]) == 0.0  # its trial was counted a scrape earlier


def test_relative_evidence_equals_the_product_of_binomial_likelihood_ratios() -> None:
    blocks = [Block(10, 90, 3, 2), Block(50, 50, 4, 0)]
    expected = 0.0
    for r in (1.5, 2, 4, 8, 16):
        product = 1.0
        for b in blocks:
            total = b.candidate_trials + b.stable_trials
            null = b.candidate_trials / total
            bet = r * b.candidate_trials / (r * b.candidate_trials + b.stable_trials)
            product *= (bet / null) ** b.candidate_events
            product *= ((1 - bet) / (1 - null)) ** b.stable_events
        expected += product / 5
    assert log_e_relative(blocks) == pytest.approx(math.log(expected))


def test_identical_arms_on_a_drifting_background_rarely_look_different() -> None:
    rng = np.random.default_rng(4)
    runs, blocks = 250, 120
    false_alarms = 0
    for _ in range(runs):
        weight = np.repeat([0.05, 0.25, 0.5], blocks // 3)  # the ramp
        background = np.geomspace(0.05, 0.004, blocks)  # errors fall while the weight rises
        nc = rng.binomial(1_500, weight)
        kc = rng.binomial(nc, background)
        ks = rng.binomial(1_500 - nc, background)
        table = np.stack([nc, 1_500 - nc, kc, ks], axis=1)
        false_alarms += any(
            log_e_relative(table[:look]) >= math.log(20) for look in range(5, blocks + 1, 5)
        )
    assert false_alarms <= 24  # 99.9 % limit of Binomial(250, .05)


def naive_shiryaev_roberts(outcomes: np.ndarray, bound: float) -> list[list[float]]:
    state = [0.0] * len(CHANGE_RATIOS)
    path = []
    for outcome in outcomes:
        for j, ratio in enumerate(CHANGE_RATIOS):
            p = ratio * bound
            state[j] = (state[j] + 1) * (p / bound if outcome else (1 - p) / (1 - bound))
        path.append(list(state))
    return path


@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=120), cut=st.integers(0, 120))
@settings(max_examples=60, deadline=None)
def test_shiryaev_roberts_in_pieces_equals_the_plain_recursion(
    outcomes: list[bool], cut: int
) -> None:
    watch = ShiryaevRoberts(bound=0.02, threshold=1e300)
    watch.update(outcomes[:cut])
    watch = ShiryaevRoberts.from_state(json.loads(json.dumps(watch.to_state())))
    watch.update(outcomes[cut:])
    expected = naive_shiryaev_roberts(np.asarray(outcomes), 0.02)[-1]
    assert watch.statistics == pytest.approx(expected, rel=1e-9)
    assert watch.trials == len(outcomes)


def test_shiryaev_roberts_stops_at_its_alarm_and_keeps_its_run_length() -> None:
    watch = ShiryaevRoberts(bound=0.02, threshold=1_000)
    assert watch.update([True] * 50) is not None
    before = watch.to_state()
    assert watch.update([False] * 100) is None
    assert watch.to_state() == before

    rng = np.random.default_rng(5)
    calm = rng.random((200, 3_000)) < 0.02
    lengths = shiryaev_roberts_run_lengths(calm, bound=0.02, threshold=1_000)
    assert lengths.mean() >= 1_000  # censored at 3,000, so the true mean is larger still
    single = ShiryaevRoberts(bound=0.02, threshold=1_000)
    assert single.update(calm[0]) == (None if lengths[0] == 3_000 else lengths[0])
    harmed = rng.random((200, 2_000)) < 0.08
    assert np.median(shiryaev_roberts_run_lengths(harmed, 0.02, 1e5)) < 250

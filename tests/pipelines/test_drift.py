"""Drift: covariate alarms of both forms, and verdicts that only audits decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from trimwheel_pipelines.covariates import (
    DAY,
    CovariateSettings,
    Signal,
    covariate_alarms,
    newest_z,
)
from trimwheel_pipelines.drift import (
    AuditStream,
    Drift,
    DriftSettings,
    DriftVerdict,
    change_point,
    judge_drift,
)

DEMO = CovariateSettings(block=5.0, reference=45.0, alarm_gap=0.0)
START = 1_000_000.0


def requests(rate: float, parts: list[tuple[float, float, float]], seed: int) -> Signal:
    """A signal at `rate` a second: parts of (seconds, mean, standard deviation)."""
    rng = np.random.default_rng(seed)
    values = [rng.normal(mean, spread, int(seconds * rate)) for seconds, mean, spread in parts]
    joined = np.concatenate(values)
    return Signal("exitDepth", START + (np.arange(len(joined)) + 0.5) / rate, joined)


def stream(rates: list[tuple[int, float]], seed: int, per_second: float = 50.0) -> AuditStream:
    rng = np.random.default_rng(seed)
    wrong = np.concatenate([rng.random(count) < rate for count, rate in rates])
    times = START + (np.arange(len(wrong)) + 1) / per_second
    return AuditStream(times, wrong, np.arange(len(wrong)))


def test_a_moved_signal_alarms_on_its_second_block_with_both_numbers() -> None:
    signal = requests(50, [(60, 3.0, 1.0), (60, 4.0, 1.0)], seed=1)
    alarms = covariate_alarms(signal, DEMO, START, START + 120)
    assert alarms[0].time == START + 70
    assert alarms[0].value == pytest.approx(4.0, abs=0.3)
    assert alarms[0].expected == pytest.approx(3.0, abs=0.1)
    assert alarms[0].z > 6
    assert newest_z(signal, DEMO, START, START + 60) == pytest.approx(0, abs=4)


def test_independent_requests_without_change_do_not_alarm() -> None:
    alarms = [
        covariate_alarms(requests(50, [(300, 3.0, 1.0)], seed), DEMO, START, START + 300)
        for seed in range(100)
    ]
    assert sum(map(len, alarms)) == 0


def test_half_blocks_thin_blocks_and_the_future_are_not_judged() -> None:
    signal = requests(50, [(60, 3.0, 1.0), (60, 9.0, 1.0)], seed=2)
    assert not covariate_alarms(signal, DEMO, START, START + 69.9)
    thin = requests(3, [(60, 3.0, 1.0), (60, 9.0, 1.0)], seed=2)
    assert not covariate_alarms(thin, DEMO, START, START + 120)


def test_one_odd_block_or_two_opposite_ones_are_no_alarm() -> None:
    once = requests(50, [(60, 3, 1), (5, 5, 1), (60, 3, 1)], seed=3)
    assert not covariate_alarms(once, DEMO, START, START + 125)
    both = requests(50, [(60, 3, 1), (5, 5, 1), (5, 1, 1), (60, 3, 1)], seed=3)
    assert not covariate_alarms(both, DEMO, START, START + 130)


def test_an_alarm_is_followed_by_a_quiet_gap() -> None:
    signal = requests(50, [(60, 3.0, 1.0), (240, 5.0, 1.0)], seed=4)
    gap = CovariateSettings(block=5.0, reference=45.0, alarm_gap=60.0)
    times = [alarm.time - START for alarm in covariate_alarms(signal, gap, START, START + 300)]
    assert times == [70, 130, 190, 250]


def daily(days: int, seed: int, shift: float = 0.0) -> Signal:
    """15-minute values with a daily swing, AR(1) .9 noise and a shift on the last day."""
    rng = np.random.default_rng(seed)
    count = days * 96
    noise = lfilter([1.0], [1.0, -0.9], rng.normal(0, np.sqrt(1 - 0.81), count))
    times = (np.arange(count) + 0.5) * 900.0
    values = 10 + 2 * np.sin(2 * np.pi * times / DAY) + noise
    values[-96:] += shift
    per_block = 30
    return Signal(
        "tokens",
        np.repeat(times, per_block) + np.tile(np.arange(per_block), count),
        np.repeat(values, per_block),
    )


def test_the_profile_form_ignores_the_time_of_day_and_finds_a_shift() -> None:
    settings = CovariateSettings()
    false_alarms = 0
    for seed in range(20):
        signal = daily(18, seed, shift=8.0)
        alarms = covariate_alarms(signal, settings, 0.0, 18 * DAY)
        false_alarms += sum(alarm.time < 17 * DAY for alarm in alarms)
        assert any(17 * DAY < alarm.time <= 17 * DAY + 3_600 for alarm in alarms)
    assert false_alarms <= 4


def test_a_reference_shorter_than_three_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        CovariateSettings(block=5, reference=10)


SETTINGS = DriftSettings(epsilon=0.02, false_alarm_audits=1e5, alarm_audits=4_000, covariates=DEMO)


def test_raised_disagreement_is_harmful_without_any_covariate() -> None:
    audits = stream([(3_000, 0.012), (3_000, 0.08)], seed=5)
    verdict = judge_drift(audits, [], SETTINGS, since=START, now=START + 120)
    assert verdict.verdict is Drift.HARMFUL
    assert verdict.signal == "disagreement"
    assert verdict.value is not None and verdict.value > 0.05 > verdict.bound == 0.02
    assert abs(verdict.since - (START + 60)) < 5
    assert START + 60 < verdict.time < START + 75
    assert 0.95 < verdict.confidence < 1
    assert verdict.evidence >= 1
    assert "against 2.00%" in verdict.reason


def test_the_verdict_is_the_same_however_late_or_often_it_is_asked() -> None:
    audits = stream([(3_000, 0.012), (3_000, 0.08)], seed=5)
    late = judge_drift(audits, [], SETTINGS, since=START, now=START + 120)
    moment = late.time - START
    on_time = judge_drift(audits, [], SETTINGS, since=START, now=START + moment)
    before = judge_drift(audits, [], SETTINGS, since=START, now=START + moment - 0.01)
    assert on_time == late
    assert before.verdict is Drift.NOT_ENOUGH_EVIDENCE


def test_a_moved_signal_with_unharmed_answers_is_harmless() -> None:
    signal = requests(50, [(60, 3.0, 1.0), (120, 4.0, 1.0)], seed=6)
    audits = stream([(9_000, 0.008)], seed=6)
    early = judge_drift(audits, [signal], SETTINGS, since=START, now=START + 72)
    assert (early.verdict, early.signal) == (Drift.NOT_ENOUGH_EVIDENCE, "exitDepth")
    assert early.wants_audits
    late = judge_drift(audits, [signal], SETTINGS, since=START, now=START + 180)
    assert late.verdict is Drift.HARMLESS
    assert late.bound == pytest.approx(0.03)
    assert late.value is not None and late.value < 0.03
    assert late.confidence >= 0.95
    assert not late.wants_audits
    assert "moved: exitDepth" in late.reason
    again = judge_drift(
        audits, [signal], SETTINGS, since=START, now=START + 180, covariates_since=START + 100
    )
    assert again.signal == ""


def test_an_alarm_may_spend_so_many_audits_and_repeats_within_a_session_count() -> None:
    signal = requests(50, [(60, 3.0, 1.0), (60, 4.0, 1.0)], seed=6)
    audits = stream([(6_000, 0.025)], seed=6)
    audits = replace(audits, sessions=np.arange(len(audits)) // 3)
    limited = replace(SETTINGS, alarm_audits=600)

    def at(moment: float) -> DriftVerdict:
        return judge_drift(audits, [signal], limited, since=START, now=START + moment)

    before = at(60)
    assert (before.alarm_audits, before.wants_audits) == (0, False), "no alarm yet"
    alarm = next(at(moment) for moment in range(60, 120) if at(moment).alarms)
    begun = alarm.alarms[0].time - START
    almost, spent = at(begun + 11.9), at(begun + 12.1)  # 50 audits a second
    assert almost.alarm_audits < 600 <= spent.alarm_audits
    assert almost.wants_audits and not spent.wants_audits
    assert spent.verdict is Drift.NOT_ENOUGH_EVIDENCE
    inside = (audits.times > START + begun) & (audits.times <= START + begun + 12.1)
    assert spent.audits == len(np.unique(audits.sessions[inside])) < spent.alarm_audits / 2


def test_harm_wins_over_a_covariate_alarm() -> None:
    signal = requests(50, [(60, 3.0, 1.0), (60, 4.0, 1.0)], seed=7)
    audits = stream([(3_000, 0.01), (3_000, 0.1)], seed=7)
    verdict = judge_drift(audits, [signal], SETTINGS, since=START, now=START + 120)
    assert verdict.verdict is Drift.HARMFUL


def test_a_quiet_stream_and_no_stream_at_all_are_neither() -> None:
    quiet = judge_drift(stream([(5_000, 0.012)], 8), [], SETTINGS, since=START, now=START + 100)
    assert (quiet.verdict, quiet.signal, quiet.wants_audits) == (
        Drift.NOT_ENOUGH_EVIDENCE,
        "",
        False,
    )
    empty = AuditStream(np.empty(0), np.empty(0, bool), np.empty(0, np.int64))
    nothing = judge_drift(empty, [], SETTINGS, since=START, now=START + 1)
    assert (nothing.verdict, nothing.value, nothing.audits) == (Drift.NOT_ENOUGH_EVIDENCE, None, 0)


def test_only_a_sessions_first_audit_counts() -> None:
    audits = stream([(3_000, 0.012), (3_000, 0.08)], seed=9)
    echoes = replace(audits, sessions=np.zeros(len(audits), np.int64))
    verdict = judge_drift(echoes, [], SETTINGS, since=START, now=START + 120)
    assert (verdict.verdict, verdict.audits) == (Drift.NOT_ENOUGH_EVIDENCE, 1)


def test_sessions_that_outlive_a_promotion_are_trials_of_the_next_policy() -> None:
    """The same 2,000 sessions before and after a promotion, and harm only after it."""
    before, after = stream([(2_000, 0.012)], 9), stream([(2_000, 0.08)], 10)
    promoted = float(before.times[-1])
    sticky = AuditStream(
        np.concatenate([before.times, promoted + after.times - START]),
        np.concatenate([before.wrong, after.wrong]),
        np.concatenate([before.sessions, after.sessions]),
    )
    verdict = judge_drift(sticky, [], SETTINGS, since=promoted, now=promoted + 100)
    assert verdict.verdict is Drift.HARMFUL


def test_a_session_that_never_ends_is_a_trial_again_after_a_day() -> None:
    hours = np.arange(0.5, 72)
    audits = AuditStream(START + 3_600 * hours, np.zeros(72, bool), np.arange(72) % 2)
    found = audits.since(START)
    assert list(found.times - START) == [
        3_600 * hour for hour in (0.5, 1.5, 24.5, 25.5, 48.5, 49.5)
    ]


@given(
    st.lists(st.tuples(st.floats(0.01, 3 * DAY), st.integers(0, 5)), max_size=40),
    st.floats(0, 2 * DAY),
)
def test_trials_are_what_a_plain_walk_over_the_audits_finds(
    audits: list[tuple[float, int]], moment: float
) -> None:
    audits = sorted(audits)
    met, wanted = set(), []
    for time, session in audits:
        # A trial at the very end of a span belongs to it.
        span = np.ceil((time - moment) / DAY)
        if time > moment and (session, span) not in met:
            met.add((session, span))
            wanted.append(time)
    times = np.array([time for time, _ in audits])
    sessions = np.array([session for _, session in audits], np.int64)
    made = AuditStream(times, np.zeros(len(audits), bool), sessions)
    assert list(made.since(moment).times) == wanted


def test_the_change_point_is_found_where_the_rate_rose() -> None:
    found = [
        change_point(stream([(2_000, 0.01), (600, 0.08)], seed).wrong, 0.02) for seed in range(30)
    ]
    assert np.median(np.abs(np.array(found) - 2_000)) < 25
    assert change_point(np.zeros(100, bool), 0.02) == 0


def test_published_detection_delay_is_reproduced() -> None:
    delays = []
    for seed in range(100):
        audits = stream([(500, 0.012), (3_000, 0.08)], seed)
        verdict = judge_drift(
            audits,
            [],
            replace(SETTINGS, false_alarm_audits=5e6),
            since=START,
            now=START + 100,
        )
        assert verdict.verdict is Drift.HARMFUL
        delays.append((verdict.time - START) * 50 - 500)
    assert 170 <= np.median(delays) <= 270  # published median 217

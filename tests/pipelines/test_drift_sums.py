"""Sums against all audits: the same verdict, whatever order audits come in, and after a restart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pipelines.test_drift import DEMO, SETTINGS, START, requests

from trimwheel_api.kinds import AdaptiveModel
from trimwheel_pipelines import checkpoints
from trimwheel_pipelines.block_sums import MOST_BLOCKS, BlockSums
from trimwheel_pipelines.covariates import DAY, CovariateSettings, Signal, covariate_alarms
from trimwheel_pipelines.drift import AuditStream, Drift, DriftSettings, DriftVerdict
from trimwheel_pipelines.drift_sums import SETTLE, DriftSums
from trimwheel_pipelines.sessions import SessionMemory, session_hashes
from trimwheel_pipelines.watch import verdict_of
from trimwheel_pipelines.watching import Watched

FLOAT = 1e-9


def audits_of(
    rates: list[tuple[int, float]], seed: int, per_second: float = 5.0, sessions: int = 20_000
) -> AuditStream:
    rng = np.random.default_rng(seed)
    wrong = np.concatenate([rng.random(count) < rate for count, rate in rates])
    times = START + (np.arange(len(wrong)) + 1) / per_second
    return AuditStream(times, wrong, rng.integers(0, sessions, len(wrong)))


def fed(
    audits: AuditStream,
    signal: Signal | None,
    *,
    every: float,
    jitter: float = 0.0,
    settings: DriftSettings = SETTINGS,
    seed: int = 0,
) -> list[tuple[float, DriftVerdict, DriftVerdict]]:
    """(now, verdict of the sums, verdict of the reference) of each pass, `every` seconds apart."""
    sums = DriftSums.start(settings, START, "score")
    arrival = audits.times + np.random.default_rng(seed).uniform(0, jitter, len(audits))
    blocks = BlockSums(signal.name, START, settings.covariates.block) if signal else None
    scores = np.full(len(audits), 0.5)
    found, before = [], START
    for now in np.arange(START + every, float(audits.times[-1]) + jitter + every, every):
        fresh = (arrival > before) & (arrival <= now)
        names = session_hashes(audits.sessions[fresh])
        sums.add(audits.times[fresh], audits.wrong[fresh], names, scores[fresh], now)
        signals = []
        if signal is not None and blocks is not None:
            new = (signal.times > before) & (signal.times <= now)
            blocks.add(signal.times[new], signal.values[new])
            signals = [blocks]
        there = arrival <= now
        known = AuditStream(audits.times[there], audits.wrong[there], audits.sessions[there])
        raw = [] if signal is None else [signal]
        slow = verdict_of(known, raw, settings, START, now)
        found.append((now, sums.verdict(signals, now), slow))
        before = now
    return found


def assert_same(fast: DriftVerdict, slow: DriftVerdict) -> None:
    plain = replace(fast, value=None, evidence=0.0, confidence=0.0, alarms=())
    assert plain == replace(slow, value=None, evidence=0.0, confidence=0.0, alarms=())
    assert fast.value == pytest.approx(slow.value, rel=FLOAT)
    assert fast.evidence == pytest.approx(slow.evidence, rel=1e-6)
    assert fast.confidence == pytest.approx(slow.confidence, abs=1e-6)
    assert [one.time for one in fast.alarms] == [one.time for one in slow.alarms]


@pytest.mark.parametrize("seed", range(4))
def test_harm_is_found_at_the_same_audit_with_the_same_numbers(seed: int) -> None:
    """Twenty-five minutes: most audits are in the sums when the rate rises."""
    audits = audits_of([(6000, 0.012), (1500, 0.08)], seed)
    passes = fed(audits, None, every=30.0, seed=seed)
    for _, fast, slow in passes:
        assert_same(fast, slow)
        if slow.verdict is Drift.HARMFUL:
            break
    else:
        raise AssertionError("no harm was found")


def test_segments_that_interleave_change_nothing() -> None:
    audits = audits_of([(6000, 0.012), (1500, 0.08)], seed=3, sessions=3000)
    orderly = fed(audits, None, every=30.0)
    late = fed(audits, None, every=30.0, jitter=120.0)
    for _, fast, slow in late:
        assert_same(fast, slow)
        if fast.verdict is Drift.HARMFUL:
            break
    assert orderly[-1][1].verdict is late[-1][1].verdict is Drift.HARMFUL


def test_an_alarm_is_judged_alike_until_it_is_harmless_or_spent() -> None:
    signal = requests(20, [(900, 3.0, 1.0), (900, 4.0, 1.0)], seed=6)
    for rate, end in ((0.008, Drift.HARMLESS), (0.025, Drift.HARMFUL)):
        audits = audits_of([(9000, rate)], seed=6, sessions=5000)
        limited = replace(SETTINGS, alarm_audits=600)
        passes = fed(audits, signal, every=15.0, settings=limited)
        for _, fast, slow in passes:
            assert_same(fast, slow)
            if slow.verdict is not Drift.NOT_ENOUGH_EVIDENCE:
                break
        assert slow.verdict is end and fast.alarms


def test_after_a_harmless_verdict_stage_one_starts_again_and_finds_the_next_move() -> None:
    parts = [(600, 3.0, 1.0), (900, 4.0, 1.0), (300, 6.0, 1.0)]
    signal = requests(20, parts, seed=6)
    audits = audits_of([(9000, 0.004)], seed=6)
    short = CovariateSettings(block=DEMO.block, reference=DEMO.reference, alarm_gap=60.0)
    passes = fed(audits, signal, every=15.0, settings=replace(SETTINGS, covariates=short))
    begun = [fast.since for _, fast, _ in passes if fast.verdict is Drift.HARMLESS]
    assert len(set(begun)) >= 2 and max(begun) > START + 1500


# ---------------------------------------------------------------------- the parts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 3 * DAY), st.integers(0, 9)), max_size=60),
    st.integers(1, 7),
)
def test_trials_are_those_of_a_memory_without_limits(
    audits: list[tuple[float, int]], parts: int
) -> None:
    audits = sorted(audits)
    times = np.array([time for time, _ in audits])
    sessions = np.array([session for _, session in audits], np.int64)
    slow = AuditStream(times, np.zeros(len(audits), bool), sessions).since(0.0)
    memory, found = SessionMemory(0.0), []
    for rows in np.array_split(np.arange(len(audits)), parts):
        first = memory.firsts(times[rows], session_hashes(sessions[rows]))
        found += times[rows][first].tolist()
    assert found == slow.times.tolist()


def test_beyond_the_limit_no_session_counts_twice_and_a_stated_share_counts() -> None:
    memory = SessionMemory(0.0, limit=1000)
    rng = np.random.default_rng(0)
    hashes = session_hashes(np.arange(8000))
    counted: list[int] = []
    for number in range(40):
        rows = rng.integers(0, 8000, 2000)
        times = np.linspace(1 + number, 2 + number, len(rows))
        counted += rows[memory.firsts(times, hashes[rows])].tolist()
        assert len(memory.known) <= 1000 and memory.known.nbytes <= 8000
    assert len(counted) == len(set(counted)) and len(counted) >= 1000
    # The next day everybody counts again.
    assert memory.firsts(np.array([DAY + 50.0]), hashes[:1]).all()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(-5, 400), st.floats(-3, 3)), max_size=80),
    parts=st.integers(1, 5),
    now=st.floats(1, 500),
)
def test_sums_by_block_are_those_of_the_samples(
    values: list[tuple[float, float]], parts: int, now: float
) -> None:
    plan = CovariateSettings(block=10.0, reference=45.0, minimum_count=1)
    times = np.array([time for time, _ in values])
    samples = np.array([value for _, value in values])
    slow = Signal("x", times, samples).cut(plan, 0.0, now)
    sums = BlockSums("x", 0.0, 10.0)
    for rows in np.array_split(np.arange(len(values)), parts):
        sums.add(times[rows], samples[rows])
    fast = sums.cut(plan, 0.0, now)
    np.testing.assert_allclose(fast.blocks.means, slow.blocks.means, atol=1e-9)
    np.testing.assert_array_equal(fast.blocks.counts, slow.blocks.counts)
    np.testing.assert_array_equal(fast.blocks.ends, slow.blocks.ends)
    assert fast.spread == pytest.approx(slow.spread, abs=1e-5)
    # What is forgotten is what no later cut asks for.
    sums.forget(35.0)
    late, kept = Signal("x", times, samples).cut(plan, 40.0, now), sums.cut(plan, 35.0, now)
    np.testing.assert_allclose(kept.blocks.means, late.blocks.means, atol=1e-9)
    assert kept.start == 40.0


def test_sums_by_block_are_bounded_whatever_times_say() -> None:
    sums = BlockSums("x", 0.0, 1.0)
    sums.add(np.array([1e300, -1.0, 5.0, 1e9]), np.array([1.0, 1.0, np.nan, 1.0]))
    assert sums.sums.shape[1] == 0
    sums.add(np.array([MOST_BLOCKS + 0.5, MOST_BLOCKS - 0.5]), np.ones(2))
    assert sums.sums.shape[1] == MOST_BLOCKS and sums.sums[0].sum() == 1


def test_alarms_of_sums_are_alarms_of_samples_in_both_forms() -> None:
    for plan in (DEMO, CovariateSettings(block=3600.0, reference=2 * DAY)):
        rng = np.random.default_rng(2)
        span = 12 * plan.reference / 9
        times = START + np.sort(rng.uniform(0, span, 40_000))
        moved = times > START + 10 * plan.reference / 9
        signal = Signal("x", times, rng.normal(0, 1, 40_000) + 3.0 * moved)
        sums = BlockSums("x", START, plan.block)
        sums.add(signal.times, signal.values)
        slow = covariate_alarms(signal, plan, START, START + span)
        fast = covariate_alarms(sums, plan, START, START + span)
        assert [one.time for one in fast] == [one.time for one in slow] and slow
        np.testing.assert_allclose([one.z for one in fast], [one.z for one in slow], rtol=1e-6)


def test_what_is_held_does_not_grow_with_the_audits() -> None:
    sums = DriftSums.start(SETTINGS, START, "score")
    rng = np.random.default_rng(0)
    sizes = []
    for hour in range(72):
        times = START + 3600 * hour + np.sort(rng.uniform(0, 3600, 7200))
        names = session_hashes(rng.integers(0, 2**62, 7200))
        now = START + 3600 * (hour + 1)
        sums.add(times, rng.random(7200) < 0.005, names, rng.random(7200), now)
        sums.verdict([], now)
        sizes.append(sums.recent.nbytes + sums.sessions.known.nbytes)
    assert len(sums.recent) <= 1.2 * SETTLE * 2
    assert max(sizes[24:]) <= 1.1 * max(sizes[:24]) < 2_000_000
    assert sums.trials.count > 500_000


# ---------------------------------------------------------------------- checkpoints


def watched(digest: str = "sha256:" + "1" * 64, epsilon: str = "0.02") -> Watched:
    model = AdaptiveModel.model_validate(
        {
            "metadata": {"name": "intent", "namespace": "shop", "uid": "u"},
            "spec": {
                "model": {"uri": "file:///m", "digest": "sha256:" + "0" * 64},
                "objectives": {"maxDisagreement": epsilon},
            },
            "status": {
                "stable": {"digest": digest, "policy": "p", "since": "2026-11-22T10:00:00Z"}
            },
        }
    )
    return Watched.of("memory://none", model)


def filled(one: Watched) -> Watched:
    """Audits, a moved signal and its open window, telemetry, and segments that were read."""
    assert one.watch is not None and one.telemetry is not None
    sums, begun = one.watch.sums, one.watch.sums.since
    rng = np.random.default_rng(4)
    blocks = BlockSums("exit depth", begun, sums.settings.covariates.block)
    blocks.add(begun + np.arange(1, 5000.0), rng.random(4999))
    one.telemetry.sums["exit depth"] = blocks
    one.telemetry.read["exit depth", "pod"] = begun + 5.0
    one.telemetry.until = begun + 9.0
    times = begun + np.arange(1, 3000.0)
    sums.add(times, rng.random(2999) < 0.01, session_hashes(times), rng.random(2999), begun + 3e3)
    sums.verdict([blocks], begun + 3000)
    one.reader.seen.add((begun, "pod", 7))
    return one


def test_a_restart_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    before, after = filled(watched()), watched()
    checkpoints.save(str(tmp_path), "account", "u", before)
    assert checkpoints.load(str(tmp_path), "account", "u", after)
    assert before.watch and after.watch and before.telemetry and after.telemetry
    assert after.reader.seen == before.reader.seen
    assert after.telemetry.read == before.telemetry.read
    now = before.watch.sums.since + 4000
    assert after.judge(now) == before.judge(now)
    for one in (before, after):
        assert one.watch is not None
        times = one.watch.sums.since + 3000 + np.arange(1, 900.0)
        wrong = np.arange(899) % 4 == 0
        one.watch.sums.add(times, wrong, session_hashes(times), np.full(899, 0.5), now)
    assert after.judge(now) == before.judge(now)
    harm = after.judge(now)
    assert harm is not None and harm.verdict.verdict is Drift.HARMFUL
    checkpoints.save(str(tmp_path), "account", "u", after)
    again = watched()
    assert checkpoints.load(str(tmp_path), "account", "u", again)
    assert again.judge(now + 1) == after.judge(now + 1)


@pytest.mark.parametrize(
    "other", [watched("sha256:" + "2" * 64), watched(epsilon="0.03")], ids=["policy", "promise"]
)
def test_a_checkpoint_of_another_watch_is_as_none(tmp_path: Path, other: Any) -> None:
    checkpoints.save(str(tmp_path), "account", "u", filled(watched()))
    assert not checkpoints.load(str(tmp_path), "account", "u", other)
    assert not other.reader.seen


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", None, b"x" * 1000])
def test_a_broken_checkpoint_is_as_none(tmp_path: Path, damage: bytes | None) -> None:
    checkpoints.save(str(tmp_path), "account", "u", filled(watched()))
    [path] = tmp_path.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    fresh = watched()
    assert not checkpoints.load(str(tmp_path), "account", "u", fresh)
    assert not checkpoints.load(str(tmp_path), "account", "never", fresh)


def test_checkpoints_of_models_that_are_gone_are_deleted(tmp_path: Path) -> None:
    for uid in ("u", "v"):
        checkpoints.save(str(tmp_path), "account", uid, watched())
    checkpoints.keep_only(str(tmp_path), "account", {"v"})
    assert [path.stem for path in tmp_path.rglob("*.npz")] == ["v"]
    checkpoints.keep_only(str(tmp_path), "another", set())
    assert len(list(tmp_path.rglob("*.npz"))) == 1

"""However a client sends, it does not decide a verdict: a tenth of the trials at most."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api import metrics as table
from trimwheel_workers.front.guards import Guards
from trimwheel_workers.front.metrics import WorkerMetrics
from trimwheel_workers.front.shares import IDENTITIES, MOST_IDENTITIES, Shares, Trial, identity_of


class Counted:
    """Shares, with the trials that count for each identity."""

    def __init__(self) -> None:
        self.total = 0
        self.shares = Shares(self._count)
        self.trials: dict[str, list[Trial]] = {}

    def _count(self) -> None:
        self.total += 1

    def offer(self, identity: str) -> None:
        self.trials.setdefault(identity, []).append(self.shares.offer(identity))

    def counted(self) -> Counter[str]:
        return Counter(
            {
                identity: sum(not (trial.waits or trial.dropped) for trial in trials)
                for identity, trials in self.trials.items()
            }
        )


def by_water_filling(offered: list[int]) -> int:
    """The reference: the highest level at which nobody has more than a tenth."""
    level = 0
    while IDENTITIES * (level + 1) <= sum(min(n, level + 1) for n in offered):
        level += 1
    return level


@given(st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=400), st.integers(0, 11))
def test_nobody_counts_above_a_tenth_and_nothing_below_it_is_lost(
    first: list[int], then: list[int], attacker: int
) -> None:
    made = Counted()
    for identity in [*first, *then, *[attacker] * 100, *then]:
        made.offer(str(identity))
    counted = made.counted()
    assert sum(counted.values()) == made.total
    offered = [len(trials) for trials in made.trials.values()]
    level = by_water_filling(offered)
    early = IDENTITIES - 1  # one each counted before the tenth came
    assert max(counted.values()) * IDENTITIES <= max(made.total, early + 1)
    assert made.total == sum(min(n, level) for n in offered)


@given(st.lists(st.integers(0, 25), max_size=300), st.integers(1, 300))
def test_who_was_there_first_gains_no_more_once_there_are_ten(early: list[int], flood: int) -> None:
    made = Counted()
    for identity in early:
        made.offer(str(identity % 3))
    for identity in range(3, 15):
        made.offer(str(identity))
    before = made.counted()
    for _ in range(flood):
        made.offer("0")
    gained = made.counted()["0"] - before["0"]
    assert gained == 0 or made.counted()["0"] * IDENTITIES <= made.total


def test_with_fewer_than_ten_everything_counts_and_the_largest_is_named() -> None:
    made = Counted()
    for n in range(100):
        made.offer("flood" if n % 10 else str(n % 8))
    assert made.total == 100
    assert made.shares.largest == pytest.approx(0.9)
    assert made.shares.identities < IDENTITIES


def test_what_waits_counts_when_others_have_grown() -> None:
    made = Counted()
    for identity in range(10):
        made.offer(str(identity))
    for _ in range(50):
        made.offer("0")
    assert made.counted()["0"] == 1, "each of ten has a tenth"
    for _ in range(49):
        for identity in range(1, 10):
            made.offer(str(identity))
    assert made.counted()["0"] == 50 and made.total == 500


def test_events_go_with_their_trials() -> None:
    metrics = WorkerMetrics("m", 0.25)
    guards = Guards(metrics)
    guards.reside("salt", {"candidate": "sha256:b"})
    policy = guards.of("candidate", "sha256:b")
    assert policy is not None

    def count(metric: table.Metric, guard: str) -> float:
        value: float = (
            metrics.counter(metric).labels("m", "candidate", "sha256:b", guard)._value.get()
        )
        return value

    for n in range(20):
        policy.served(f"honest-{n}", f"10.0.0.{n}", failed=False, slow=False)
        policy.audited(f"honest-{n}", f"10.0.0.{n}", disagrees=False)
    for n in range(2000):  # sessions of its own making, all of them bad
        policy.served(f"hostile-{n}", "10.9.9.9", failed=False, slow=False)
        policy.served(f"hostile-{n}", "10.9.9.9", failed=True, slow=True)
        policy.served("", "10.9.9.9", failed=True, slow=True)
        policy.audited(f"hostile-{n}", "10.9.9.9", disagrees=True)
    for guard in ("errors", "latency", "disagreement"):
        trials, events = count(table.GUARD_TRIALS, guard), count(table.GUARD_EVENTS, guard)
        assert events * IDENTITIES <= trials, guard
        assert events == 2, "a tenth of 22"
    for n in range(20):
        for turn in range(10):
            policy.served(f"honest-{n}-{turn}", f"10.0.0.{n}", failed=False, slow=False)
    trials, events = count(table.GUARD_TRIALS, "errors"), count(table.GUARD_EVENTS, "errors")
    assert events == trials // IDENTITIES == 24, "and what waited counts now"
    text = metrics.render().decode()
    labels = '{arm="candidate",digest="sha256:b",guard="errors",model="m"}'
    assert f"trimwheel_guard_identities{labels} 21.0" in text
    assert "trimwheel_guard_largest_identity_ratio" in text


def test_many_addresses_share_one_place_in_the_end() -> None:
    made = Counted()
    started = time.process_time()
    for n in range(MOST_IDENTITIES + 50_000):
        made.shares.offer(str(n))
    assert time.process_time() - started < 5
    assert made.shares.identities == MOST_IDENTITIES + 1
    assert made.shares.largest <= 1 / IDENTITIES + 1e-9


@pytest.mark.parametrize(
    ("address", "identity"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_address_is_an_identity(address: str, identity: str) -> None:
    assert identity_of(address) == identity

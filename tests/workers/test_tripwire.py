"""The tripwire trips on a candidate's fault, and not on anybody else's."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from trimwheel_workers.tripwire import GROSS, YARDSTICK, Ran, Tripwire

SLO = 0.03

# C / c: candidate-bearing batch failed / fine; S / s: stable-only batch failed / fine.
CASES = {
    "nothing ever fails": ("cscscsc", False),
    "three failures in a row": ("CCC", True),
    "three of the last five": ("CcCcC", True),
    "three spread over more than five": ("CccCccC", False),
    "isolated failures": ("CccccCccccCcccc", False),
    "stable fails as well": ("SCCC", False),
    "stable failed long ago": ("SsssssCCC", True),
    "stable only": ("SSSSS", False),
}

# L: candidate-bearing batch grossly slow; l: stable-only batch grossly slow. Stable-only batches
# enough for a yardstick come before each.
SLOW_CASES = {
    "each with a control between": ("LsLsL", True),
    "stable slows down too": ("LlLlL", False),
    "stable slowed down among them": ("LsLlsL", False),
    "no control between": ("LLLLLLLL", False),
    "what has no control is no evidence": ("LLsLLLsL", True),
    "a control is used once": ("LsLL", False),
    "fine ones count": ("LsccLsccL", False),
    "slow and failing": ("LsCC", True),
}


def seen(wire: Tripwire, batches: str) -> bool:
    usual, slow = Ran(False, 0.004, 1_000), Ran(False, 0.4, 1_000)
    tripped = False
    for batch in batches:
        ran = slow if batch in "Ll" else Ran(True) if batch in "CS" else usual
        if batch in "CcL":
            tripped = tripped or wire.saw_candidate_batch(ran)
        else:
            wire.saw_stable_batch(ran)
    return tripped


@pytest.mark.parametrize(("batches", "trips"), CASES.values(), ids=CASES.keys())
def test_it_trips_on_three_bad_batches_of_five(batches: str, trips: bool) -> None:
    assert seen(Tripwire(SLO), batches) is trips


@pytest.mark.parametrize(("batches", "trips"), SLOW_CASES.values(), ids=SLOW_CASES.keys())
def test_a_slow_batch_counts_against_its_control(batches: str, trips: bool) -> None:
    assert seen(Tripwire(SLO), "s" * (YARDSTICK + 1) + batches) is trips


def test_without_a_yardstick_nothing_is_slow() -> None:
    assert not seen(Tripwire(SLO), "s" * (YARDSTICK - 4) + "LsLsLs")
    assert not seen(Tripwire(SLO), "L" * 50), "a candidate that has every request"


def trips_at(seconds: float, work: int, slo: float = SLO) -> bool:
    """Whether batches like this trip the wire, where 1,000 of work usually take 4 ms."""
    wire = Tripwire(slo)
    for _ in range(YARDSTICK):
        wire.saw_stable_batch(Ran(False, 0.004, 1_000))
    for _ in range(3):
        wire.saw_stable_batch(Ran(False, 0.004, 1_000))
        if wire.saw_candidate_batch(Ran(False, seconds, work)):
            return True
    return False


def test_a_dearer_batch_is_not_a_slow_one() -> None:
    limit = GROSS * 0.004
    assert trips_at(1.1 * limit, 1_000) and not trips_at(0.9 * limit, 1_000)
    assert trips_at(1.1 * limit, 10), "overhead is no less for little work"
    assert not trips_at(1.1 * limit, 2_000) and trips_at(2.2 * limit, 2_000)


def test_a_batch_within_the_slo_is_never_slow() -> None:
    assert trips_at(0.1, 1_000, slo=0.09) and not trips_at(0.1, 1_000, slo=0.11)


# ---------------------------------------------------------------------- on a noisy machine


class WithoutControl(Tripwire):
    """The tempting wrong way: every slow batch counts."""

    def saw_candidate_batch(self, ran: Ran) -> bool:
        self._controlled = True
        return super().saw_candidate_batch(ran)


def traffic(
    batches: int, weight: float, seed: int, candidate_slower: float = 1.0
) -> Iterator[tuple[bool, Ran]]:
    """(candidate-bearing, batch) on a machine with stalls of its own.

    Times scatter by a factor of 1.5, one batch in a thousand stalls by .1 to 2 s, and in spells of
    about 30 batches everything takes 30 times as long: all far above the SLO.
    """
    rng = random.Random(seed)
    spell = 0
    for _ in range(batches):
        of_candidate = rng.random() < weight
        work = rng.randint(1, 32) * rng.randint(10, 60) * rng.randint(2, 6)
        seconds = (2e-4 + 1.2e-6 * work) * rng.lognormvariate(0.0, 0.4)
        if of_candidate:
            seconds *= candidate_slower
        if spell:
            spell, seconds = spell - 1, 30 * seconds
        elif rng.random() < 1 / 2_000:
            spell = 1 + int(rng.expovariate(1 / 30))
        if rng.random() < 1 / 1_000:
            seconds += rng.uniform(0.1, 2.0)
        yield of_candidate, Ran(False, seconds, work)


def trips(kind: type[Tripwire], batches: Iterator[tuple[bool, Ran]]) -> list[int]:
    """At which candidate-bearing batches the wire trips; each time another is strung."""
    wire, found, count = kind(SLO), [], 0
    for of_candidate, ran in batches:
        if not of_candidate:
            wire.saw_stable_batch(ran)
            continue
        count += 1
        if wire.saw_candidate_batch(ran):
            found.append(count)
            wire = kind(SLO)
    return found


def test_spells_of_a_slow_machine_trip_only_a_wire_without_control() -> None:
    assert trips(WithoutControl, traffic(100_000, 0.5, seed=1))
    assert not trips(Tripwire, traffic(100_000, 0.5, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.05, 0.5, 0.9])
def test_there_is_no_false_trip_in_two_million_batches(weight: float) -> None:
    assert not trips(Tripwire, traffic(2_000_000, weight, seed=7))


@pytest.mark.parametrize(("weight", "within"), [(0.05, 8), (0.5, 40)])
def test_a_candidate_that_is_really_slow_is_found(weight: float, within: int) -> None:
    for seed in range(20):
        found = trips(Tripwire, traffic(4_000, weight, seed, candidate_slower=200.0))
        assert found and found[0] <= within

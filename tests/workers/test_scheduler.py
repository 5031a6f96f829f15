"""Batches: nothing lost, nothing doubled, keys never mixed, the oldest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trimwheel_workers.engine.scheduler import Row, Scheduler

MAX_WAIT = 0.002


def row(id_: int, arrived: float = 0.0, *, cohort: int = 0, deadline: float = 2.0) -> Row:
    return Row(id_, "text", cohort, arrived + deadline, False, arrived)


def by_cohort(queued: Row) -> int:
    return queued.cohort


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 8))
def test_every_row_leaves_in_exactly_one_batch_of_its_own_key(keys: list[int], most: int) -> None:
    scheduler = Scheduler(max_batch=most, max_wait=MAX_WAIT)
    scheduler.add(row(id_, cohort=key) for id_, key in enumerate(keys))
    served: list[int] = []
    while batch := scheduler.start(1.0, by_cohort):
        assert 1 <= len(batch.rows) <= most
        assert {one.cohort for one in batch.rows} == {batch.key}
        ids = [one.id for one in batch.rows]
        assert ids == sorted(ids), "rows of one key keep their order"
        waiting = set(range(len(keys))) - set(served)
        assert ids[0] == min(waiting), "the oldest row leads, so no key starves"
        served += ids
    assert sorted(served) == list(range(len(keys)))
    assert len(scheduler) == 0


def test_a_batch_waits_for_company_but_not_for_long() -> None:
    scheduler = Scheduler(max_batch=4, max_wait=MAX_WAIT)
    scheduler.add([row(1, arrived=10.0)])
    assert scheduler.start(10.001, by_cohort) is None
    assert scheduler.wake_at() == 10.0 + MAX_WAIT
    batch = scheduler.start(10.002, by_cohort)
    assert batch is not None and [one.id for one in batch.rows] == [1]
    assert scheduler.wake_at() is None


def test_a_full_batch_starts_at_once() -> None:
    scheduler = Scheduler(max_batch=2, max_wait=MAX_WAIT)
    scheduler.add(row(id_, arrived=10.0) for id_ in range(3))
    batch = scheduler.start(10.0, by_cohort)
    assert batch is not None and [one.id for one in batch.rows] == [0, 1]
    assert scheduler.start(10.0, by_cohort) is None, "the third waits for company"


def test_rows_past_their_deadline_are_given_back_unserved() -> None:
    scheduler = Scheduler(max_batch=8, max_wait=MAX_WAIT)
    scheduler.add([row(1, arrived=0.0), row(2, arrived=1.5)])
    assert scheduler.take_expired(1.9) == []
    assert [one.id for one in scheduler.take_expired(2.1)] == [1]
    batch = scheduler.start(2.1, by_cohort)
    assert batch is not None and [one.id for one in batch.rows] == [2]


def test_a_swap_while_rows_wait_counts_at_the_batch() -> None:
    scheduler = Scheduler(max_batch=8, max_wait=0.0)
    scheduler.add([row(1, cohort=10), row(2, cohort=9000)])
    assert scheduler.start(0.0, lambda one: one.cohort < 100) is not None
    weight = 0  # rolled back before the second batch
    batch = scheduler.start(0.0, lambda one: one.cohort < weight)
    assert batch is not None and batch.key is False

"""The watch-and-arms loop on real threads: news is applied, acknowledged, and outlived."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimwheel_api.errors import PolicyInvalid, Unavailable
from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec
from trimwheel_api.policy import DENSE
from trimwheel_workers.assignment.loop import Acknowledgement, Applied, AssignmentLoop
from trimwheel_workers.assignment.rule import CAUSE_LEASE, Effective
from trimwheel_workers.assignment.source import Event, FileSource, Gone, Seen, Unreachable
from trimwheel_workers.assignment.store import Store

POLICY = {"digest": DENSE.digest, "document": "{}"}


def spec(
    epoch: int, renewals: int = 0, *, weight: int = 0, lease: int = 30
) -> PolicyAssignmentSpec:
    return PolicyAssignmentSpec.model_validate(
        {
            "epoch": epoch, "renewals": renewals, "stable": POLICY, "candidate": POLICY,
            "weightBasisPoints": weight, "leaseSeconds": lease,
        }
    )  # fmt: skip


class Feed:
    """A source that yields what a test puts into it."""

    def __init__(self) -> None:
        self.events_in: queue.Queue[Event | None] = queue.Queue()

    def events(self, stop: threading.Event) -> Iterator[Event]:
        while (event := self.events_in.get()) is not None:
            yield event

    def close(self) -> None:
        self.events_in.put(None)


class Bench:
    """A loop with its inputs and outputs in reach."""

    def __init__(self, store: Store | None = None) -> None:
        self.feed = Feed()
        self.now = 100.0
        self.applied: list[Effective] = []
        self.said: list[Acknowledgement] = []
        self.fail_apply: list[Exception] = []
        self.fail_acknowledge: list[Exception] = []
        self.loop = AssignmentLoop(
            self.feed, self.apply, self.acknowledge, store=store, clock=lambda: self.now
        )

    def apply(self, effective: Effective) -> Applied:
        if self.fail_apply:
            raise self.fail_apply.pop(0)
        self.applied.append(effective)
        candidate = effective.spec.candidate
        return Applied(
            effective.spec.epoch,
            effective.spec.stable.digest,
            candidate.digest if candidate else "",
        )

    def acknowledge(self, said: Acknowledgement) -> None:
        if self.fail_acknowledge:
            raise self.fail_acknowledge.pop(0)
        self.said.append(said)

    def see(self, epoch: int, renewals: int = 0, **fields: Any) -> None:
        self.feed.events_in.put(Seen("u1", spec(epoch, renewals, **fields)))


def eventually(what: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    made.loop.start()
    yield made
    made.loop.stop()


def test_news_is_applied_and_then_acknowledged(bench: Bench) -> None:
    bench.see(1)
    eventually(lambda: bench.said)
    assert bench.said == [Acknowledgement(1, DENSE.digest, DENSE.digest)]
    bench.see(2, weight=500)
    eventually(lambda: len(bench.said) == 2)
    assert [effective.weight for effective in bench.applied] == [0, 500]


def test_renewals_and_old_epochs_apply_nothing(bench: Bench) -> None:
    bench.see(3, weight=500)
    eventually(lambda: bench.said)
    bench.see(3, 1, weight=500)
    bench.see(2)
    bench.see(4)
    eventually(lambda: len(bench.said) == 2)
    assert [effective.spec.epoch for effective in bench.applied] == [3, 4]


def test_a_silent_operator_ends_the_canary(bench: Bench) -> None:
    bench.see(1, weight=500, lease=3)
    eventually(lambda: bench.said)
    bench.now += 3.1
    bench.loop.poke()
    eventually(lambda: len(bench.said) == 2)
    assert bench.applied[-1].weight == 0
    assert bench.said[-1].tripped == CAUSE_LEASE
    bench.see(1, 1, weight=500, lease=3)
    eventually(lambda: len(bench.said) == 3)
    assert bench.applied[-1].weight == 500 and bench.said[-1].tripped == ""


@pytest.mark.slow
def test_the_lease_ends_without_anybody_poking() -> None:
    bench = Bench()
    bench.loop = AssignmentLoop(bench.feed, bench.apply, bench.acknowledge)
    bench.loop.start()
    started = time.monotonic()
    bench.see(1, weight=500, lease=3)
    eventually(lambda: len(bench.applied) == 2)
    assert 3.0 <= time.monotonic() - started < 3.5
    bench.loop.stop()


def test_what_cannot_be_applied_yet_is_tried_again(bench: Bench) -> None:
    bench.fail_apply = [Unavailable("the engine is loading"), RuntimeError("a fault of ours")]
    bench.see(1)
    eventually(lambda: not bench.fail_apply or bench.loop.poke())
    bench.loop.poke()
    eventually(lambda: bench.said)
    assert bench.said[0].epoch == 1


def test_what_can_never_be_applied_is_said_once(bench: Bench) -> None:
    bench.fail_apply = [PolicyInvalid("policy.exit", "must fit", 7)]
    bench.see(1)
    eventually(lambda: bench.said)
    assert bench.said[0].epoch == 0 and "policy.exit: must fit" in bench.said[0].refused
    bench.loop.poke()
    time.sleep(0.05)
    assert len(bench.said) == 1 and not bench.applied


def test_acknowledgements_are_retried_and_only_the_latest_counts(bench: Bench) -> None:
    bench.fail_acknowledge = [Unavailable("away")]
    bench.see(1)
    eventually(lambda: not bench.fail_acknowledge)
    bench.see(2)
    eventually(lambda: bench.said)
    time.sleep(0.3)
    assert [said.epoch for said in bench.said] == [2]


def test_a_trip_is_told(bench: Bench) -> None:
    bench.see(1, weight=500)
    eventually(lambda: bench.said)
    bench.loop.tripped("Tripwire")
    eventually(lambda: len(bench.said) == 2)
    assert bench.said[-1].tripped == "Tripwire" and bench.said[-1].epoch == 1


def test_the_last_good_assignment_survives_a_restart_without_an_api_server(tmp_path: Path) -> None:
    before = Bench(Store(tmp_path))
    before.loop.start()
    before.see(7, weight=500)
    eventually(lambda: before.said)
    before.loop.stop()

    after = Bench(Store(tmp_path))
    after.loop.start()
    after.feed.events_in.put(Unreachable("connection refused"))
    eventually(lambda: after.applied)
    assert after.applied[0].spec.epoch == 7
    assert after.applied[0].weight == 0, "nobody has been heard: no candidate"
    after.see(7, 1, weight=500)
    eventually(lambda: len(after.applied) == 2)
    assert after.applied[1].weight == 500
    after.loop.stop()


def test_deletion_keeps_the_last_good(bench: Bench) -> None:
    bench.see(1)
    eventually(lambda: bench.said)
    bench.feed.events_in.put(Gone())
    bench.see(2)
    eventually(lambda: len(bench.said) == 2)
    assert [effective.spec.epoch for effective in bench.applied] == [1, 2]


def test_a_broken_copy_on_disk_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "assignment.json").write_text('{"spec": {"epoch": 0}}')
    assert Store(tmp_path).load() is None


def test_a_file_is_a_source_and_its_faults_are_told(tmp_path: Path) -> None:
    path = tmp_path / "assignment.json"
    stop = threading.Event()
    events = FileSource(path, interval=0.001).events(stop)
    assert next(events) == Gone()
    path.write_text('{"epoch": "seven"}')
    broken = next(event for event in events if not isinstance(event, Gone))
    assert isinstance(broken, Unreachable) and "epoch" in broken.message
    path.write_text(spec(7).model_dump_json(by_alias=True, exclude_none=True))
    seen = next(event for event in events if isinstance(event, Seen))
    assert seen.spec == spec(7)
    stop.set()
    assert next(events, None) is None

"""One operator decides, and only the leader writes: the lock, and what goes through it."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
from tests.operator.fake_api import Clock, FakeApi

from trimwheel_api.errors import Conflict, Refused, Unavailable
from trimwheel_operator.apply import Writer
from trimwheel_operator.cluster import path_of
from trimwheel_operator.informers import by_journal, by_model
from trimwheel_operator.leader import Leader, NotLeader
from trimwheel_operator.plan.actions import (
    Ensure,
    PatchStatus,
    Plan,
    PostEvent,
    WriteAssignment,
    WriteJournal,
)
from trimwheel_operator.store import Store


def two_operators() -> tuple[Leader, Leader, FakeApi, Clock]:
    api, clock = FakeApi(), Clock()
    first, second = (Leader(api, "ns", name, 15.0, clock) for name in ("a", "b"))  # type: ignore[arg-type]
    return first, second, api, clock


def test_the_first_takes_the_lock_and_the_second_waits() -> None:
    first, second, _, _ = two_operators()
    assert first.attempt() and not second.attempt()
    assert first.held() and not second.held()
    with pytest.raises(NotLeader):
        second.require()


def test_a_silent_holder_loses_it_before_another_may_take_it() -> None:
    first, second, _, clock = two_operators()
    first.attempt()
    second.attempt()
    for _ in range(60):
        clock.now += 0.25
        second.attempt()
        assert not (first.held() and second.held()), "never two at once"
        if second.held():
            break
    assert second.held() and clock.now - 100.0 >= 15.0
    assert not first.attempt()


def test_a_renewed_lock_is_never_taken() -> None:
    first, second, _, clock = two_operators()
    for _ in range(40):
        assert first.attempt() and not second.attempt()
        clock.now += 3.0


def test_an_absent_api_server_costs_the_lock_in_time() -> None:
    first, _, api, clock = two_operators()
    first.attempt()
    api.failure = Unavailable("away")
    clock.now += 9.0
    assert first.attempt(), "it is still trusted"
    clock.now += 2.0
    assert not first.attempt() and not first.held()
    api.failure = None
    assert first.attempt()


def test_a_restarted_container_takes_its_own_lock_at_once() -> None:
    first, _, api, clock = two_operators()
    first.attempt()
    again = Leader(api, "ns", "a", 15.0, clock)  # type: ignore[arg-type]
    assert again.attempt()


def test_a_lock_given_back_is_free_at_once() -> None:
    first, second, _, _ = two_operators()
    first.attempt()
    second.attempt()
    first.stop()
    assert second.attempt()


def test_nothing_is_written_without_the_lock() -> None:
    api = FakeApi()
    first, second, _, _ = two_operators()
    first.attempt()
    second.attempt()
    action = PatchStatus("PolicyRollout", "ns", "r", "u", "1", {"step": 1})
    with pytest.raises(NotLeader):
        Writer(api, second.require, Store()).carry_out(Plan((action,)))  # type: ignore[arg-type]
    assert api.writes == []
    Writer(api, first.require, Store()).carry_out(Plan((action,)))  # type: ignore[arg-type]
    assert api.writes == [("merge", path_of("PolicyRollout", "ns", "r", "status"))]


def test_a_conflict_ends_the_pass() -> None:
    class Changed(FakeApi):
        def merge(self, path: str, body: Any) -> Any:
            raise Conflict(path)

    api = Changed()
    event = PostEvent("PolicyRollout", "ns", "r", "u", "Normal", "Started", "", "k")
    write = WriteAssignment("ns", "m", {"epoch": 2}, "u", "1")
    with pytest.raises(Conflict):
        Writer(api, lambda: None, Store()).carry_out(Plan((write, event)))  # type: ignore[arg-type]
    assert api.writes == []


def test_a_refused_worker_object_ends_nothing_and_is_told_with_what_was_said() -> None:
    class Strict(FakeApi):
        def apply(self, path: str, manifest: Any) -> Any:
            if "deployments" in path:
                raise Refused("admission webhook denied the request")
            self.writes.append(("apply", path))
            return manifest

    api = Strict()
    objects = [
        Ensure({"kind": kind, "metadata": {"name": "m", "namespace": "ns"}})
        for kind in ("Service", "Deployment", "Role")
    ]
    refused = Writer(api, lambda: None, Store()).carry_out(Plan(tuple(objects)))  # type: ignore[arg-type]
    assert refused == {("Deployment", "m"): "admission webhook denied the request"}
    assert [path.rsplit("/", 2)[1] for _, path in api.writes] == ["services", "roles"]


def test_any_other_refusal_ends_the_pass() -> None:
    class Strict(FakeApi):
        def merge(self, path: str, body: Any) -> Any:
            raise Refused(path)

    write = WriteAssignment("ns", "m", {"epoch": 2}, "u", "1")
    with pytest.raises(Refused):
        Writer(Strict(), lambda: None, Store()).carry_out(Plan((write,)))  # type: ignore[arg-type]


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("trouble", ["refused", "no such kind"])
def test_without_its_journal_nothing_is_exposed_and_a_canary_still_ends(
    required: bool, trouble: str
) -> None:
    class Strict(FakeApi):
        def create(self, path: str, body: Any, *, dry_run: bool = False) -> Any:
            raise Refused(path) if trouble == "refused" else Conflict("404")

    api = Strict()
    journal = WriteJournal("release", "ns.m", {"sequence": 1}, required=required)
    ends = WriteAssignment("ns", "m", {"weightBasisPoints": 0}, "u", "1")
    writer = Writer(api, lambda: None, Store())  # type: ignore[arg-type]
    if required:
        with pytest.raises(Refused):
            writer.carry_out(Plan((journal, ends)))
        assert api.writes == []
    else:
        writer.carry_out(Plan((journal, ends)))
        assert api.writes == [("merge", path_of("PolicyAssignment", "ns", "m"))]


def test_a_journal_that_somebody_made_meanwhile_ends_the_pass() -> None:
    class WithUids(FakeApi):
        def create(self, path: str, body: Any, *, dry_run: bool = False) -> Any:
            body = {**body, "metadata": {**body["metadata"], "uid": "u"}}
            return super().create(path, body, dry_run=dry_run)

    api = WithUids()
    write = WriteJournal("release", "ns.m", {"sequence": 1}, required=False)
    store = Store()
    store.add_kind("PolicyJournal", by_journal)
    writer = Writer(api, lambda: None, store)  # type: ignore[arg-type]
    writer.carry_out(Plan((write,)))
    with pytest.raises(Conflict):
        writer.carry_out(Plan((write,)))


def test_an_event_told_before_is_no_failure() -> None:
    api = FakeApi()
    event = PostEvent("PolicyRollout", "ns", "r", "uid-1234567", "Normal", "Started", "", "k-1")
    writer = Writer(api, lambda: None, Store())  # type: ignore[arg-type]
    writer.carry_out(Plan((event, event)))
    assert len(api.writes) == 1


def test_the_log_has_one_line_for_each_event_that_is_new(caplog: pytest.LogCaptureFixture) -> None:
    told = PostEvent("PolicyRollout", "ns", "r", "u-1234567", "Normal", "Started", "at 1 %", "k")
    harm = PostEvent("AdaptiveModel", "ns", "m", "u-1234567", "Warning", "Harmful", "0.05", "h")
    caplog.set_level(logging.INFO, "trimwheel_operator")
    Writer(FakeApi(), lambda: None, Store()).carry_out(Plan((told, told, harm)))  # type: ignore[arg-type]
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", "PolicyRollout ns/r: Started: at 1 %"),
        ("WARNING", "AdaptiveModel ns/m: Harmful: 0.05"),
    ]


def test_probes_and_raw_events_are_not_logged() -> None:
    """In a process of its own: levels are the process's, and other tests have theirs."""
    quiet = ("kopf.activities.probe", "kopf.objects", "aiohttp.access")
    told = ("trimwheel_operator.apply",)
    program = (
        "import logging; from trimwheel_operator.__main__ import log_decisions_only\n"
        "log_decisions_only()\n"
        f"for name in {quiet + told!r}:\n"
        "    logging.getLogger(name).info('usual of %s', name)\n"
        "    logging.getLogger(name).warning('trouble of %s', name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert [name for name in quiet + told if f"usual of {name}" in done.stderr] == list(told)
    assert all(f"trouble of {name}" in done.stderr for name in quiet + told)


@pytest.mark.parametrize("there", [True, False], ids=["changed", "gone"])
def test_after_a_conflict_the_store_knows_what_is_there_now(there: bool) -> None:
    """Else the next pass would decide on the same old object, and meet the same conflict."""

    class Changed(FakeApi):
        def merge(self, path: str, body: Any) -> Any:
            raise Conflict(path)

    store, api = Store(), Changed()
    store.add_kind("PolicyRollout", by_model)
    metadata = {"namespace": "ns", "name": "r", "uid": "u", "resourceVersion": "1"}
    store.put("PolicyRollout", {"metadata": metadata, "spec": {"model": "m"}})
    newer = {"metadata": metadata | {"resourceVersion": "7"}, "spec": {"model": "m"}}
    api.objects = {path_of("PolicyRollout", "ns", "r"): newer} if there else {}
    action = PatchStatus("PolicyRollout", "ns", "r", "u", "1", {"step": 1})
    with pytest.raises(Conflict):
        Writer(api, lambda: None, store).carry_out(Plan((action,)))  # type: ignore[arg-type]
    entry = store.find("PolicyRollout", "ns", "r")
    assert (entry.version if entry else None) == (7 if there else None)


def test_what_was_written_is_in_the_store_before_any_watch_tells() -> None:
    class Server(FakeApi):
        def merge(self, path: str, body: Any) -> Any:
            metadata = {**body["metadata"], "namespace": "ns", "name": "r", "resourceVersion": "9"}
            return {"metadata": metadata, "spec": {"model": "m"}, "status": body["status"]}

    store = Store()
    store.add_kind("PolicyRollout", by_model)
    action = PatchStatus("PolicyRollout", "ns", "r", "u", "1", {"step": 1})
    Writer(Server(), lambda: None, store).carry_out(Plan((action,)))  # type: ignore[arg-type]
    entry = store.find("PolicyRollout", "ns", "r")
    assert entry is not None and entry.item["status"] == {"step": 1}

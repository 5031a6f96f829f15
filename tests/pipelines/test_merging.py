"""Small segments become few: nothing lost, nothing twice, wherever the loop is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.test_loop import DIGEST, loop, serve_policy
from tests.pipelines.test_records import Store, rows

from trimwheel_api.errors import Unavailable
from trimwheel_pipelines import merging, retention
from trimwheel_pipelines.loop import Loop
from trimwheel_pipelines.merging import STRETCH_SECONDS, finish, merge_once, settle
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.retention import forget, purge

__all__ = ["loop"]
DAY = 86_400.0
LATE = 2 * DAY


def nothing() -> None:
    """No checkpoint is kept."""


def day_of_segments(store: Store, start: float = DAY, count: int = 60) -> list[str]:
    """A segment a minute with two records and, in each tenth, a loss; ids of all records."""
    ids = []
    for number in range(count):
        mine = [f"{start:g}-{number}-{one}" for one in range(2)]
        begun = start + 60.0 * number
        tenant = ["acme" if number % 4 == 0 else "other"] * 2
        store.write(
            rows([begun, begun + 20.0], id=mine, tenant=tenant), lost=3 * (number % 10 == 0)
        )
        ids += mine
    return ids


def merge_all(reader: RecordReader, now: float = LATE) -> int:
    merged = 0
    for _ in range(100):
        plans = finish(reader, reader.files.days())
        settle(reader, plans)
        found = merge_once(reader, reader.files.days(), now, nothing)
        merged += found
        if not found and not plans:
            return merged
    raise AssertionError("it never ends")


def ids_of(reader: RecordReader, since: float = 0.0) -> list[str]:
    return sorted(reader.read(since).column("id").tolist())


def files(store: Store) -> list[Path]:
    return [path for path in store.folder.rglob("*") if path.is_file()]


def test_a_months_segments_become_one_each_half_hour_and_say_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ids = sorted(day_of_segments(store))
    questions = [0.0, DAY, DAY + 599.0, DAY + 601.0, DAY + 1790.0, DAY + 3000.0]
    before = [(ids_of(store.reader(), q), store.reader().read(q).lost) for q in questions]
    assert merge_all(store.reader()) == 60
    assert len(files(store)) == 2
    after = [(ids_of(store.reader(), q), store.reader().read(q).lost) for q in questions]
    assert after == before and after[0][0] == ids and after[0][1] == 18
    assert store.reader().read_new().lost == 18
    assert sorted(store.reader().read_last(500, LATE).column("id")) == ids
    assert merge_all(store.reader()) == 0, "what is merged stays as it is"


def test_only_what_has_settled_is_merged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    day_of_segments(store)
    assert merge_all(store.reader(), now=DAY + STRETCH_SECONDS + 800.0) == 0
    assert merge_all(store.reader(), now=DAY + STRETCH_SECONDS + 901.0) == 30


def test_who_has_read_the_sources_does_not_read_the_target(tmp_path: Path) -> None:
    store = Store(tmp_path)
    day_of_segments(store)
    reader = store.reader()
    assert len(reader.read_new()) == 120
    assert merge_all(reader) == 60
    assert len(reader.read_new()) == 0 and len(reader.seen) == 2
    late = store.write(rows([DAY + 5.0], id=["late"]))
    assert late.exists() and reader.read_new().column("id").tolist() == ["late"]
    # What is half read is left until all of it was.
    store.write(rows([DAY + 6.0], id=["later"]))
    assert merge_all(reader) == 0
    assert reader.read_new().column("id").tolist() == ["later"]
    assert merge_all(reader) == 2 and len(reader.read_new()) == 0


def test_a_broken_source_is_set_aside_and_the_others_are_merged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    day_of_segments(store, count=30)
    bad = store.write(rows([DAY + 7.0, DAY + 8.0]))
    bad.write_bytes(b"PAR1 nothing PAR1")
    reader = store.reader()
    assert merge_all(reader) == 30 and reader.corrupt == 1
    assert store.reader().read(0.0).lost == 9 + 2


class Killed(BaseException):
    """The loop dies here."""


def killing(after: int, function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def wrapper(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise Killed
        return function(*arguments)

    return wrapper


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    originals = merging.deliver, merging.delete_file

    def at(effect: int) -> None:
        calls = [0]
        monkeypatch.setattr(merging, "deliver", killing(effect, originals[0], calls))
        monkeypatch.setattr(merging, "delete_file", killing(effect, originals[1], calls))

    yield at


@pytest.mark.parametrize("read_before", [True, False])
@pytest.mark.parametrize("effect", range(10))
def test_wherever_a_merge_is_killed_every_audit_is_there_once(
    tmp_path: Path, patched: Callable[[int], None], effect: int, read_before: bool
) -> None:
    store = Store(tmp_path)
    ids = sorted(day_of_segments(store, count=5))
    reader = store.reader()
    checkpoint: list[Any] = [set()]
    if read_before:
        reader.read_new()

    def save() -> None:
        checkpoint[0] = set(reader.seen)

    patched(effect)
    with pytest.raises(Killed):
        for _ in range(3):
            days = reader.files.days()
            plans = finish(reader, days)
            if plans:
                save()
            settle(reader, plans)
            merge_once(reader, reader.files.days(), LATE, save)
        raise Killed
    patched(10**6)
    assert ids_of(store.reader()) == ids, "a reader beside it sees each audit once"
    assert store.reader().read(0.0).lost == 3
    again = store.reader()
    again.seen = set(checkpoint[0])
    fresh = again.read_new().column("id").tolist()
    assert sorted(fresh) == ([] if checkpoint[0] else ids), "so does a loop that restarts"
    assert merge_all(again) in (0, 5)
    assert len(again.read_new()) == 0
    assert ids_of(store.reader()) == ids and len(files(store)) == 1


def test_a_tenant_who_is_forgotten_during_a_merge_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion comes between reading the sources and putting the target in their place."""
    store = Store(tmp_path)
    day_of_segments(store, count=8)
    original = merging.deliver

    def between(folder: str, name: str, data: bytes) -> None:
        if name.endswith(".parquet"):
            monkeypatch.setattr(merging, "deliver", original)
            assert forget(store.reader(), "acme") == 4
        original(folder, name, data)

    monkeypatch.setattr(merging, "deliver", between)
    assert merge_once(store.reader(), store.reader().files.days(), LATE, nothing) == 0
    left = store.reader().read(0.0)
    assert set(left.column("tenant")) == {"other"} and len(left) == 12
    merge_all(store.reader())
    assert set(store.reader().read(0.0).column("tenant")) == {"other"}


def test_a_merge_during_a_deletion_hides_no_record_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    day_of_segments(store, count=8)
    original = retention._rewrite
    merged: list[int] = []

    def during(*arguments: Any) -> int:
        if not merged:
            merged.append(merge_all(store.reader()))
        return original(*arguments)

    monkeypatch.setattr(retention, "_rewrite", during)
    assert forget(store.reader(), "acme") == 4 and merged == [8]
    left = store.reader().read(0.0)
    assert set(left.column("tenant")) == {"other"} and len(left) == 12
    assert left.lost == 3 + 4


def test_a_reader_whose_listing_is_old_looks_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ids = sorted(day_of_segments(store, count=8))
    reader = store.reader()
    listed = reader.segments()
    merge_all(store.reader())

    def old_listing(*_: Any, **__: Any) -> Any:
        return RecordReader.segments(reader) if reader.vanished else listed

    reader.segments = old_listing  # type: ignore[method-assign]
    found = reader.read(0.0)
    assert sorted(found.column("id")) == ids and found.lost == 3


def test_old_days_go_with_what_a_merge_left_in_them(
    tmp_path: Path, patched: Callable[[int], None]
) -> None:
    store = Store(tmp_path)
    day_of_segments(store, count=5)
    day_of_segments(store, start=40 * DAY, count=2)
    patched(3)
    with pytest.raises(Killed):
        merge_once(store.reader(), store.reader().files.days(), LATE, nothing)
    patched(10**6)
    purge(store.reader(), before=30 * DAY)
    assert [path.name for path in store.folder.iterdir()] == ["1970-02-10"]


def test_a_store_that_goes_away_stops_a_merge_that_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    ids = sorted(day_of_segments(store, count=5))
    original = merging.deliver

    def away(*_: Any) -> None:
        raise Unavailable("the store is away")

    monkeypatch.setattr(merging, "deliver", away)
    with pytest.raises(Unavailable):
        merge_all(store.reader())
    monkeypatch.setattr(merging, "deliver", original)
    assert merge_all(store.reader()) == 5 and ids_of(store.reader()) == ids


def test_the_loop_merges_what_it_read_and_goes_on_from_its_checkpoint(
    stage: Any, loop: Loop, model: Any
) -> None:
    made = serve_policy(stage, model.digest)
    start = stage.now.timestamp()
    folder = stage.traffic.folder / f"{stage.now:%Y-%m-%d}"
    folder.mkdir()
    whole, stage.traffic.folder = stage.traffic.folder, folder
    for number in range(12):
        stage.traffic.write(
            10, start + 60 * number + 1, stable_digest=[DIGEST] * 10,
            session=[f"{number}-{one}" for one in range(10)],
        )  # fmt: skip
    stage.traffic.folder = whole
    stage.now += timedelta(seconds=720)
    loop.once()
    held = loop._watched[made.metadata.uid]
    assert held.watch is not None and held.watch.sums.disagreement(start + 720) is not None
    stage.now += timedelta(hours=1)
    for _ in range(3):
        loop.once()
    assert len(list(folder.iterdir())) == 1
    now = stage.now.timestamp()
    assert held.watch.sums._trials_at(now)[0].all_count == 120
    restarted = Loop(**{
        name: getattr(loop, name)
        for name in ("objects", "records_uri", "prometheus", "ledger", "aliases", "exposed",
                     "heartbeat", "operator_user", "clock")
    })  # fmt: skip
    restarted.once()
    again = restarted._watched[made.metadata.uid]
    assert again.watch is not None
    assert again.watch.sums._trials_at(now)[0].all_count == 120
    assert len(again.reader.seen) == 1

"""Records reach the store whole, or their loss is counted and travels with the next segment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from trimwheel_api.errors import Unavailable
from trimwheel_api.records import COLUMNS, parse_segment_name
from trimwheel_workers.records import segments, writer
from trimwheel_workers.records.segments import SCHEMA, to_parquet
from trimwheel_workers.records.writer import RecordWriter, WriterSettings


def record(number: int, **changes: Any) -> tuple[Any, ...]:
    values: dict[str, Any] = {
        "id": f"{number:024x}", "time": 1000.0 + number, "session": "s", "first_in_session": True,
        "u": 0.25, "propensity": 0.5, "epoch": 3, "model_digest": "sha256:m", "tokens": 7,
        "arm": "stable", "digest": "sha256:p", "exit": 1, "layers": 2, "prediction": 4,
        "latency": 0.01, "scores": [0.5, 0.75], "predictions": [1, 2, 3],
        "stable_digest": "sha256:p", "stable_prediction": 4, "stable_exit": 1,
        "candidate_digest": None, "candidate_prediction": None, "candidate_exit": None,
        "text": None, "tenant": None,
    }  # fmt: skip
    return tuple((values | changes)[column.name] for column in COLUMNS)


def eventually(what: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


class Store:
    """A writer on a folder, with what it told."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder / "ns" / "m"
        self.written = 0
        self.dropped = 0
        self.writer = RecordWriter(
            WriterSettings(str(self.folder), "pod-a-1", **settings),
            on_written=self._count,
            on_dropped=self._drop,
        )
        self.writer.start()

    def _count(self, count: int) -> None:
        self.written += count

    def _drop(self) -> None:
        self.dropped += 1

    def names(self) -> list[str]:
        return [path.name for path in self.paths()]

    def rows(self) -> list[dict[str, Any]]:
        return [row for path in self.paths() for row in pq.read_table(path).to_pylist()]

    def paths(self) -> list[Path]:
        return sorted(self.folder.rglob("*.parquet"))


def test_a_segment_has_the_columns_of_the_contract(tmp_path: Path) -> None:
    (tmp_path / "one.parquet").write_bytes(to_parquet([record(1, text="x", candidate_exit=2)]))
    table = pq.read_table(tmp_path / "one.parquet")
    assert table.schema.names == [column.name for column in COLUMNS]
    assert table.schema.metadata[b"trimwheel.records"] == b"1"
    assert [field.nullable for field in SCHEMA] == [column.nullable for column in COLUMNS]
    row = table.to_pylist()[0]
    assert row["predictions"] == [1, 2, 3] and row["candidate_exit"] == 2 and row["text"] == "x"


def test_records_are_stored_by_count(tmp_path: Path) -> None:
    store = Store(tmp_path, flush_records=3, flush_seconds=60.0)
    for number in range(7):
        store.writer.put(record(number))
    eventually(lambda: store.written >= 3)
    assert store.writer.close(5.0) == 0
    assert [row["id"] for row in store.rows()] == [f"{number:024x}" for number in range(7)]
    counts = [parse_segment_name(name) for name in store.names()]
    assert all(pod == "pod-a-1" and lost == 0 for _, pod, _, _, lost in counts)
    assert sum(count for *_, count, _ in counts) == store.written == 7


def test_records_are_stored_by_age(tmp_path: Path) -> None:
    store = Store(tmp_path, flush_seconds=0.1)
    store.writer.put(record(1))
    eventually(lambda: store.written == 1)
    assert parse_segment_name(store.names()[0])[0] == 1001.0, "named by its first record's time"
    assert store.paths()[0].parent.name == "1970-01-01", "below its day"
    store.writer.close(1.0)


def test_lost_audits_travel_in_the_next_segment(tmp_path: Path) -> None:
    store = Store(tmp_path, flush_seconds=60.0)
    store.writer.lost(4)
    store.writer.put(record(1))
    store.writer.close(5.0)
    assert [parse_segment_name(name)[3:] for name in store.names()] == [(1, 4)]


def test_lost_audits_are_told_in_time_even_without_a_record(tmp_path: Path) -> None:
    store = Store(tmp_path, flush_seconds=0.1)
    for _ in range(3):
        store.writer.lost(4)
    eventually(store.names)
    assert [parse_segment_name(name)[3:] for name in store.names()] == [(0, 12)]
    assert store.rows() == []
    store.writer.lost(0)
    store.writer.close(5.0)
    assert len(store.names()) == 1, "nothing more to tell"


def test_at_the_end_lost_audits_are_told_even_without_a_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.writer.lost(2)
    store.writer.close(5.0)
    assert [parse_segment_name(name)[3:] for name in store.names()] == [(0, 2)]
    assert store.rows() == []


def test_an_absent_store_is_outlasted_and_what_does_not_fit_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True

    def deliver(folder: str, name: str, data: bytes) -> None:
        if away:
            raise Unavailable("away")
        segments.deliver(folder, name, data)

    monkeypatch.setattr(writer, "deliver", deliver)
    monkeypatch.setattr(writer, "_FIRST_RETRY", 0.01)
    store = Store(tmp_path, flush_records=2, flush_seconds=0.05, backlog_records=5)
    for number in range(8):
        store.writer.put(record(number))
    assert store.dropped == 3 and store.writer.backlog == 5
    time.sleep(0.1)
    assert store.names() == []
    away = False
    eventually(lambda: store.written == 5)
    store.writer.put(record(9))
    store.writer.close(5.0)
    parsed = [parse_segment_name(name) for name in store.names()]
    assert sum(count for *_, count, _ in parsed) == 6
    assert sum(lost for *_, lost in parsed) == 3, "every drop is told once"


def test_losses_during_an_outage_of_the_store_gather_in_one_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def deliver(folder: str, name: str, data: bytes) -> None:
        nonlocal tries
        tries += 1
        if tries < 20:
            raise Unavailable("away")
        segments.deliver(folder, name, data)

    monkeypatch.setattr(writer, "deliver", deliver)
    monkeypatch.setattr(writer, "_FIRST_RETRY", 0.01)
    monkeypatch.setattr(writer, "_LAST_RETRY", 0.01)
    store = Store(tmp_path, flush_seconds=0.01)
    store.writer.put(record(1))
    while tries < 15:
        store.writer.lost(1)
        time.sleep(0.005)
    eventually(lambda: len(store.names()) == 2)
    store.writer.close(5.0)
    parsed = [parse_segment_name(name)[3:] for name in store.names()]
    assert sorted(count for count, _ in parsed) == [0, 1]


def test_what_cannot_be_stored_at_the_end_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deliver(*_: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(writer, "deliver", deliver)
    store = Store(tmp_path)
    store.writer.put(record(1))
    assert store.writer.close(0.2) == 1


def test_readers_never_see_half_a_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Torn(Exception):
        pass

    def torn(*_: object, **__: object) -> None:
        raise Torn

    from fsspec.implementations.local import LocalFileSystem

    monkeypatch.setattr(LocalFileSystem, "mv", torn)
    name = "000000001000000-pod-000001-n1-lost0.parquet"
    with pytest.raises(Unavailable, match="Torn"):
        segments.deliver(str(tmp_path), name, b"data")
    for left in tmp_path.iterdir():
        with pytest.raises(ValueError, match="segment name"):
            parse_segment_name(left.name)


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="record store"):
        segments.deliver(str(tmp_path / "file" / "below"), "x.parquet", b"")


def test_a_segment_names_its_model(tmp_path: Path) -> None:
    store = Store(tmp_path, namespace="shop", model="intent", flush_records=1)
    store.writer.put(record(1))
    assert store.writer.close(5.0) == 0
    metadata = pq.read_schema(store.paths()[0]).metadata
    assert metadata[b"trimwheel.namespace"] == b"shop"
    assert metadata[b"trimwheel.model"] == b"intent"


def test_long_inputs_close_a_segment_early_and_fill_the_backlog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients choose how long inputs are: neither a segment nor the backlog grows with them."""
    away = threading.Event()

    def absent(*_: Any) -> None:
        if not away.is_set():
            raise Unavailable("the store is away")
        segments.deliver(*_)

    monkeypatch.setattr(writer, "deliver", absent)
    store = Store(tmp_path, flush_seconds=60.0, flush_bytes=1000, backlog_bytes=5000)
    for number in range(100):
        store.writer.put(record(number, text="x" * 200))
    assert store.dropped == 75
    away.set()
    assert store.writer.close(5.0) == 0
    assert store.written == 25
    lost = sum(parse_segment_name(name)[-1] for name in store.names())
    assert lost == 75

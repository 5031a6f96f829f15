"""Reading segments: incremental, nothing silently lost, corrupt files set aside and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from trimwheel_api.errors import Unavailable
from trimwheel_api.records import (
    COLUMNS,
    parse_segment_name,
    segment_day,
    segment_folder,
    segment_name,
)
from trimwheel_pipelines import records, retention
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.retention import forget, purge
from trimwheel_pipelines.segment_files import MOST_PLANS, MOST_SOURCES, SegmentFiles
from trimwheel_pipelines.watch import COLUMNS as WATCHED
from trimwheel_workers.records.segments import SCHEMA

EXITS = 3


def rows(times: list[float], **columns: Any) -> pa.Table:
    """A table of records at these times; other columns get plain values."""
    plain = {
        "string": "s", "float64": 0.5, "float32": 0.1, "int32": 1, "int64": 1, "bool": True,
        "list<float32>": [0.1, 0.5, 0.9], "list<int32>": [1, 1, 2, 2],
    }  # fmt: skip
    values: dict[str, Any] = {c.name: [plain[c.type]] * len(times) for c in COLUMNS}
    values |= {"time": times, **columns}
    return pa.table(values, schema=SCHEMA)


class Store:
    """A worker's side of the record store."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.folder = Path(segment_folder(self.root, "shop", "intent"))
        self.folder.mkdir(parents=True)
        self.sequence = 0

    def write(self, table: pa.Table, *, lost: int = 0, started: float | None = None) -> Path:
        self.sequence += 1
        first = float(table["time"][0].as_py()) if started is None else started
        name = segment_name("pod-a-1", first, self.sequence, len(table), lost)
        path = self.folder / segment_day(first) / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
        return path

    def reader(self) -> RecordReader:
        return RecordReader(self.root, "shop", "intent")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_each_segment_is_read_once_and_lost_audits_are_summed(store: Store) -> None:
    reader = store.reader()
    assert len(reader.read_new()) == 0
    store.write(rows([10.0, 12.0]), lost=2)
    store.write(rows([11.0]), lost=1)
    first = reader.read_new()
    assert first.column("time").tolist() == [10.0, 11.0, 12.0]
    assert first.lost == 3
    store.write(rows([20.0]))
    assert reader.read_new().column("time").tolist() == [20.0]
    assert len(reader.read_new()) == 0


def test_a_store_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    assert len(RecordReader(str(tmp_path / "none"), "a", "b").read(0.0)) == 0


def test_a_stretch_of_time_takes_part_of_a_segment(store: Store) -> None:
    store.write(rows([10.0, 20.0, 30.0]), lost=4)
    store.write(rows([40.0]), lost=8)
    found = store.reader().read(20.0, 40.0)
    assert found.column("time").tolist() == [20.0, 30.0]
    assert found.lost == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut short", None),
        ("not parquet", b"hello"),
        ("empty", b""),
        ("a column is missing", "columns"),
        ("a column has another type", "types"),
    ],
)
def test_a_corrupt_segment_is_set_aside_and_its_audits_count_as_lost(
    store: Store, name: str, content: object
) -> None:
    store.write(rows([10.0]))
    bad = store.write(rows([11.0, 12.0]), lost=1)
    if content is None:
        bad.write_bytes(bad.read_bytes()[:-20])
    elif isinstance(content, bytes):
        bad.write_bytes(content)
    elif content == "columns":
        pq.write_table(rows([11.0, 12.0]).drop_columns(["scores"]), bad)
    else:
        table = rows([11.0, 12.0]).drop_columns(["scores"])
        pq.write_table(table.append_column("scores", pa.array(["x", "y"])), bad)
    reader = store.reader()
    found = reader.read_new()
    assert len(found) == 1 and found.lost == 3 and reader.corrupt == 1
    assert (store.folder / "quarantine" / bad.name).exists() and not bad.exists()
    assert len(reader.read_new()) == 0
    # A certificate that is computed later must still know that they were drawn.
    assert store.reader().read(0.0).lost == 3


def test_a_record_that_a_segment_promised_but_lacks_counts_as_lost(store: Store) -> None:
    path = store.write(rows([10.0]))
    path.rename(path.with_name(path.name.replace("-n1-", "-n5-")))
    assert store.reader().read_new().lost == 4


def test_files_of_other_names_are_left_alone(store: Store) -> None:
    (store.folder / "0001-pod-000001-n1-lost0.parquet.part").write_bytes(b"half")
    (store.folder / "README").write_text("ours")
    assert len(store.reader().read_new()) == 0
    assert len(list(store.folder.iterdir())) == 2


def test_lists_become_matrices_and_mixed_widths_are_refused(store: Store) -> None:
    store.write(rows([1.0, 2.0]))
    found = store.reader().read_new()
    assert found.matrix("scores").shape == (2, EXITS)
    np.testing.assert_allclose(found.matrix("scores")[1], [0.1, 0.5, 0.9])
    assert found.where(np.array([False, True])).matrix("predictions").tolist() == [[1, 1, 2, 2]]
    store.write(rows([3.0], scores=[[0.1]], predictions=[[1, 2]]))
    mixed = store.reader().read_new()
    np.testing.assert_allclose(mixed.first("scores"), [0.1, 0.1, 0.1])
    assert mixed.last("predictions").tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="scores"):
        store.reader().read_new().matrix("scores")


def test_inputs_are_there_only_when_every_record_kept_its_own(store: Store) -> None:
    store.write(rows([1.0], text=["hello"]))
    found = store.reader().read_new()
    assert found.texts == ["hello"]
    store.write(rows([2.0], text=[None]))
    assert store.reader().read_new().texts is None


def test_files_beside_the_day_folders_are_read_as_well(store: Store) -> None:
    path = store.write(rows([10.0]))
    path.rename(store.folder / path.name)
    store.write(rows([20.0]))
    assert store.reader().read_new().column("time").tolist() == [10.0, 20.0]


def test_old_days_are_listed_now_and_then_the_newest_ones_always(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(6):
        store.write(rows([day * 86_400.0 + 5.0]))
    now, listed = 0.0, []
    whole = LocalFileSystem.ls

    def noted(self: LocalFileSystem, path: str, **how: Any) -> Any:
        listed.append(Path(path).name)
        return whole(self, path, **how)

    monkeypatch.setattr(LocalFileSystem, "ls", noted)
    reader = store.reader()
    reader.files.clock = lambda: now
    assert len(reader.read_new()) == 6
    listed.clear()
    store.write(rows([86_400.0 * 4 + 6.0]))
    late = store.write(rows([6.0]))
    assert reader.read_new().column("time").tolist() == [86_400.0 * 4 + 6.0]
    assert listed == ["intent", "1970-01-05", "1970-01-06"]
    now = 601.0
    assert reader.read_new().column("time").tolist() == [6.0], "delivered late, found late"
    assert late.exists()


def test_a_stretch_of_time_lists_its_own_days(store: Store) -> None:
    for day in range(4):
        store.write(rows([day * 86_400.0 + 5.0]))
    reader = store.reader()
    assert reader.read(3 * 86_400.0).column("time").tolist() == [3 * 86_400.0 + 5.0]
    assert len(reader.files._days) == 2, "an hour before it, a segment may have begun"


def test_retention_deletes_by_age_and_quarantine_too(store: Store) -> None:
    store.write(rows([10.0]))
    bad = store.write(rows([11.0]))
    bad.write_bytes(b"x")
    store.write(rows([100.0]))
    reader = store.reader()
    reader.read_new()
    assert purge(reader, before=50.0) == 2
    assert store.reader().read(0.0).column("time").tolist() == [100.0]
    store.write(rows([86_400.0 * 3]))
    assert purge(reader, before=86_400.0) == 1
    assert {path.name for path in store.folder.iterdir()} == {"quarantine", "1970-01-04"}


def test_a_deletion_that_stopped_half_way_doubles_no_audit_and_is_finished_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store.write(rows([10.0, 11.0, 12.0], tenant=["a", "b", None]), lost=1)

    def away(*_: object) -> None:
        raise Unavailable("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr(retention, "delete_file", away)
        with pytest.raises(Unavailable):
            forget(store.reader(), "a")
    assert original.exists(), "the file that was replaced is still there"
    found = store.reader().read(0.0)
    assert found.column("time").tolist() == [11.0, 12.0] and found.lost == 2
    forget(store.reader(), "a")
    assert not original.exists()
    assert store.reader().read_new().column("time").tolist() == [11.0, 12.0]


def test_forgetting_a_tenant_removes_its_records_and_says_so_in_the_count(store: Store) -> None:
    store.write(rows([10.0, 11.0, 12.0], tenant=["a", "b", None]), lost=1)
    untouched = store.write(rows([20.0], tenant=["b"]))
    watching = store.reader()
    assert len(watching.read_new()) == 4
    assert forget(store.reader(), "a") == 1
    found = store.reader().read_new()
    assert found.column("time").tolist() == [11.0, 12.0, 20.0]
    assert found.lost == 2
    assert untouched.exists()
    assert len(watching.read_new()) == 0, "a rewritten segment is not news"
    assert forget(store.reader(), "a") == 0


def test_a_store_that_is_no_folder_any_more_is_away_and_not_empty(tmp_path: Path) -> None:
    root = tmp_path / "records"
    assert RecordReader(str(root), "shop", "intent").segments() == [], "nobody has written yet"
    root.write_text("in the place of the folder")
    with pytest.raises(Unavailable, match="record store"):
        RecordReader(str(root), "shop", "intent").segments()


def test_a_pass_holds_a_bounded_number_of_decoded_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for started in range(6):
        store.write(rows([float(started)] * 500, text=["x" * 1000] * 500), lost=1)
    reader = store.reader()
    one, _ = reader.table_of(reader.segments()[0])
    monkeypatch.setattr(records, "READ_BYTES", one.nbytes + 1)
    found = [reader.read_new() for _ in range(4)]
    assert [len(part) for part in found] == [1000, 1000, 1000, 0], "the rest comes in later passes"
    assert [part.lost for part in found] == [2, 2, 2, 0]
    assert sorted(set(np.concatenate([part.column("time") for part in found]))) == [*range(6)]


def test_a_pass_takes_a_bounded_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for started in range(3):
        store.write(rows([float(started)]))
    monkeypatch.setattr(records, "READ_SECONDS", 0.0)
    reader = store.reader()
    assert [len(reader.read_new()) for _ in range(4)] == [1, 1, 1, 0]


def test_the_watch_holds_no_inputs(store: Store, tmp_path: Path) -> None:
    store.write(rows([10.0, 11.0], text=["a secret", "another"]))
    store.write(rows([12.0]), started=12.0).write_bytes(b"PAR1 nonsense PAR1")
    found = store.reader().read_new(columns=WATCHED)
    assert found.table.column_names == list(WATCHED) and (len(found), found.lost) == (2, 1)
    assert "text" not in WATCHED
    empty = RecordReader(str(tmp_path), "shop", "other").read_new(columns=WATCHED)
    assert empty.table.column_names == list(WATCHED)


@pytest.mark.parametrize(
    "name",
    [
        f"{'9' * 400}-pod-1-n1-lost0.parquet",
        f"000000000001000-pod-{'9' * 400}-n1-lost0.parquet",
        f"000000000001000-pod-1-n{'9' * 400}-lost0.parquet",
        f"000000000001000-pod-1-n1-lost{'9' * 400}.parquet",
    ],
)
def test_a_number_that_fits_nothing_makes_another_name(name: str) -> None:
    with pytest.raises(ValueError, match="segment name"):
        parse_segment_name(name)


def test_plans_are_kept_to_a_number_and_a_length(store: Store) -> None:
    day = store.write(rows([10.0])).parent
    source = segment_name("pod-a-1", 10.0, 1, 1, 0)
    for number in range(3 * MOST_PLANS):
        plan = {"target": segment_name("_a", 10.0, 1, 1, 0), "sources": [source]}
        (day / f"merge-{number:016x}.json").write_text(json.dumps(plan))
    files = SegmentFiles(store.root, "shop", "intent")
    assert sum(len(one.plans) for one in files.days()) == MOST_PLANS
    for path in day.glob("merge-*.json"):
        path.write_text(json.dumps({**plan, "sources": [source] * (MOST_SOURCES + 1)}))
    assert sum(len(one.plans) for one in files.days()) == 0

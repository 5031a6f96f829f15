"""Segments that somebody made to hurt: refused by their sizes, before anything large is allocated.

Each hostile file is written by pyarrow itself, then bent; what a file may cost is measured in
Arrow's own allocator.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.pipelines.test_records import Store, rows

from trimwheel_api.errors import InvalidInput
from trimwheel_api.records import META_LOSSES, META_MODEL, META_NAMESPACE
from trimwheel_pipelines.segment_decoding import LIMITS, Claim, decode
from trimwheel_workers.records.segments import SCHEMA, table_bytes, to_parquet

OURS = Claim("shop", "intent", 500)
TINY = table_bytes(rows([1.0, 2.0, 3.0], text=["a", None, "b"]))
BUDGET = 256 << 20
"""What decoding any of them may add to a process: the limit of decoded bytes, and copies of it."""


def written(table: pa.Table, **options: Any) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def repeated(count: int, **columns: Any) -> pa.Table:
    return rows([float(number) for number in range(count)], **columns)


def many_rows() -> bytes:
    return written(repeated(1).take(pa.array(np.zeros(600_000, np.int64))))


def long_text_in_a_dictionary() -> bytes:
    """One megabyte of text, named 500 times by a dictionary."""
    return written(repeated(500, text=["x" * (1 << 20)] * 500))


def one_record_with_a_huge_list() -> bytes:
    return written(repeated(1, scores=[[0.5] * 5_000_000]))


def many_columns() -> bytes:
    table = repeated(1)
    for number in range(100):
        table = table.append_column(f"c{number}", pa.array([1]))
    return written(table)


def many_row_groups() -> bytes:
    return written(repeated(400), row_group_size=1)


def repeating_encoding() -> bytes:
    """Text that a delta encoding names in two bytes a row."""
    table = repeated(400, text=["y" * 200_000] * 400)
    return written(table, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})


def unknown_codec() -> bytes:
    return written(repeated(3), compression="gzip")


def large_footer() -> bytes:
    return written(repeated(3).replace_schema_metadata({"x": "y" * (2 << 20)}))


def lying_about_the_footer() -> bytes:
    return TINY[:-8] + (1 << 31).to_bytes(4, "little") + b"PAR1"


def incompressible() -> bytes:
    return b"PAR1" + bytes(LIMITS.file_bytes) + b"PAR1"


def with_values(**columns: Any) -> Callable[[], bytes]:
    return lambda: written(repeated(2, **columns))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "600,000 rows named as 500": (many_rows, "segment.rows"),
    "text that a dictionary repeats": (long_text_in_a_dictionary, "segment.decodedBytes"),
    "one record with a huge list": (one_record_with_a_huge_list, "segment.values"),
    "100 columns more": (many_columns, "segment.columns"),
    "a row group a row": (many_row_groups, "segment.rowGroups"),
    "an encoding that repeats": (repeating_encoding, "segment.encoding"),
    "a codec that nobody writes": (unknown_codec, "segment.compression"),
    "a large footer": (large_footer, "segment.footerBytes"),
    "a footer longer than the file": (lying_about_the_footer, "segment.footerBytes"),
    "a file beyond the limit": (incompressible, "segment.fileBytes"),
    "a time that is no number": (with_values(time=[1.0, float("nan")]), "segment.time"),
    "a time beyond all calendars": (with_values(time=[1.0, 1e300]), "segment.time"),
    "a propensity above 1": (with_values(propensity=[0.5, 2.0]), "segment.propensity"),
    "an infinite hash": (with_values(u=[0.5, float("inf")]), "segment.u"),
    "records of two shapes": (with_values(scores=[[0.1, 0.2, 0.3], [0.1]]), "segment.scores"),
    "no exits": (with_values(scores=[[], []], predictions=[[1], [1]]), "segment.scores"),
    "no prediction of full depth": (with_values(predictions=[[1, 1, 1]] * 2), "segment.scores"),
    "empty": (lambda: b"", "segment"),
    "a mark alone": (lambda: b"PAR1", "segment"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_segment_is_refused_by_name(name: str) -> None:
    make, field = HOSTILE[name]
    with pytest.raises(InvalidInput) as refusal:
        decode(make(), OURS)
    assert refusal.value.field == field


_MEASURE = """
import resource, sys
from trimwheel_api.errors import InvalidInput
from trimwheel_pipelines.segment_decoding import Claim, decode
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = peak()
for path in sys.argv[1:]:
    try:
        decode(open(path, "rb").read(), Claim("shop", "intent", 500))
    except InvalidInput:
        continue
    sys.exit(f"{path} was not refused")
print(peak() - before)
"""


def test_no_hostile_segment_costs_more_memory_than_the_limits_say(tmp_path: Path) -> None:
    paths = []
    for number, (make, _) in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"{number}.parquet")
        paths[-1].write_bytes(make())
    # A process of its own: its peak is that of decoding alone.
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, paths)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert int(measured.stdout) < BUDGET


@pytest.mark.parametrize("codec", ["zstd", "snappy", "none"])
def test_what_a_worker_writes_is_decoded_as_it_is(codec: str) -> None:
    table = repeated(500, text=[f"text {number}" for number in range(500)])
    found = decode(written(table, compression=codec), OURS)
    assert found.table.equals(table) and found.losses == ()


def test_a_segment_without_records_tells_of_losses_and_is_read() -> None:
    found = decode(to_parquet([]), Claim("shop", "intent", 0))
    assert len(found.table) == 0 and found.table.schema.equals(SCHEMA)


def test_a_footer_that_understates_its_pages_is_found_out_by_the_pages() -> None:
    """A zip bomb: the footer claims little, the page's own header says what decoding allocates."""
    bomb = written(repeated(1, text=["z" * (100 << 20)]), compression="zstd", use_dictionary=False,
                   write_statistics=False)  # fmt: skip
    footer = pq.read_metadata(pa.BufferReader(bomb))
    claims = [footer.row_group(0).column(n).total_uncompressed_size for n in range(25)]
    large = max(claims)
    # As many bytes as before, with each claim replaced by a small one.
    bent = bomb
    for size in (large, footer.row_group(0).total_byte_size):
        plain = _plain_varint(2 * size)
        place = bent.rfind(plain)
        assert place > 0
        bent = bent[:place] + _varint(2, len(plain)) + bent[place + len(plain) :]
    changed = pq.read_metadata(pa.BufferReader(bent))
    assert changed.row_group(0).total_byte_size <= 1
    with pytest.raises(InvalidInput, match=r"segment\.decodedBytes"):
        decode(bent, OURS)


def _plain_varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _varint(value: int, width: int) -> bytes:
    """A varint of exactly this many bytes: padded with empty groups."""
    groups = [(value >> shift) & 0x7F for shift in range(0, 7 * width, 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + [groups[-1]])


@given(cut=st.integers(0, len(TINY)))
def test_a_segment_cut_anywhere_is_refused_and_nothing_else(cut: int) -> None:
    if cut < len(TINY):
        with pytest.raises(InvalidInput):
            decode(TINY[:cut], OURS)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, len(TINY) - 1), st.integers(0, 255)), min_size=1))
def test_flipped_bytes_give_a_table_of_the_contract_or_a_refusal(
    flips: list[tuple[int, int]],
) -> None:
    data = bytearray(TINY)
    for place, value in flips:
        data[place] ^= value
    try:
        found = decode(bytes(data), OURS)
    except InvalidInput:
        return
    assert found.table.schema.equals(SCHEMA) and len(found.table) <= OURS.rows
    found.table.to_pydict()


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400))
def test_bytes_of_any_kind_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(data, OURS)
    with pytest.raises(InvalidInput):
        decode(b"PAR1" + data + len(data).to_bytes(4, "little") + b"PAR1", OURS)


@pytest.mark.parametrize(
    ("namespace", "model", "refused"),
    [
        ("shop", "intent", ""),
        ("other", "intent", META_NAMESPACE),
        ("shop", "other", META_MODEL),
    ],
)
def test_a_segment_of_another_namespaces_or_models_model_is_refused(
    namespace: str, model: str, refused: str
) -> None:
    data = table_bytes(rows([1.0]), {META_NAMESPACE: namespace, META_MODEL: model})
    if not refused:
        assert len(decode(data, OURS).table) == 1
        return
    with pytest.raises(InvalidInput) as error:
        decode(data, OURS)
    assert error.value.field == f"segment.{refused}"


def test_losses_of_merged_segments_travel_with_them() -> None:
    data = table_bytes(rows([1.0]), {META_LOSSES: "[[1.5, 3]]"})
    assert decode(data, OURS).losses == ((1.5, 3),)
    for bad in ("{}x", "[[1]]", "[[1, -1]]", "null"):
        with pytest.raises(InvalidInput):
            decode(table_bytes(rows([1.0]), {META_LOSSES: bad}), OURS)


def test_a_refused_segment_is_set_aside_once_and_the_healthy_one_beside_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write(rows([10.0]))
    path = store.write(rows([11.0]))
    path.write_bytes(many_rows())
    reader = store.reader()
    # A store that takes nothing from us: the segment stays where it is.
    monkeypatch.setattr(
        "fsspec.implementations.local.LocalFileSystem.mv",
        lambda *_: (_ for _ in ()).throw(PermissionError("read-only")),
    )
    for _ in range(3):
        found = reader.read(0.0)
        assert found.column("time").tolist() == [10.0] and found.lost == 1
    assert reader.corrupt == 1 and path.exists()

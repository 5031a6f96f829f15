"""Turns the bytes of a segment into a table, within limits that a hostile file cannot pass.

`decode` is one function from bytes to columns: no file system, no network, no credentials, no
state, so that it can run in a process that has none of them. Called by `records`. Whoever can write
into a namespace's prefix chooses these bytes, so sizes are checked from the outside in, each before
something of that size is allocated: the file, the footer, what the footer claims, what the page
headers claim (the decoder obeys those), and last what dictionary-coded text expands to.

Raises InvalidInput for every file that is refused. What happens to it then is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trimwheel_api.errors import InvalidInput
from trimwheel_api.records import META_LOSSES, META_MODEL, META_NAMESPACE
from trimwheel_pipelines.parquet_pages import Page, pages_of
from trimwheel_workers.records.segments import SCHEMA

MIB: Final = 1 << 20
_TAIL: Final = 8
"""Bytes at the end of a file: the footer's length, and the mark."""
_MARK: Final = b"PAR1"
_CODECS: Final = ("UNCOMPRESSED", "SNAPPY", "ZSTD")
_ENCODINGS: Final = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 8: "RLE_DICTIONARY"}
"""Those whose output is bounded by the page, or by a dictionary that is measured before it is used.
A delta encoding can repeat a megabyte in two bytes."""
_LATEST: Final = 4_102_444_800.0  # 2100-01-01
_RANGES: Final = (("time", 0.0, _LATEST), ("u", 0.0, 1.0), ("propensity", 0.0, 1.0))
_TEXT: Final = tuple(field.name for field in SCHEMA if pa.types.is_string(field.type))


@dataclass(frozen=True, slots=True)
class SegmentLimits:
    """The largest segment that is decoded. Workers close theirs far below each of these."""

    rows: int = 20_000
    """A worker's whole backlog in one segment."""
    file_bytes: int = 32 * MIB
    """Read from the store at most."""
    footer_bytes: int = MIB
    columns: int = 64
    row_groups: int = 64
    decoded_bytes: int = 64 * MIB
    """Of all pages without compression, and again of all columns after decoding."""
    values: int = 4_000_000
    """In all pages; a list counts each of its values."""


LIMITS: Final = SegmentLimits()


@dataclass(frozen=True, slots=True)
class Claim:
    """What the place and name of a segment say: a segment is nothing else."""

    namespace: str
    model: str
    rows: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """The columns of a segment; `losses` are those of the segments that it was merged from."""

    table: pa.Table
    losses: tuple[tuple[float, int], ...] = ()
    """(Unix time, audits that were drawn then and not recorded)."""


def decode(data: bytes, claim: Claim, limits: SegmentLimits = LIMITS) -> Decoded:
    """The table in a segment's bytes. Raises InvalidInput when they break a limit or a rule."""
    _check_outside(data, limits)
    try:
        file = pq.ParquetFile(
            pa.BufferReader(data),
            read_dictionary=list(_TEXT),
            thrift_string_size_limit=limits.footer_bytes,
            thrift_container_size_limit=limits.footer_bytes,
            arrow_extensions_enabled=False,
        )
        _check_footer(file.metadata, claim, limits)
        table = SCHEMA.empty_table()
        if _rows(file.metadata):
            _check_pages(data, file.metadata, limits)
            table = _cast(_read(file, limits), limits)
        return Decoded(table, _losses(file.metadata.metadata or {}))
    except InvalidInput:
        raise
    except Exception as error:
        # pyarrow raises what its C++ raised: ArrowInvalid, OSError, KeyError, and others.
        raise InvalidInput(
            "segment", "must be a Parquet file of audit records", _sentence(error)
        ) from error


def _check_outside(data: bytes, limits: SegmentLimits) -> None:
    _at_most("segment.fileBytes", len(data), limits.file_bytes)
    if len(data) < _TAIL + len(_MARK) or data[-4:] != _MARK:
        raise InvalidInput("segment", "must end with the mark of a Parquet file", data[-4:])
    footer = int.from_bytes(data[-_TAIL:-4], "little")
    _at_most("segment.footerBytes", footer, min(limits.footer_bytes, len(data) - _TAIL))


def _check_footer(footer: Any, claim: Claim, limits: SegmentLimits) -> None:
    about = footer.metadata or {}
    for key, expected in ((META_NAMESPACE, claim.namespace), (META_MODEL, claim.model)):
        named = about.get(key.encode(), expected.encode()).decode(errors="replace")
        if named != expected:
            raise InvalidInput(f"segment.{key}", f"must be {expected!r}, whose folder it is in",
                               named)  # fmt: skip
    _at_most("segment.columns", footer.num_columns, limits.columns)
    _at_most("segment.rowGroups", footer.num_row_groups, limits.row_groups)
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    _at_most("segment.rows", _rows(footer), min(claim.rows, limits.rows))
    if footer.num_rows < 0 or any(group.num_rows < 0 for group in groups):
        raise InvalidInput("segment.rows", "must not be negative", footer.num_rows)
    _at_most(
        "segment.decodedBytes",
        sum(max(group.total_byte_size, 0) for group in groups),
        limits.decoded_bytes,
    )


def _rows(footer: Any) -> int:
    """Rows that a footer promises, by itself or group by group; of a segment that only tells of
    losses 0, and its columns have no pages to look at."""
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    return max(int(footer.num_rows), sum(max(int(group.num_rows), 0) for group in groups))


def _check_pages(data: bytes, footer: Any, limits: SegmentLimits) -> None:
    decoded = values = 0
    for number in _groups(footer):
        group = footer.row_group(number)
        for column in range(group.num_columns):
            chunk = group.column(column)
            if chunk.compression not in _CODECS:
                raise InvalidInput("segment.compression", f"must be one of {', '.join(_CODECS)}",
                                   chunk.compression)  # fmt: skip
            for page in pages_of(data, _start(chunk), chunk.total_compressed_size):
                _check_encoding(page)
                decoded += page.uncompressed
                values += 0 if page.is_dictionary else page.values
                _at_most("segment.decodedBytes", decoded, limits.decoded_bytes)
                _at_most("segment.values", values, limits.values)


def _groups(footer: Any) -> list[int]:
    """Row groups that hold rows: a segment without records, which tells of losses, has none."""
    return [n for n in range(footer.num_row_groups) if footer.row_group(n).num_rows]


def _check_encoding(page: Page) -> None:
    if page.encoding not in _ENCODINGS:
        names = ", ".join(_ENCODINGS.values())
        raise InvalidInput("segment.encoding", f"must be one of {names}", page.encoding)


def _start(chunk: Any) -> int:
    """Where a column chunk begins, as Arrow reckons it."""
    first = int(chunk.data_page_offset)
    dictionary = chunk.dictionary_page_offset
    return min(first, int(dictionary)) if dictionary and dictionary > 0 else first


def _read(file: pq.ParquetFile, limits: SegmentLimits) -> pa.Table:
    """All rows of the contract's columns, in batches: no more rows than the footer promised."""
    expected = file.metadata.num_rows
    there = file.schema_arrow.names
    missing = [name for name in SCHEMA.names if name not in there]
    if missing:
        raise InvalidInput("segment.columns", f"must include {missing[0]}", there)
    batches, rows = [], 0
    groups = _groups(file.metadata)
    if not groups:
        return SCHEMA.empty_table()
    for batch in file.iter_batches(4096, groups, columns=SCHEMA.names, use_threads=False):
        rows += batch.num_rows
        _at_most("segment.rows", rows, expected)
        batches.append(batch)
        _at_most("segment.decodedBytes", sum(one.nbytes for one in batches), limits.decoded_bytes)
    return pa.Table.from_batches(batches) if batches else SCHEMA.empty_table()


def _cast(table: pa.Table, limits: SegmentLimits) -> pa.Table:
    """The contract's types; text is counted before its dictionary is written out."""
    expanded = 0
    for name in SCHEMA.names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            # What indices point to is trusted by `take`, so it is checked first.
            column.validate(full=True)
            expanded += sum(_text_bytes(chunk) for chunk in column.chunks)
            _at_most("segment.decodedBytes", expanded, limits.decoded_bytes)
    decoded = table.select(SCHEMA.names).cast(SCHEMA)
    decoded.validate(full=True)
    for name, low, high in _RANGES:
        values = decoded[name].to_numpy()
        # NaN is in no range.
        if not ((values >= low) & (values <= high)).all():
            raise InvalidInput(f"segment.{name}", f"must lie in [{low:g}, {high:g}]", "another")
    _check_lists(decoded)
    return decoded


def _check_lists(table: pa.Table) -> None:
    """One exit at least, as many in every record, and one prediction more for full depth."""
    if not len(table):
        return
    scores, predictions = (pc.list_value_length(table[name]) for name in ("scores", "predictions"))
    widths = pc.min_max(scores).as_py(), pc.min_max(predictions).as_py()
    low, high = (widths[0][end] for end in ("min", "max"))
    if low != high or low < 1 or widths[1] != {"min": low + 1, "max": low + 1}:
        raise InvalidInput(
            "segment.scores",
            "must have one value for each exit in every record, and segment.predictions one more",
            widths,
        )


def _text_bytes(chunk: Any) -> int:
    if not len(chunk.dictionary):
        return 0
    lengths = pc.binary_length(chunk.dictionary)
    return int(pc.sum(lengths.take(chunk.indices)).as_py() or 0)


def _losses(about: dict[bytes, bytes]) -> tuple[tuple[float, int], ...]:
    text = about.get(META_LOSSES.encode())
    if text is None:
        return ()
    pairs: Sequence[Any] = json.loads(text)
    found = tuple((float(moment), int(count)) for moment, count in pairs)
    if any(count < 0 for _, count in found):
        raise InvalidInput("segment.losses", "must not be negative", min(n for _, n in found))
    return found


def _at_most(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise InvalidInput(field, f"must be at most {limit}", value)


def _sentence(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"

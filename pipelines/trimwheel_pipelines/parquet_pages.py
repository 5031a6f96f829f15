"""What the pages of a Parquet file say of themselves, read without decompressing one of them.

Called by `segment_decoding`. A footer is written by whoever wrote the file and may understate what
a reader will allocate; page headers are what the decoder obeys, so they are added up first. Reads
the compact Thrift protocol of Parquet's `PageHeader` and nothing else of the format. Leaves out
footers (pyarrow reads them) and limits (the caller's).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = (
    0, 1, 2, 3, 7, 8, 12,
)  # fmt: skip
_INTEGERS = (4, 5, 6)
_MAX_DEPTH = 4
_MAX_FIELDS = 64
_TYPE, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3
_DATA, _DICTIONARY, _DATA_V2 = 5, 7, 8
"""Fields of a PageHeader: the kind's own header lies under its number."""
_ENCODING = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}
"""Field of the encoding in each kind's own header; the number of values is always field 1."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page, by its header."""

    values: int
    uncompressed: int
    encoding: int
    is_dictionary: bool


def pages_of(data: bytes, start: int, size: int) -> Iterator[Page]:
    """The pages in `size` bytes of a column chunk from `start` on.

    Raises ValueError when the headers do not fill that stretch exactly.
    """
    end = start + size
    if not 0 < start <= end <= len(data):
        raise ValueError(f"column chunk at {start} of {size} bytes lies outside the file")
    place = start
    while place < end:
        reader = _Compact(data, place, end)
        header = reader.struct()
        sizes = header.get(_COMPRESSED), header.get(_UNCOMPRESSED)
        kind = next((one for one in _ENCODING if one in header), None)
        if kind is None or not all(isinstance(one, int) and one >= 0 for one in sizes):
            raise ValueError(f"page at {place}: its header has no kind or no sizes")
        own = header[kind]
        values, encoding = own.get(1), own.get(_ENCODING[kind])
        if not isinstance(values, int) or values < 0 or not isinstance(encoding, int):
            raise ValueError(f"page at {place}: its header counts no values")
        yield Page(values, header[_UNCOMPRESSED], encoding, kind == _DICTIONARY)
        place = reader.place + header[_COMPRESSED]
    if place != end:
        raise ValueError(f"pages end at {place}, their column chunk at {end}")


class _Compact:
    """Thrift's compact protocol, as far as a page header needs it."""

    def __init__(self, data: bytes, place: int, end: int) -> None:
        self._data, self.place, self._end = data, place, end

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Integers and structs by field number; everything else is skipped."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"page header: nested deeper than {_MAX_DEPTH}")
        found: dict[int, Any] = {}
        number = 0
        for _ in range(_MAX_FIELDS):
            head = self._byte()
            kind = head & 0x0F
            if kind == _STOP:
                return found
            step = head >> 4
            number = number + step if step else _unzigzag(self._varint())
            found[number] = self._value(kind, depth)
        raise ValueError(f"page header: more than {_MAX_FIELDS} fields")

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return _unzigzag(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BINARY:
            return self._skip(self._varint())
        if kind in (_BYTE, _DOUBLE):
            return self._skip(1 if kind == _BYTE else 8)
        raise ValueError(f"page header: type {kind} has no place in it")

    def _byte(self) -> int:
        if self.place >= self._end:
            raise ValueError("page header: cut short")
        self.place += 1
        return self._data[self.place - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("page header: a number of more than ten bytes")

    def _skip(self, count: int) -> None:
        self.place += count
        if self.place > self._end:
            raise ValueError("page header: cut short")


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)

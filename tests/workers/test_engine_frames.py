"""Frames survive any cutting of the stream, and garbage is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_workers.engine.frames import MAX_FRAME, BrokenFrame, Decoder, Kind, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(Kind), JSON), max_size=5),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(
    frames: list[tuple[Kind, object]], cuts: list[int]
) -> None:
    stream = b"".join(encode(kind, body) for kind, body in frames)
    decoder, out, place, turn = Decoder(), [], 0, 0
    while place < len(stream):
        size = cuts[turn % len(cuts)]
        out += list(decoder.feed(stream[place : place + size]))
        place, turn = place + size, turn + 1
    assert out == frames


def test_numbers_that_are_not_finite_become_null() -> None:
    assert list(Decoder().feed(encode(Kind.AUDITED, [float("nan"), float("inf")]))) == [
        (Kind.AUDITED, [None, None])
    ]


@pytest.mark.parametrize(
    "data",
    {
        "a length beyond the limit": struct.pack("<IB", MAX_FRAME + 1, 1),
        "an unknown kind": struct.pack("<IB", 2, 99) + b"{}",
        "a body that is not JSON": struct.pack("<IB", 2, 1) + b"{]",
    }.items(),
    ids=lambda item: item[0],
)
def test_garbage_is_refused(data: tuple[str, bytes]) -> None:
    with pytest.raises(BrokenFrame):
        list(Decoder().feed(data[1]))

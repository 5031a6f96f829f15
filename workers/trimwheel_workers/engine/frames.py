"""The wire between front and engine: length, kind, and a JSON body; one frame for each batch.

Both processes import this; it knows neither sockets nor torch. JSON by orjson costs less than a
microsecond a row and can be read with strace when something is wrong. Times are CLOCK_MONOTONIC
seconds, which all processes of one machine share.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import orjson

_HEADER = struct.Struct("<IB")
MAX_FRAME = 64 * 2**20
"""A longer frame is a broken peer, not a batch."""


class Kind(IntEnum):
    """What a frame says. The body's shape stands beside each."""

    # front -> engine
    CONFIG = 1  # EngineConfig as an object
    SNAPSHOT = 2  # arms.Snapshot as an object
    REQUESTS = 3  # [salt, [[id, text, cohort, deadline, audited], ...]]
    STOP = 4  # null: finish the audits in hand, then exit
    # engine -> front
    READY = 16  # arms.ModelShape as an object, with what the engine says of itself
    FAILED = 17  # {error}: no other start will cure it
    APPLIED = 18  # {version}: every later answer is under this snapshot
    ANSWERS = 19  # {rows: [[id, status, class, p, exit, layers, arm, tokens]]}; of a batch that ran
    # also {seconds: [by arm], experts: [visits], queue}
    AUDITED = (
        20  # {rows: [[id, scores, predictions, stable, candidate, replayed]], seconds, backlog}
    )
    LOST = 21  # {ids, reason}: audits that will not be done
    TRIPPED = 22  # {version, digest}: the candidate failed; stable serves


class BrokenFrame(Exception):
    """The peer wrote something that is not a frame; the connection is useless."""


def encode(kind: Kind, body: Any) -> bytes:
    """One frame. Numbers that are not finite become null, as JSON has none."""
    payload = orjson.dumps(body)
    return _HEADER.pack(len(payload), kind) + payload


class Decoder:
    """Frames out of a byte stream cut anywhere."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, Any]]:
        """The frames completed by `data`. Raises BrokenFrame."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            length, kind = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise BrokenFrame(f"a frame of {length} bytes; at most {MAX_FRAME} are allowed")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[_HEADER.size : end])
            del self._buffer[:end]
            try:
                yield Kind(kind), orjson.loads(payload)
            except ValueError as error:
                raise BrokenFrame(f"kind {kind}, {length} bytes: {error}") from error

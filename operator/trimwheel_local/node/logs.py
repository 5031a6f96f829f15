"""Reads container logs in the CRI format: tail, since, previous, follow. Used by `node.kubelet`."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

FOLLOW_POLL = 0.1
FALLBACK_LINES, FALLBACK_BYTES = 80, 2048
"""What the kubelet takes of a log for a termination message."""


@dataclass(frozen=True)
class Selection:
    """Which part of a log is asked for."""

    tail: int | None = None
    since: str = ""
    """RFC 3339 in UTC; lines from this time on. Compared as text: all stamps have one form."""
    timestamps: bool = False
    limit_bytes: int | None = None


def lines(log: Path, selection: Selection) -> Iterator[bytes]:
    """The selected lines so far, oldest first, the rotated file included."""
    return _select([*_stored(_put_aside(log)), *_stored(log)], selection)


async def follow(
    log: Path, selection: Selection, alive: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """The selected lines, then new ones until the run has ended and all was read."""
    with _Growing(log) as growing:
        old = [*_stored(_put_aside(log)), *growing.read()]
        for text in _select(old, selection):
            yield text
        later = Selection(since=selection.since, timestamps=selection.timestamps)
        while True:
            # Asked before reading: what was written before the end is then read for sure.
            running = alive()
            complete = growing.read()
            for text in _select(complete, later):
                yield text
            if not complete and not running:
                return
            if not complete:
                await asyncio.sleep(FOLLOW_POLL)


class _Growing:
    """A log file that is written and rotated meanwhile; gives each complete line once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        self._rest = b""

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def read(self) -> list[bytes]:
        """The lines that have come since the last call."""
        # Looked up first: what the writer added to the old file before it was put aside is read.
        rotated = _rotated(self._file, self._path)
        data = self._file.read() if self._file else b""
        if rotated:
            self.__exit__()
            self._file = _open(self._path)
            data += self._file.read() if self._file else b""
        *complete, self._rest = (self._rest + data).split(b"\n")
        return complete


def render(line: bytes, selection: Selection) -> bytes | None:
    """One stored line as a client sees it, or None when it is too old or not a log line."""
    parts = line.rstrip(b"\n").split(b" ", 3)
    if len(parts) < 3 or parts[2] not in (b"F", b"P"):
        return None
    stamp, _, flag, text = (*parts, b"")[:4]
    if selection.since and stamp.decode() < selection.since:
        return None
    ending = b"\n" if flag == b"F" else b""
    return (stamp + b" " if selection.timestamps else b"") + text + ending


def last_lines(log: Path) -> str:
    """The end of a log, for a termination message."""
    text = b"".join(lines(log, Selection(tail=FALLBACK_LINES)))
    return text[-FALLBACK_BYTES:].decode(errors="replace")


def _select(stored: Iterable[bytes], selection: Selection) -> Iterator[bytes]:
    rendered = (render(line, selection) for line in stored)
    found: Iterator[bytes] = (text for text in rendered if text is not None)
    return found if selection.tail is None else iter(deque(found, maxlen=selection.tail))


def _put_aside(log: Path) -> Path:
    return log.with_name(log.name + ".1")


def _stored(path: Path) -> Iterator[bytes]:
    file = _open(path)
    if file:
        with file:
            yield from file


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _rotated(file: BinaryIO | None, log: Path) -> bool:
    try:
        return file is None or os.fstat(file.fileno()).st_ino != log.stat().st_ino
    except FileNotFoundError:
        return False

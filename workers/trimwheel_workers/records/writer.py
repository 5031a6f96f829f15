"""Delivers audit records in the background, and counts every one that cannot be.

A thread of the front gathers records into segments by count or age. While the store is away
segments wait in memory, up to a limit; beyond it new records are dropped, and the number travels in
the name of the next segment, because missing audits weigh on a certificate. `close` delivers what
is left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from trimwheel_api.errors import Unavailable
from trimwheel_api.records import (
    COLUMNS,
    segment_day,
    segment_name,
)
from trimwheel_workers.records.segments import Record, deliver, segment_metadata, to_parquet

_LOG = logging.getLogger(__name__)
_FIRST_RETRY = 0.5
_LAST_RETRY = 10.0
_TIME = [column.name for column in COLUMNS].index("time")
_TEXT = [column.name for column in COLUMNS].index("text")


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """How records are gathered."""

    folder: str
    """fsspec address of the model's segments."""
    pod: str
    """Names the writer in each segment's file name."""
    namespace: str = ""
    model: str = ""
    """Whose records these are: written into each segment, so that no reader takes them for
    another model's."""
    flush_records: int = 500
    """A segment is closed at this size: some 50 KB."""
    flush_seconds: float = 5.0
    """Or when its first record or lost audit is this old: what pipelines wait for at low rates."""
    backlog_records: int = 20_000
    """Records that may wait for an absent store."""
    flush_bytes: int = 4 << 20
    """A segment is closed at this much text, too: readers refuse what takes too much to decode."""
    backlog_bytes: int = 24 << 20
    """Text that may wait for an absent store. Clients choose how long inputs are."""


@dataclass(slots=True)
class _Segment:
    folder: str
    name: str
    data: bytes
    records: int
    text_bytes: int


@dataclass(slots=True)
class _Gathering:
    records: list[Record] = field(default_factory=list)
    since: float = 0.0
    lost: int = 0
    text_bytes: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.records or self.lost)


class RecordWriter:
    """`put` from the event loop; everything slow happens in the thread."""

    def __init__(
        self,
        settings: WriterSettings,
        *,
        on_written: Callable[[int], None],
        on_dropped: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._on_written, self._on_dropped = on_written, on_dropped
        self._clock = clock
        self._condition = threading.Condition()
        self._gathering = _Gathering()
        self._segments: deque[_Segment] = deque()
        self._waiting = 0
        self._waiting_bytes = 0
        self._sequence = 0
        self._closing = False
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)

    def start(self) -> None:
        """Begin delivering."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Take one record; drops and counts it when the backlog is full."""
        text = len((record[_TEXT] or "").encode())
        with self._condition:
            gathering = self._gathering
            dropped = self._is_full(text)
            self._begin()
            if dropped:
                gathering.lost += 1
            else:
                gathering.records.append(record)
                gathering.text_bytes += text
                if self._is_large(gathering):
                    self._condition.notify()
        if dropped:
            self._on_dropped()

    def _is_full(self, text_bytes: int) -> bool:
        waiting = self._waiting_bytes + self._gathering.text_bytes + text_bytes
        return (
            self.backlog >= self._settings.backlog_records or waiting > self._settings.backlog_bytes
        )

    def _is_large(self, gathering: _Gathering) -> bool:
        return (
            len(gathering.records) >= self._settings.flush_records
            or gathering.text_bytes >= self._settings.flush_bytes
        )

    def lost(self, count: int) -> None:
        """Audits that were chosen and will have no record: told in the next segment's name.

        Without a record to travel with, a segment without rows carries the number.
        """
        if not count:
            return
        with self._condition:
            self._begin()
            self._gathering.lost += count

    def _begin(self) -> None:
        """The age of what is gathered counts from the first record or loss."""
        if self._gathering.empty:
            self._gathering.since = self._clock()
            self._condition.notify()

    @property
    def backlog(self) -> int:
        """Records that are not delivered yet."""
        return self._waiting + len(self._gathering.records)

    def close(self, timeout: float) -> int:
        """Deliver everything within `timeout` seconds; returns how many records were not."""
        with self._condition:
            self._closing = True
            self._deadline = self._clock() + timeout
            self._condition.notify()
        self._thread.join(timeout + 1.0)
        return self.backlog

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        delay = _FIRST_RETRY
        while True:
            with self._condition:
                if not self._something_due():
                    self._condition.wait(self._patience())
            self._seal()
            if not self._segments:
                if self._closing:
                    return
                continue
            if self._deliver():
                delay = _FIRST_RETRY
                continue
            if self._clock() >= self._deadline:
                return
            with self._condition:
                self._condition.wait_for(lambda: self._closing, min(delay, self._left()))
            delay = min(delay * 2, _LAST_RETRY) if not self._closing else _FIRST_RETRY

    def _left(self) -> float:
        return max(0.05, self._deadline - self._clock())

    def _something_due(self) -> bool:
        return self._closing or bool(self._segments) or self._is_due()

    def _is_due(self) -> bool:
        gathering = self._gathering
        # Even without records: how many audits are missing must not be lost as well.
        if gathering.empty:
            return False
        if self._closing or self._is_large(gathering):
            return True
        if self._segments and not gathering.records:
            # The store is away: one segment tells of all losses meanwhile, not one a retry.
            return False
        return self._clock() >= gathering.since + self._settings.flush_seconds

    def _patience(self) -> float | None:
        if self._gathering.empty:
            return None
        return max(0.01, self._gathering.since + self._settings.flush_seconds - self._clock())

    def _seal(self) -> None:
        """Turn what was gathered into a segment, if it is due."""
        with self._condition:
            if not self._is_due():
                return
            done, self._gathering = self._gathering, _Gathering()
            self._waiting += len(done.records)
            self._waiting_bytes += done.text_bytes
        self._sequence += 1
        started = done.records[0][_TIME] if done.records else time.time()
        name = segment_name(
            self._settings.pod, started, self._sequence, len(done.records), done.lost
        )
        folder = f"{self._settings.folder}/{segment_day(started)}"
        identity = segment_metadata(self._settings.namespace, self._settings.model)
        data = to_parquet(done.records, identity)
        self._segments.append(_Segment(folder, name, data, len(done.records), done.text_bytes))

    def _deliver(self) -> bool:
        segment = self._segments[0]
        try:
            deliver(segment.folder, segment.name, segment.data)
        except Unavailable as error:
            _LOG.warning("%s; %d records wait", error, self.backlog)
            return False
        self._segments.popleft()
        self._waiting -= segment.records
        self._waiting_bytes -= segment.text_bytes
        self._on_written(segment.records)
        return True

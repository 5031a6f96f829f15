"""Reads the audit records that workers write, as columns in memory.

Called by the watch loop (everything new, every few seconds) and by a TuningRun (a stretch of time).
A reader remembers which segments it has read, so a pass costs a short listing and the new files.
What cannot be read is moved to `quarantine/` and counted: one bad file never stops the loop, and it
is never silently left out, because its records count as lost.

Leaves out which files there are (`segment_files`), what the columns mean (`trimwheel_api.records`)
and which records a question may use (`watch`, `audit_window`). Deletion is `retention`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trimwheel_api.errors import InvalidInput, Unavailable
from trimwheel_pipelines.isolated_decoding import isolated_decode, selected
from trimwheel_pipelines.segment_decoding import LIMITS, MIB, Claim
from trimwheel_pipelines.segment_files import (
    QUARANTINE,
    Day,
    Plan,
    Segment,
    SegmentFiles,
    answering,
)
from trimwheel_workers.records.segments import SCHEMA

log = logging.getLogger(__name__)

_TRIES = 3
"""Listings of a stretch whose segments are merged while they are read."""
READ_BYTES = 32 * MIB
"""Decoded in one call of `read_new`: a small file may decode to a lot, and a call holds all of it
several times over. The segment that passes it is still taken."""
READ_SECONDS = 20.0
"""That one call of `read_new` may take, give or take one segment."""


@dataclass(frozen=True)
class AuditRecords:
    """N records as columns, oldest first; `lost` more audits were drawn but not recorded."""

    table: pa.Table
    lost: int = 0

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> npt.NDArray[Any]:
        """A scalar column as an array [N]; text columns have dtype object, absent values None."""
        return cast(npt.NDArray[Any], self.table[name].to_numpy())

    def matrix(self, name: str) -> npt.NDArray[Any]:
        """A list column as an array [N, width]; every list must have the same length.

        Raises ValueError when they do not: records of two models were mixed.
        """
        values = self.table[name].combine_chunks()
        if not len(values):
            return np.zeros((0, 0), np.float32)
        flat, rows = values.flatten().to_numpy(), len(values)
        if len(flat) % rows or set(np.diff(values.offsets.to_numpy())) != {len(flat) // rows}:
            raise ValueError(f"{name}: every record must hold as many values as the others")
        return cast(npt.NDArray[Any], flat.reshape(rows, -1))

    def first(self, name: str) -> npt.NDArray[Any]:
        """The first value of each list [N]; widths may differ."""
        values = self.table[name].combine_chunks()
        return cast(npt.NDArray[Any], values.values.to_numpy()[values.offsets.to_numpy()[:-1]])

    def last(self, name: str) -> npt.NDArray[Any]:
        """The last value of each list [N]; widths may differ."""
        values = self.table[name].combine_chunks()
        return cast(npt.NDArray[Any], values.values.to_numpy()[values.offsets.to_numpy()[1:] - 1])

    def where(self, mask: npt.NDArray[np.bool_]) -> AuditRecords:
        """The records under a mask [N]; `lost` stays, since it belongs to the time."""
        return AuditRecords(self.table.filter(pa.array(mask)), self.lost)

    def of_model(self, digest: str) -> AuditRecords:
        """The records that were made with this model artifact, all with as many exits.

        Those of another shape than most cannot be the artifact's, whatever they say; they count as
        lost.
        """
        ours = self.where(self.column("model_digest") == digest)
        widths = pc.list_value_length(ours.table["scores"]).to_numpy()
        if not len(widths) or (widths == widths[0]).all():
            return ours
        odd = widths != np.bincount(widths).argmax()
        return AuditRecords(ours.where(~odd).table, ours.lost + int(odd.sum()))

    def with_inputs(self) -> AuditRecords:
        """The records that kept their input."""
        return self.where(self.table["text"].is_valid().to_numpy())

    def oldest(self, count: int) -> AuditRecords:
        """The first `count` records."""
        return AuditRecords(self.table.slice(0, count), self.lost)

    def newest(self, count: int) -> AuditRecords:
        """The last `count` records."""
        return AuditRecords(self.table.slice(max(0, len(self) - count)), self.lost)

    @property
    def texts(self) -> list[str] | None:
        """The inputs, or None unless every record kept its own."""
        column = self.table["text"]
        return None if column.null_count or not len(self) else column.to_pylist()

    @staticmethod
    def joined(parts: list[AuditRecords]) -> AuditRecords:
        """Several stretches as one, oldest first."""
        return _joined([part.table for part in parts], sum(part.lost for part in parts))


@dataclass(frozen=True, slots=True)
class Held:
    """What one segment holds, and how many audits it stands for without holding them."""

    table: pa.Table
    lost: int
    losses: tuple[tuple[float, int], ...] = ()
    """Of a merged segment: when which of its sources lost how many."""

    @classmethod
    def nothing(cls, segment: Segment, columns: Sequence[str] = SCHEMA.names) -> Held:
        """A segment that nobody can read."""
        return cls(selected(columns).empty_table(), segment.count + segment.lost)

    def lost_in(self, since: float) -> int:
        """Losses from a time on; those that no source is named for count whenever."""
        unnamed = self.lost - sum(count for _, count in self.losses)
        return unnamed + sum(count for moment, count in self.losses if moment >= since)


@dataclass
class RecordReader:
    """Segments of one model below an fsspec address; remembers what it has read."""

    root: str
    namespace: str
    model: str
    corrupt: int = 0
    """Segments set aside so far."""
    seen: set[tuple[float, str, int]] = field(default_factory=set)
    remembers: bool = False
    """Keep what was decoded: for a reader that asks for the same stretch again and again."""
    files: SegmentFiles = field(init=False)
    _decoded: dict[str, Held] = field(default_factory=dict)
    vanished: int = 0
    """Segments that were gone when they were to be read."""
    _gone: set[tuple[float, str, int]] = field(default_factory=set)
    _refused: set[tuple[float, str, int]] = field(default_factory=set)
    """Segments that could not be read: never tried twice, even where they cannot be moved."""

    def __post_init__(self) -> None:
        self.files = SegmentFiles(self.root, self.namespace, self.model)

    def segments(self, since: float = 0.0, until: float = np.inf) -> list[Segment]:
        """Segments that started in [since, until), oldest first.

        Raises Unavailable when the store does not answer.
        """
        days = self.files.days(since)
        found = [s for day in days for s in day.segments if since <= s.started < until]
        return sorted(found, key=lambda s: (s.started, s.path))

    def read_new(
        self,
        since: float = 0.0,
        limit: int | None = None,
        listed: Sequence[Day] | None = None,
        columns: Sequence[str] = SCHEMA.names,
    ) -> AuditRecords:
        """What arrived since the last call, of segments that started at `since` or later.

        At most `limit` segments, oldest first, and about READ_BYTES: a long history is read over
        several calls. `listed` is what `files.days` just answered, where the caller has asked;
        `columns`: of the records, "time" among them. `since` is the same in every call.
        """
        days = [day for day in listed or self.files.days(since) if not day.read_whole]
        for plan in (plan for day in days for plan in day.plans if plan.done):
            self.replace_seen(plan)
        unread = [
            s for day in days for s in day.segments if s.key not in self.seen and s.started >= since
        ]
        fresh = sorted(unread, key=lambda s: (s.started, s.path))[:limit]
        vanished = self.vanished
        parts, lost = self._within(fresh, columns)
        fresh = fresh[: len(parts)]
        if self.vanished != vanished:
            # Merged or deleted since they were listed: what became of them comes in the next call.
            fresh = [s for s in fresh if s.key not in self._gone]
        else:
            for day in days if len(fresh) == len(unread) else ():
                day.read_whole = True
        self._gone.clear()
        self.seen.update(segment.key for segment in fresh)
        return _joined(parts, lost, columns)

    def _within(
        self, segments: Sequence[Segment], columns: Sequence[str]
    ) -> tuple[list[pa.Table], int]:
        """The first of these, as many as bytes and time allow, and how many audits they lost."""
        parts: list[pa.Table] = []
        size = lost = 0
        until = time.monotonic() + READ_SECONDS
        for segment in segments:
            if parts and (size >= READ_BYTES or time.monotonic() >= until):
                break
            held = self.held(segment, columns)
            parts.append(held.table)
            size, lost = size + held.table.nbytes, lost + held.lost
        return parts, lost

    def replace_seen(self, plan: Plan) -> None:
        """A merge came about: who has read all its sources has read its target."""
        keys = plan.keys()
        if self.seen.issuperset(keys):
            self.seen.add(plan.key)

    def read(self, since: float, until: float = np.inf, slack: float = 3600.0) -> AuditRecords:
        """Records answered in [since, until) by Unix time, whatever was read before.

        A segment is named after its first record, so one that started up to `slack` seconds before
        `since` is opened too. `lost` sums over the segments that hold a record of that time, and
        counts everything in those that were set aside.
        """
        for _ in range(_TRIES):
            self._gone.clear()
            found = self._stretch(since, until, slack)
            if not self._gone:
                break
        self._gone.clear()
        return found

    def _stretch(self, since: float, until: float, slack: float) -> AuditRecords:
        near = self.segments(since - slack, until)
        parts, lost = [], 0
        for segment in near:
            held = self.held(segment)
            times = held.table["time"].to_numpy()
            inside = (times >= since) & (times < until)
            # A segment that is unreadable or empty speaks for its start alone.
            if inside.any() or (not len(held.table) and segment.started >= since):
                lost += held.lost_in(since)
                parts.append(held.table.filter(pa.array(inside)))
        aside = [s for s in self.files.aside() if since <= s.started < until]
        counted = {s.key for s in near}
        lost += sum(s.count + s.lost for s in aside if s.key not in counted)
        current = {segment.path for segment in near}
        self._decoded = {path: one for path, one in self._decoded.items() if path in current}
        return _joined(parts, lost)

    def read_last(self, count: int, before: float) -> AuditRecords:
        """About the last `count` records answered before a Unix time, or a few more.

        Reads the newest segments whose names promise that many, so history stays unread.
        """
        for _ in range(_TRIES):
            self._gone.clear()
            found = self._read(self._newest(count, before))
            if not self._gone:
                break
        self._gone.clear()
        return found.where(found.column("time") < before)

    def _newest(self, count: int, before: float) -> list[Segment]:
        chosen: list[Segment] = []
        promised = 0
        for segment in reversed(self.segments(until=before)):
            chosen.append(segment)
            promised += segment.count
            # Twice as many: the newest reach beyond `before`, others may be of a former model.
            if promised >= 2 * count:
                break
        return chosen

    def _read(self, segments: list[Segment]) -> AuditRecords:
        tables = [self.table_of(segment) for segment in segments]
        return _joined([table for table, _ in tables], sum(lost for _, lost in tables))

    def table_of(self, segment: Segment) -> tuple[pa.Table, int]:
        """Rows of a segment and how many audits it stands for without holding them."""
        held = self.held(segment)
        return held.table, held.lost

    def held(self, segment: Segment, columns: Sequence[str] = SCHEMA.names) -> Held:
        """What a segment holds; one that is refused or gone holds nothing and counts as lost."""
        if segment.key in self._refused:
            return Held.nothing(segment, columns)
        if segment.path in self._decoded:
            known = self._decoded[segment.path]
            return replace(known, table=known.table.select(columns))
        found = self._decode(segment, columns)
        if self.remembers and len(found.table) and len(columns) == len(SCHEMA):
            self._decoded[segment.path] = found
        return found

    def _decode(self, segment: Segment, columns: Sequence[str]) -> Held:
        claim = Claim(self.namespace, self.model, segment.count)
        try:
            found = isolated_decode(self._bytes(segment), claim, LIMITS, columns)
        except FileNotFoundError:
            # Retention, a merge or another reader's quarantine was faster; the name still says how
            # many.
            self.files.forget()
            self.vanished += 1
            self._gone.add(segment.key)
            return Held.nothing(segment, columns)
        except InvalidInput as error:
            self._set_aside(segment, error)
            return Held.nothing(segment, columns)
        short = max(0, segment.count - len(found.table))
        return Held(found.table, segment.lost + short, found.losses)

    def _bytes(self, segment: Segment) -> bytes:
        """What the file holds; one byte more than may be decoded tells that it is too large."""
        system, _ = self.files.open()
        with answering(self.root), system.open(segment.path, "rb") as stream:
            return bytes(stream.read(LIMITS.file_bytes + 1))

    def _set_aside(self, segment: Segment, error: Exception) -> None:
        system, folder = self.files.open()
        target = f"{folder}/{QUARANTINE}/{segment.path.rsplit('/', 1)[-1]}"
        log.warning("Segment %s cannot be read (%s). Moved to %s.", segment.path, error, target)
        self.corrupt += 1
        self.seen.add(segment.key)
        self._refused.add(segment.key)
        try:
            with answering(self.root):
                system.makedirs(f"{folder}/{QUARANTINE}", exist_ok=True)
                system.mv(segment.path, target)
        except (FileNotFoundError, Unavailable) as problem:
            log.warning("Segment %s could not be moved: %s", segment.path, problem)


def _joined(
    parts: list[pa.Table], lost: int, columns: Sequence[str] = SCHEMA.names
) -> AuditRecords:
    table = pa.concat_tables(parts) if parts else selected(columns).empty_table()
    return AuditRecords(table.sort_by("time").combine_chunks(), lost)

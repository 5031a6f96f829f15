"""Merges the small segments of half an hour into one, so that a month is some hundreds of files.

Called by the watch loop for each model on every pass, a bounded piece at a time. Fifty workers
close a hundred thousand segments a day, whose names alone would fill the memory and whose listing
the passes of the loop. Nothing is lost and nothing counted twice, wherever it is killed:

1. a plan (`merge-ID.json`) names the sources and the target: readers ignore it while the target is
   not there, and the sources once it is;
2. the target is put in place, in one step;
3. the sources are listed again: where one was changed meanwhile (a tenant's deletion), target and
   plan are taken back;
4. the sources are deleted, and the plan after a checkpoint knows the target (`settle`).

`finish` does the rest of a merge that was cut short. Losses of each source travel in the target's
metadata. Sources are read within the limits of every segment; one that is refused is set aside.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import pyarrow as pa

from trimwheel_api.records import segment_folder, segment_name
from trimwheel_pipelines.isolated_decoding import isolated_decode
from trimwheel_pipelines.records import Held, RecordReader
from trimwheel_pipelines.retention import delete_file
from trimwheel_pipelines.segment_decoding import LIMITS, Claim
from trimwheel_pipelines.segment_files import MOST_SOURCES, Day, Plan, Segment
from trimwheel_workers.records.segments import deliver, segment_metadata, table_bytes

log = logging.getLogger(__name__)

STRETCH_SECONDS: Final = 1800.0
"""Of the records in one target: less than the hour that readers reach back for what a segment
holds beyond its start."""
SETTLE_SECONDS: Final = 900.0
"""After the end of a stretch: most of what is late is there then."""
LEAST_SOURCES: Final = 2
MOST_BYTES: Final = LIMITS.decoded_bytes // 4
MERGED: Final = "_"
"""A target's name has this and an id for a pod: no pod is called so."""


def merge_once(
    reader: RecordReader, days: Sequence[Day], now: float, save: Callable[[], None]
) -> int:
    """Merge one stretch that has settled; returns how many segments became one, 0 where none did.

    `days`: what `files.days` just answered. `save` writes the checkpoint: before anything is put
    in place it has to know that all sources were read, or a restart would count some twice. Raises
    Unavailable when the store is away.
    """
    for day in days:
        for sources in _stretches(day, reader.seen, now):
            return _merge(reader, day, sources, save)
    return 0


def finish(reader: RecordReader, days: Sequence[Day]) -> list[Plan]:
    """Finish merges that came about and undo those that did not; returns plans for `settle`.

    Raises Unavailable when the store is away.
    """
    system, _ = reader.files.open()
    done = []
    for day in days:
        for plan in day.plans:
            if plan.done:
                reader.replace_seen(plan)
                for name in plan.sources:
                    delete_file(system, f"{day.folder}/{name}")
                reader.seen.difference_update(plan.keys())
                done.append(plan)
            else:
                delete_file(system, plan.path)
                reader.files.forget(day.folder)
    return done


def settle(reader: RecordReader, plans: Sequence[Plan]) -> None:
    """Delete the plans of finished merges: a checkpoint knows their targets, or none needs to."""
    system, _ = reader.files.open()
    for plan in plans:
        delete_file(system, plan.path)
        reader.files.forget(plan.path.rsplit("/", 1)[0])


def _stretches(day: Day, seen: set[tuple[float, str, int]], now: float) -> list[list[Segment]]:
    """Segments that may become one: all read by the watch, or none of them."""
    if day.plans or len(day.files) < LEAST_SOURCES:
        return []
    parts: dict[tuple[int, bool], list[Segment]] = defaultdict(list)
    for segment in day.segments:
        stretch = int(segment.started // STRETCH_SECONDS)
        settled = (stretch + 1) * STRETCH_SECONDS + SETTLE_SECONDS <= now
        if settled and not segment.pod.startswith(MERGED):
            parts[stretch, segment.key in seen].append(segment)
    return [
        sources
        for (stretch, known), sources in sorted(parts.items())
        # While some are read, the others are about to be.
        if len(sources) >= LEAST_SOURCES and (known or (stretch, True) not in parts)
    ]


def _merge(
    reader: RecordReader, day: Day, candidates: Sequence[Segment], save: Callable[[], None]
) -> int:
    vanished = reader.vanished
    sources, held = _readable(reader, candidates)
    if reader.vanished != vanished or len(sources) < LEAST_SOURCES:
        return 0
    table = pa.concat_tables([one.table for one in held]).sort_by("time").combine_chunks()
    losses = [_losses(*pair) for pair in zip(sources, held, strict=True)]
    named = [loss for several in losses for loss in several]
    metadata = segment_metadata(reader.namespace, reader.model, named)
    data = table_bytes(table, metadata)
    lost = sum(count for _, count in named)
    names = tuple(sorted(one.path.rsplit("/", 1)[-1] for one in sources))
    code = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    started = min(one.started for one in sources)
    target = segment_name(f"{MERGED}{code}", started, len(sources), len(table), lost)
    # What nobody could read again must not take the place of what can be read.
    isolated_decode(data, Claim(reader.namespace, reader.model, len(table)))
    root = _address(reader, day)
    plan = Plan(f"{day.folder}/merge-{code}.json", target, names, True)
    save()
    deliver(root, f"merge-{code}.json", json.dumps({"target": target, "sources": names}).encode())
    deliver(root, target, data)
    return _replace(reader, day, plan)


def _readable(
    reader: RecordReader, candidates: Sequence[Segment]
) -> tuple[list[Segment], list[Held]]:
    """As many of the candidates, oldest first, as one target may hold."""
    sources: list[Segment] = []
    held: list[Held] = []
    rows = size = 0
    for segment in candidates[:MOST_SOURCES]:
        corrupt = reader.corrupt
        one = reader.held(segment)
        if reader.corrupt != corrupt:
            continue
        rows, size = rows + len(one.table), size + one.table.nbytes
        if sources and (rows > LIMITS.rows or size > MOST_BYTES):
            break
        sources.append(segment)
        held.append(one)
    return sources, held


def _losses(segment: Segment, held: Held) -> list[tuple[float, int]]:
    """A source's losses, at the time of its last record: a reader's question begins before or after
    all of it."""
    if not held.lost:
        return []
    times = held.table["time"].to_numpy()
    return [(float(times.max()) if len(times) else segment.started, held.lost)]


def _replace(reader: RecordReader, day: Day, plan: Plan) -> int:
    """Delete the sources, unless one of them was changed since it was read."""
    system, _ = reader.files.open()
    system.invalidate_cache()
    names = {str(path).rsplit("/", 1)[-1] for path in system.ls(day.folder, detail=False)}
    reader.files.forget(day.folder)
    if not names.issuperset(plan.sources):
        log.info("%s changed while it was merged; leaving it as it is.", day.folder)
        delete_file(system, f"{day.folder}/{plan.target}")
        delete_file(system, plan.path)
        return 0
    reader.replace_seen(plan)
    for name in plan.sources:
        delete_file(system, f"{day.folder}/{name}")
    reader.seen.difference_update(plan.keys())
    return len(plan.sources)


def _address(reader: RecordReader, day: Day) -> str:
    """The day's folder as an fsspec address."""
    folder = segment_folder(reader.root, reader.namespace, reader.model)
    return f"{folder}/{day.folder.rsplit('/', 1)[-1]}"

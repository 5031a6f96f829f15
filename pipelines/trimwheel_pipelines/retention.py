"""Deletes audit records: by age, by tenant, and altogether.

The watch loop calls `purge` with each model's `audits.retention`; a person calls `forget` through
`trimwheel records delete --tenant`. Segments are immutable, so forgetting rewrites: the file
without the tenant's rows takes the old one's place. What was deleted counts as lost audits from
then on: a certificate must not pretend that they were never drawn.
"""

from __future__ import annotations

import logging
from typing import Any

import pyarrow.compute as pc

from trimwheel_api.errors import Unavailable
from trimwheel_api.records import segment_name
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.segment_files import Segment, answering
from trimwheel_workers.records.segments import segment_metadata, table_bytes

log = logging.getLogger(__name__)

_PASSES = 10
"""Over a model's segments at most, while others change them."""


def purge(reader: RecordReader, before: float) -> int:
    """Delete segments that started before a Unix time, set-aside ones too; returns how many."""
    system, _ = reader.files.open()
    days = reader.files.days()
    aside = reader.files.aside()
    old = [one for files in (aside, *(day.files for day in days)) for one in files
           if one.started < before]  # fmt: skip
    for segment in old:
        delete_file(system, segment.path)
    for day in days[1:]:
        if all(segment.started < before for segment in day.files):
            for plan in day.plans:
                for name in plan.sources if plan.done else ():
                    delete_file(system, f"{day.folder}/{name}")
                delete_file(system, plan.path)
            _remove_folder(system, day.folder)
    if old:
        reader.files.forget()
    return len(old)


def forget(reader: RecordReader, tenant: str) -> int:
    """Delete every record of a tenant, in readable segments; returns how many records.

    Segments in quarantine cannot be searched for a tenant, so they are deleted whole.
    """
    gone = 0
    for _ in range(_PASSES):
        vanished = reader.vanished
        found = _forget_once(reader, tenant)
        gone += found
        # A segment that was merged while this went on lies under another name now.
        if not found and reader.vanished == vanished:
            break
    return gone


def _forget_once(reader: RecordReader, tenant: str) -> int:
    system, _ = reader.files.open()
    reader.files.forget()
    days = reader.files.days()
    # What an earlier call, or a merge, replaced and could not delete any more.
    replaced = [one.path for day in days for one in day.superseded]
    replaced += [
        f"{day.folder}/{name}"
        for day in days for plan in day.plans if plan.done for name in plan.sources
    ]  # fmt: skip
    for path in (*(one.path for one in reader.files.aside()), *replaced):
        delete_file(system, path)
    gone = sum(_rewrite(system, reader, segment, tenant) for segment in reader.segments())
    reader.files.forget()
    return gone


def erase(reader: RecordReader) -> int:
    """Delete a model's folder with all that is in it; returns how many records, by their names."""
    system, folder = reader.files.open()
    files = [one for day in reader.files.days() for one in day.files]
    held = sum(one.count for one in (*files, *reader.files.aside()))
    try:
        with answering(reader.root):
            system.rm(folder, recursive=True)
    except FileNotFoundError:
        log.debug("%s holds nothing.", folder)
    reader.files.forget()
    return held


def _rewrite(system: Any, reader: RecordReader, segment: Segment, tenant: str) -> int:
    held = reader.held(segment)
    table, lost = held.table, held.lost
    theirs = pc.fill_null(pc.equal(table["tenant"], tenant), False)
    gone = int(pc.sum(theirs).as_py() or 0)
    if not gone:
        return 0
    kept = table.filter(pc.invert(theirs))
    folder = segment.path.rsplit("/", 1)[0]
    name = segment_name(segment.pod, segment.started, segment.sequence, len(kept), lost + gone)
    data = table_bytes(kept, segment_metadata(reader.namespace, reader.model, held.losses))
    with answering(reader.root):
        # A name that no reader parses, then a move: nobody sees half a file.
        with system.open(f"{folder}/{name}.part", "wb") as stream:
            stream.write(data)
        system.mv(f"{folder}/{name}.part", f"{folder}/{name}")
    delete_file(system, segment.path)
    log.info("Removed %d records of a tenant from %s.", gone, segment.path)
    return gone


def _remove_folder(system: Any, folder: str) -> None:
    """An empty day; object stores know no empty folders, and a new segment keeps its own."""
    try:
        with answering(folder):
            system.rmdir(folder)
    except (FileNotFoundError, Unavailable) as error:
        log.debug("%s stays: %s", folder, error)


def delete_file(system: Any, path: str) -> None:
    """Delete one file; one that somebody else deleted first is as good."""
    try:
        with answering(path):
            system.rm_file(path)
    except FileNotFoundError:
        log.debug("%s was deleted by somebody else first.", path)

"""Deletes audit records: by age, and by tenant.

The watch loop calls `purge` with each model's `audits.retention`; a person calls `forget` through
`trimwheel records delete --tenant`. Segments are immutable, so forgetting rewrites: the file
without the tenant's rows takes the old one's place. What was deleted counts as lost audits from
then on: a certificate must not pretend that they were never drawn.
"""

from __future__ import annotations

import logging
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trimwheel_api.records import segment_folder, segment_name
from trimwheel_pipelines.records import QUARANTINE, RecordReader, Segment, answering

log = logging.getLogger(__name__)


def purge(reader: RecordReader, before: float) -> int:
    """Delete segments that started before a Unix time, set-aside ones too; returns how many."""
    system, _ = fsspec.url_to_fs(segment_folder(reader.root, reader.namespace, reader.model))
    old = [
        segment
        for folder in ("", QUARANTINE)
        for segment in reader.segments(folder)
        if segment.started < before
    ]
    for segment in old:
        _delete(system, segment.path)
    return len(old)


def forget(reader: RecordReader, tenant: str) -> int:
    """Delete every record of a tenant, in readable segments; returns how many records.

    Segments in quarantine cannot be searched for a tenant, so they are deleted whole.
    """
    system, _ = fsspec.url_to_fs(segment_folder(reader.root, reader.namespace, reader.model))
    for segment in reader.segments(QUARANTINE):
        _delete(system, segment.path)
    return sum(_rewrite(system, reader, segment, tenant) for segment in reader.segments())


def _rewrite(system: Any, reader: RecordReader, segment: Segment, tenant: str) -> int:
    table, lost = reader.table_of(segment)
    theirs = pc.fill_null(pc.equal(table["tenant"], tenant), False)
    gone = int(pc.sum(theirs).as_py() or 0)
    if not gone:
        return 0
    kept = table.filter(pc.invert(theirs))
    folder = segment.path.rsplit("/", 1)[0]
    name = segment_name(segment.pod, segment.started, segment.sequence, len(kept), lost + gone)
    sink = pa.BufferOutputStream()
    pq.write_table(kept, sink, compression="zstd")
    with answering(reader.root):
        # A name that no reader parses, then a move: nobody sees half a file.
        with system.open(f"{folder}/{name}.part", "wb") as stream:
            stream.write(sink.getvalue().to_pybytes())
        system.mv(f"{folder}/{name}.part", f"{folder}/{name}")
    _delete(system, segment.path)
    log.info("Removed %d records of a tenant from %s.", gone, segment.path)
    return gone


def _delete(system: Any, path: str) -> None:
    try:
        with answering(path):
            system.rm_file(path)
    except FileNotFoundError:
        log.debug("%s was deleted by somebody else first.", path)

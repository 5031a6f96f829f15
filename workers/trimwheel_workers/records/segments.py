"""Records as Parquet segments, and how one reaches the store: whole or not at all.

Called by the writer's thread; pipelines read by the same SCHEMA. Columns and names are
`trimwheel_api.records`'; a record is a tuple in the order of its columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from trimwheel_api.errors import Unavailable
from trimwheel_api.records import (
    COLUMNS,
    META_LOSSES,
    META_MODEL,
    META_NAMESPACE,
    SCHEMA_VERSION,
)

_ARROW = {
    "string": pa.string(),
    "float64": pa.float64(),
    "float32": pa.float32(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "list<float32>": pa.list_(pa.float32()),
    "list<int32>": pa.list_(pa.int32()),
}
SCHEMA = pa.schema(
    [pa.field(column.name, _ARROW[column.type], column.nullable) for column in COLUMNS],
    metadata={"trimwheel.records": str(SCHEMA_VERSION)},
)

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Stores without folders. Their fsspec drivers take `makedirs` as leave to create the bucket, and a
misspelt address must be an error, not a new bucket."""

Record = tuple[Any, ...]
"""One value for each of `trimwheel_api.records.COLUMNS`."""


def to_parquet(records: Sequence[Record], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a segment; no records give a segment without rows.

    `metadata` is written beside the schema's own (`trimwheel_api.records.META_...`).
    """
    columns = list(zip(*records, strict=True)) if records else [()] * len(SCHEMA)
    arrays = [
        pa.array(values, type=field.type) for values, field in zip(columns, SCHEMA, strict=True)
    ]
    return table_bytes(pa.Table.from_arrays(arrays, schema=SCHEMA), metadata)


def table_bytes(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """A table of records as the bytes of a segment."""
    schema = SCHEMA.with_metadata({**(SCHEMA.metadata or {}), **(metadata or {})})
    sink = BytesIO()
    pq.write_table(table.cast(schema), sink, compression="zstd")
    return sink.getvalue()


def segment_metadata(
    namespace: str, model: str, losses: Sequence[tuple[float, int]] = ()
) -> dict[str, str]:
    """What a segment says of itself: whose it is, and the losses of what it was merged from."""
    pairs = {META_NAMESPACE: namespace, META_MODEL: model}
    if losses:
        pairs[META_LOSSES] = json.dumps([list(one) for one in losses])
    return {key: value for key, value in pairs.items() if value}


def deliver(folder: str, name: str, data: bytes) -> None:
    """Put a segment under its name in one step. Raises Unavailable when the store does not take it.

    Readers ignore names that do not parse, so the temporary name needs no other protection.
    """
    try:
        store, root = fsspec.core.url_to_fs(folder)
        if not _OBJECT_STORES.intersection(_protocols(store)):
            store.makedirs(root, exist_ok=True)
        temporary = f"{root}/.{name}.part"
        with store.open(temporary, "wb") as file:
            file.write(data)
        store.mv(temporary, f"{root}/{name}")
    except Exception as error:
        # Every store raises errors of its own; all mean that the segment is not there yet.
        raise Unavailable(f"record store {folder}: {type(error).__name__}: {error}") from error


def _protocols(store: Any) -> tuple[str, ...]:
    return (store.protocol,) if isinstance(store.protocol, str) else tuple(store.protocol)

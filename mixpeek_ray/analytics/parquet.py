"""Rows of traffic as Parquet files, readable by anything that reads Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mixpeek_ray.analytics.records import TrafficKey, TrafficRow

_SOURCES = b"mixpeek.sources"
# Files from before there were shadow requests lack it.
_SHADOW = "shadow"
_SCHEMA = pa.schema(
    [
        ("began", pa.timestamp("s", tz="UTC")),
        ("organization_id", pa.string()),
        ("namespace_id", pa.string()),
        ("model_name", pa.string()),
        ("version", pa.string()),
        ("status", pa.int16()),
        ("error_code", pa.string()),
        (_SHADOW, pa.bool_()),
        ("requests", pa.int64()),
        ("items", pa.int64()),
        ("tokens", pa.int64()),
        ("latency_s", pa.float64()),
        ("max_latency_s", pa.float64()),
        # See LatencyHistogram.
        ("latency_buckets", pa.list_(pa.int16())),
        ("latency_counts", pa.list_(pa.int64())),
    ]
)


def encode(rows: Iterable[TrafficRow], sources: Mapping[str, int]) -> bytes:
    """Return a file of ``rows`` that also says which batches they came in: the last of each source."""
    records = [
        (
            row.began_s, row.key.organization_id, row.key.namespace_id, row.key.model_name, row.key.version,
            row.key.status, row.key.error_code, row.key.is_shadow, row.requests, row.items, row.tokens, row.latency_s,
            row.max_latency_s, [bucket for bucket, _ in row.latencies], [count for _, count in row.latencies],
        )
        for row in rows
    ]  # fmt: skip
    columns: Sequence[Sequence[Any]] = list(zip(*records, strict=True)) or [[] for _ in _SCHEMA]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    schema = _SCHEMA.with_metadata({_SOURCES: json.dumps(dict(sources)).encode()})
    written = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), written, compression="zstd")
    return written.getvalue()


def decode(
    data: bytes, *, organization_id: str | None = None, start_s: int = 0, end_s: int | None = None
) -> list[TrafficRow]:
    """Return the rows of a file: an organisation's, that began from ``start_s`` up to before ``end_s``."""
    table = pq.read_table(io.BytesIO(data))
    if _SHADOW not in table.column_names:
        place = _SCHEMA.get_field_index(_SHADOW)
        table = table.add_column(place, _SHADOW, pa.array([False] * len(table), type=pa.bool_()))
    # Parquet has no seconds: they come back as milliseconds.
    table = table.set_column(0, "began", table["began"].cast(pa.timestamp("s", tz="UTC")).cast(pa.int64()))
    chosen = pc.greater_equal(table["began"], start_s)
    if end_s is not None:
        chosen = pc.and_(chosen, pc.less(table["began"], end_s))
    if organization_id is not None:
        chosen = pc.and_(chosen, pc.equal(table["organization_id"], organization_id))
    found = table.filter(chosen)
    return [
        TrafficRow(
            began_s=began_s,
            key=TrafficKey(*key),
            requests=requests,
            items=items,
            tokens=tokens,
            latency_s=latency_s,
            max_latency_s=max_latency_s,
            latencies=tuple(zip(buckets, counts, strict=True)),
        )
        for began_s, *key, requests, items, tokens, latency_s, max_latency_s, buckets, counts in zip(
            *(column.to_pylist() for column in found.columns), strict=True
        )
    ]


def sources_of(data: bytes) -> dict[str, int]:
    """Return the last batch of each source whose rows a file has."""
    metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
    sources: dict[str, int] = json.loads(metadata.get(_SOURCES, b"{}"))
    return sources

"""Records as JSON bytes and back, strictly."""

from __future__ import annotations

import json
from typing import Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixpeek_ray.core.errors import CorruptStoreError

# Raised by one when a record's meaning changes; a new field with a default needs no new version.
SCHEMA_VERSION: Final = 1

R = TypeVar("R")


class _Envelope(BaseModel, Generic[R]):
    # Nested dataclasses take this configuration too: an unknown field anywhere is refused.
    model_config = ConfigDict(strict=True, extra="forbid")

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    record: R


class RecordCodec(Generic[R]):
    """Encodes and decodes one type of record as ``{"schema": 1, "record": {…}}``."""

    def __init__(self, record_type: type[R]) -> None:
        self._envelope = _Envelope[record_type]  # type: ignore[valid-type] # a type that only exists at run time
        self._name = record_type.__name__

    def encode(self, record: R) -> bytes:
        """Return the record's JSON, UTF-8."""
        return self._envelope(record=record).model_dump_json(by_alias=True).encode()

    def decode(self, data: bytes) -> R:
        """Return the record. Raises ``CorruptStoreError`` for anything that this version would not have written."""
        try:
            record: R = self._envelope.model_validate_json(data).record
        except ValidationError as error:
            raise CorruptStoreError(f"A stored {self._name} cannot be used: {_reason(data, error)}.") from None
        return record


def _reason(data: bytes, error: ValidationError) -> str:
    """Return why, without the bytes themselves: what is corrupt may be anything."""
    try:
        envelope = json.loads(data)
    except ValueError:
        return "it is not JSON; restore it from a backup or delete it"
    schema = envelope.get("schema") if isinstance(envelope, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        return f"it has schema {schema}, newer than {SCHEMA_VERSION}; upgrade mixpeek-ray"
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{first['msg']} ({where[:120]!a}); restore it from a backup or delete it"

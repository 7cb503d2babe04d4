"""Whether the parts of a resumable upload are the whole archive that was announced."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from mixpeek_ray.core.errors import CorruptStoreError, DigestMismatchError, UploadIncompleteError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.uploads import UploadPart, total_bytes
from mixpeek_ray.store.uploads import UploadStore

# Hashing lets the interpreter go only for the length of one chunk.
_HASH_BYTES = 4 * MIB
# A thousand missing numbers say no more than these.
_MAX_REPORTED_PARTS = 20


def ordered_parts(parts: Mapping[int, UploadPart], *expected_bytes: int | None) -> tuple[UploadPart, ...]:
    """Return the parts in order. Raises ``UploadIncompleteError`` unless they are 1 to N and of the expected size."""
    missing = [number for number in range(1, max(parts, default=1) + 1) if number not in parts]
    if missing:
        shown = missing[:_MAX_REPORTED_PARTS]
        raise UploadIncompleteError(
            f"The upload lacks {len(missing)} of its parts, among them {', '.join(map(str, shown))}: "
            "send those and confirm again.",
            missing_parts=shown,
            missing_count=len(missing),
        )
    ordered = tuple(parts[number] for number in sorted(parts))
    size_bytes = total_bytes(ordered)
    for expected in expected_bytes:
        if expected is not None and expected != size_bytes:
            raise UploadIncompleteError(
                f"The parts hold {size_bytes} bytes and the archive has {expected}: send what is missing, or the part "
                "that is wrong, and confirm again.",
                received_bytes=size_bytes,
                expected_bytes=expected,
            )
    return ordered


def hash_parts(store: UploadStore, upload_id: str, parts: Sequence[UploadPart]) -> str:
    """Return the SHA-256 of the parts one after the other, lower-case hex. Blocks; keeps one chunk in memory.

    Raises ``CorruptStoreError`` when the store does not return what it was given.
    """
    if len(parts) == 1:
        return parts[0].sha256  # hashed as it arrived
    whole = hashlib.sha256()
    for part in parts:
        # Each part is held against its own hash as well: the whole's would be that of what a failing disk returns.
        alone = hashlib.sha256()
        try:
            reader = store.open_part(upload_id, part)
        except FileNotFoundError:
            raise _lost(part) from None
        with reader:
            while chunk := reader.read(_HASH_BYTES):
                whole.update(chunk)
                alone.update(chunk)
        if alone.hexdigest() != part.sha256:
            raise _lost(part)
    return whole.hexdigest()


def check_announced(found_sha256: str, *announced: str | None) -> None:
    """Return if every announced hash is the one that was found. Raises ``DigestMismatchError``."""
    for expected in announced:
        if expected is not None and expected != found_sha256:
            raise DigestMismatchError(
                f"The archive hashes to {found_sha256} and was announced as {expected}: a part is wrong, or out of "
                "order. GET the upload for the hash of each part, and send the wrong one again.",
                expected_sha256=expected,
                found_sha256=found_sha256,
            )


def _lost(part: UploadPart) -> CorruptStoreError:
    return CorruptStoreError(f"The store lost bytes of part {part.number}: send that part again, then confirm again.")

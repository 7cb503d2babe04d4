"""The store on S3 and what speaks its protocol: s3fs's options, errors and unfinished uploads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped] # no stubs are published

from mixpeek_ray.core.limits import GIB, MIB
from mixpeek_ray.store.base import BlobPiece
from mixpeek_ray.store.fsspec_store import FsspecStore
from mixpeek_ray.store.join import delete_pieces

# botocore waits up to 1 and 2 s between these (503 and SlowDown included): an outage is an answer within seconds, a
# throttled burst is no outage.
_ATTEMPTS = 3
# s3fs's own attempts, each with botocore's inside; more than one only because botocore does not repeat a request
# whose answer broke off in its body.
_OUTER_ATTEMPTS = 2
# Callers of `create` that meet in the same moment are told to come again (409), by S3 itself.
_CONFLICT_CODE = "ConditionalRequestConflict"
_CONFLICT_ATTEMPTS = 5
# What S3 takes as a part that it copies itself; the last one may be smaller.
_MIN_COPIED_PART_BYTES = 5 * MIB
_MAX_COPIED_PART_BYTES = 5 * GIB
# Each copy is a request of about half a second that moves nothing through this process.
_PARALLEL_COPIES = 8


class S3Store(FsspecStore):
    """Blobs below ``root`` (``bucket/prefix``); endpoint, region and credentials come from the standard ``AWS_*``.

    ``options`` go to ``s3fs.S3FileSystem``.
    """

    backend_errors: ClassVar[tuple[type[Exception], ...]] = (
        OSError,
        TimeoutError,
        BotoCoreError,
        ClientError,
        aiohttp.ClientError,
    )

    def __init__(self, root: str, **options: Any) -> None:
        filesystem = s3fs.S3FileSystem(
            # Caches would hide what other processes write; a shared instance could have been made with them.
            use_listings_cache=False,
            skip_instance_cache=True,
            # Some S3-compatible stores refuse parts of unequal sizes.
            fixed_upload_size=True,
            config_kwargs={"retries": {"mode": "standard", "max_attempts": _ATTEMPTS}},
            **options,
        )
        filesystem.retries = _OUTER_ATTEMPTS
        super().__init__(filesystem, root)

    def create(self, key: str, data: bytes) -> None:
        """Write a small blob where none is. Raises ``FileExistsError``: of many racing callers one succeeds."""
        path = self._path(key)
        with self._answerable_errors():
            for attempt in range(1, _CONFLICT_ATTEMPTS + 1):
                try:
                    self._fs.pipe_file(path, data, mode="create")
                except FileExistsError:
                    raise FileExistsError(f"blob {key} exists") from None
                except OSError as error:
                    if attempt == _CONFLICT_ATTEMPTS or _code_of(error) != _CONFLICT_CODE:
                        raise
                else:
                    return

    def put(self, key: str, data: bytes) -> None:
        """Write a small blob, replacing any, in one request."""
        path = self._path(key)
        with self._answerable_errors():
            self._fs.pipe_file(path, data)

    def join(self, pieces: Sequence[BlobPiece], target: str) -> None:
        """Make one blob of several, in order, within S3 where their sizes allow; the pieces are gone afterwards."""
        if not _can_be_copied(pieces):
            super().join(pieces, target)
            return
        if not self.exists(target):
            self._copy_together(pieces, target)
        delete_pieces(self, pieces)

    def _copy_together(self, pieces: Sequence[BlobPiece], target: str) -> None:
        bucket, _, key = self._path(target).partition("/")
        with self._answerable_errors(target):
            started = self._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
            upload = {"Bucket": bucket, "Key": key, "UploadId": started["UploadId"]}

            def copy(numbered: tuple[int, BlobPiece]) -> dict[str, Any]:
                number, piece = numbered
                source = self._path(piece.key)
                copied = self._fs.call_s3("upload_part_copy", **upload, CopySource=source, PartNumber=number)
                return {"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]}

            try:
                with ThreadPoolExecutor(_PARALLEL_COPIES) as pool:
                    parts = list(pool.map(copy, enumerate(pieces, start=1)))
                self._fs.call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
            except BaseException:
                with suppress(*self.backend_errors):
                    self._fs.call_s3("abort_multipart_upload", **upload)
                raise

    def discard_abandoned(self, older_than: timedelta) -> int:
        """Abort multipart uploads below the root that began longer ago than ``older_than``; return how many."""
        bucket, _, prefix = self._root.partition("/")
        started_before = datetime.now(UTC) - older_than
        with self._answerable_errors():
            abandoned = [upload for upload in self._unfinished(bucket, prefix) if upload["Initiated"] < started_before]
            for upload in abandoned:
                self._fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
        return len(abandoned)

    def _unfinished(self, bucket: str, prefix: str) -> list[dict[str, Any]]:
        uploads: list[dict[str, Any]] = []
        markers: dict[str, str] = {}
        while True:
            page = self._fs.call_s3(
                "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **markers
            )
            uploads += page.get("Uploads", [])
            if not page.get("IsTruncated"):
                return uploads
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _is_outage(self, error: OSError) -> bool:
        return _code_of(error) == "NoSuchBucket"


def _can_be_copied(pieces: Sequence[BlobPiece]) -> bool:
    return all(piece.size_bytes >= _MIN_COPIED_PART_BYTES for piece in pieces[:-1]) and all(
        piece.size_bytes <= _MAX_COPIED_PART_BYTES for piece in pieces
    )


def _code_of(error: OSError) -> str | None:
    """Return S3's own code of an error that s3fs translated."""
    cause = error.__cause__
    return str(cause.response["Error"].get("Code")) if isinstance(cause, ClientError) else None

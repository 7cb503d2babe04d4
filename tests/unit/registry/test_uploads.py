"""Resumable uploads as the registry keeps them, over real stores and without Ray."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from pathlib import Path

import pytest

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import (
    ArchiveTooLargeError,
    CorruptStoreError,
    DigestMismatchError,
    NotFoundError,
    QuotaExceededError,
    UploadClosedError,
    UploadIncompleteError,
    UploadNotFoundError,
    VersionExistsError,
)
from mixpeek_ray.core.records import ModelFormat, ModelManifest, ResourceRequest, UploadedArchive, UploadForm
from mixpeek_ray.core.uploads import (
    UploadAnnouncement,
    UploadOutcome,
    UploadRef,
    UploadStatus,
    ValidationStatus,
)
from mixpeek_ray.registry.housekeeping import Housekeeper
from mixpeek_ray.registry.state import ModelCatalog, now
from mixpeek_ray.registry.uploads import Uploads
from mixpeek_ray.store import layout
from mixpeek_ray.store.base import BlobStore
from mixpeek_ray.store.local_store import LocalStore
from mixpeek_ray.store.memory_store import MemoryStore
from mixpeek_ray.store.records import RecordStore
from mixpeek_ray.store.uploads import UploadStore

pytestmark = pytest.mark.anyio

PARTS = {1: b"first " * 1000, 2: b"second " * 1000, 3: b"third"}
WHOLE = b"".join(PARTS.values())
SHA256 = hashlib.sha256(WHOLE).hexdigest()
FORM = UploadForm(
    name="model",
    version="1.0.0",
    model_format=ModelFormat.PYTORCH,
    framework=None,
    task_type=None,
    resources=ResourceRequest(),
)
UPLOAD = "upl_" + "a" * 32
REF = UploadRef(upload_id=UPLOAD, organization_id="org_a", namespace_id="ns_a")
PASSED = UploadOutcome(validation=ValidationStatus.PASSED, archive_sha256=SHA256)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "store")


class Registry:
    """Uploads over a store, and what surrounds them."""

    def __init__(self, store: BlobStore, lifetime: timedelta = timedelta(hours=1)) -> None:
        self.store = store
        self.catalog = ModelCatalog()
        self._lifetime = lifetime
        self.restart()

    def restart(self, lifetime: timedelta | None = None) -> None:
        """Begin anew with what the store holds."""
        self.uploads = Uploads(self.catalog, UploadStore(self.store), lifetime=lifetime or self._lifetime)

    async def create(self, upload_id: str = UPLOAD, **announced: object) -> None:
        announcement = UploadAnnouncement(form=FORM, **announced)
        await self.uploads.create(upload_id, "org_a", "ns_a", announcement)

    async def send(self, number: int, data: bytes | None = None, *, ref: UploadRef = REF) -> str:
        """Bring a part as the gateway does; return its temporary key."""
        data = PARTS[number] if data is None else data
        key = layout.new_upload_key()
        self.store.put(key, data)
        sha256 = hashlib.sha256(data).hexdigest()
        archive = UploadedArchive(temporary_key=key, sha256=sha256, size_bytes=len(data))
        await self.uploads.add_part(ref, number, archive)
        return key

    async def send_all(self) -> None:
        for number in (3, 1, 2):
            await self.send(number)

    def manifest(self, sha256: str = SHA256) -> ModelManifest:
        return ModelManifest(
            namespace_id="ns_a",
            model_id="model_1_0_0",
            name="model",
            version="1.0.0",
            model_format=ModelFormat.PYTORCH,
            framework=None,
            task_type=None,
            resources=ResourceRequest(),
            archive_sha256=sha256,
            archive_bytes=len(WHOLE),
            created_at=now(),
            contents=None,
        )

    def kept(self) -> set[str]:
        return {blob.key for blob in self.store.list("")}


@pytest.fixture
def registry(store: BlobStore) -> Registry:
    return Registry(store)


async def test_parts_in_any_order_make_the_archive(registry: Registry) -> None:
    await registry.create(size_bytes=len(WHOLE), sha256=SHA256)
    await registry.send_all()
    progress, archive = await registry.uploads.assemble(REF, len(WHOLE), SHA256)

    assert archive is not None
    assert (archive.sha256, archive.size_bytes) == (SHA256, len(WHOLE))
    assert registry.store.read(archive.temporary_key) == WHOLE
    assert registry.kept() == {archive.temporary_key, f"resumable/{UPLOAD}/upload.json"}
    assert progress.status is UploadStatus.CONFIRMING
    finished = await registry.uploads.finish(REF, PASSED)
    assert finished.status is UploadStatus.COMPLETED
    assert registry.kept() == {f"resumable/{UPLOAD}/upload.json"}
    assert await registry.uploads.assemble(REF, None, None) == (finished, None)


@pytest.mark.parametrize("step", range(5))
async def test_a_registry_that_dies_between_any_two_steps_loses_nothing(registry: Registry, step: int) -> None:
    def maybe_die(at: int) -> None:
        if at == step:
            registry.restart()

    await registry.create()
    maybe_die(0)
    await registry.send(2)
    await registry.send(3)
    maybe_die(1)
    await registry.send(1)
    maybe_die(2)
    assert [part.number for part in registry.uploads.find(REF).parts] == [1, 2, 3]
    _, archive = await registry.uploads.assemble(REF, None, None)
    maybe_die(3)
    _, again = await registry.uploads.assemble(REF, None, None)
    assert archive == again
    assert registry.store.read(again.temporary_key) == WHOLE
    await registry.uploads.finish(REF, PASSED)
    maybe_die(4)
    assert registry.uploads.find(REF).session.outcome == PASSED


async def test_a_part_that_is_sent_again_replaces_the_earlier_one(registry: Registry) -> None:
    await registry.create()
    await registry.send(1, b"wrong")
    await registry.send(2)
    await registry.send(3)
    before = registry.kept()
    await registry.send(1)

    assert len(registry.kept()) == len(before)
    registry.restart()
    _, archive = await registry.uploads.assemble(REF, None, SHA256)
    assert registry.store.read(archive.temporary_key) == WHOLE


async def test_of_two_revisions_that_a_crash_left_the_later_counts(registry: Registry) -> None:
    await registry.create()
    await registry.send(1, b"wrong")
    wrong = next(key for key in registry.kept() if "/parts/" in key)
    await registry.send(1)
    registry.store.put(wrong, b"wrong")
    registry.restart()

    (part,) = registry.uploads.find(REF).parts
    assert part.size_bytes == len(PARTS[1])


async def test_a_repeated_call_for_a_part_that_was_kept_succeeds(registry: Registry) -> None:
    await registry.create()
    key = await registry.send(1)
    archive = UploadedArchive(temporary_key=key, sha256=hashlib.sha256(PARTS[1]).hexdigest(), size_bytes=len(PARTS[1]))
    assert (await registry.uploads.add_part(REF, 1, archive)).revision == 1
    with pytest.raises(NotFoundError):
        await registry.uploads.add_part(REF, 2, archive)


@pytest.mark.parametrize(
    ("numbers", "size_bytes", "missing"), [((), None, [1]), ((1, 3), None, [2]), ((1, 2), len(WHOLE), None)]
)
async def test_what_is_not_whole_cannot_be_confirmed_and_stays_open(
    registry: Registry, numbers: tuple[int, ...], size_bytes: int | None, missing: list[int] | None
) -> None:
    await registry.create(size_bytes=size_bytes)
    for number in numbers:
        await registry.send(number)
    with pytest.raises(UploadIncompleteError) as refused:
        await registry.uploads.assemble(REF, None, None)

    assert refused.value.details.get("missing_parts") == missing
    assert registry.uploads.find(REF).status is UploadStatus.OPEN
    for number in PARTS.keys() - set(numbers):
        await registry.send(number)
    _, archive = await registry.uploads.assemble(REF, len(WHOLE), SHA256)
    assert archive is not None


@pytest.mark.parametrize("who_says", ["create", "confirm"])
async def test_a_wrong_hash_of_the_whole_leaves_the_parts(registry: Registry, who_says: str) -> None:
    await registry.create(sha256="0" * 64 if who_says == "create" else None)
    await registry.send_all()
    with pytest.raises(DigestMismatchError):
        await registry.uploads.assemble(REF, None, "0" * 64 if who_says == "confirm" else None)

    assert registry.uploads.find(REF).status is UploadStatus.OPEN
    assert len(registry.uploads.find(REF).parts) == 3


async def test_bytes_that_the_store_changed_are_never_an_archive(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    key = next(key for key in registry.kept() if "/parts/00002" in key)
    registry.store.put(key, PARTS[2][:-1] + b"x")
    with pytest.raises(CorruptStoreError):
        await registry.uploads.assemble(REF, None, None)
    await registry.send(2)
    _, archive = await registry.uploads.assemble(REF, None, SHA256)
    assert archive is not None


async def test_confirming_at_once_makes_one_archive(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    results = await asyncio.gather(*(registry.uploads.assemble(REF, None, None) for _ in range(4)))
    assert len({archive for _, archive in results}) == 1


async def test_a_confirmed_upload_takes_no_more_parts(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    await registry.uploads.assemble(REF, None, None)
    with pytest.raises(UploadClosedError):
        registry.uploads.admit_part(REF, 4)
    with pytest.raises(UploadClosedError):
        await registry.send(4, b"more")


async def test_a_part_that_waited_while_the_upload_was_confirmed_changes_nothing(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    # Each waits for the one before: the last asked while the upload was still open.
    _, (_, archive), late = await asyncio.gather(
        registry.send(1), registry.uploads.assemble(REF, None, None), registry.send(2, b"late"), return_exceptions=True
    )
    assert isinstance(late, UploadClosedError)
    assert registry.store.read(archive.temporary_key) == WHOLE


async def test_the_whole_is_never_more_than_was_announced(registry: Registry) -> None:
    await registry.create(size_bytes=10)
    await registry.send(1, b"x" * 6)
    assert registry.uploads.admit_part(REF, 1) == 10
    assert registry.uploads.admit_part(REF, 2) == 4
    with pytest.raises(ArchiveTooLargeError):
        await registry.send(2, b"x" * 5)
    await registry.send(2, b"x" * 4)
    with pytest.raises(ArchiveTooLargeError):
        registry.uploads.admit_part(REF, 3)


async def test_without_an_announcement_the_product_limit_holds(registry: Registry) -> None:
    await registry.create()
    assert registry.uploads.admit_part(REF, 1) == limits.MAX_ARCHIVE_BYTES


async def test_a_namespace_has_a_limited_number_of_open_uploads(registry: Registry) -> None:
    ids = [f"upl_{number:032x}" for number in range(limits.MAX_OPEN_UPLOADS_PER_NAMESPACE + 1)]
    results = await asyncio.gather(*(registry.create(one) for one in ids), return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [QuotaExceededError]
    opened = registry.uploads.unconfirmed("org_a", "ns_a")
    assert len(opened) == limits.MAX_OPEN_UPLOADS_PER_NAMESPACE
    await registry.uploads.abort(
        UploadRef(upload_id=opened[0].session.upload_id, organization_id="org_a", namespace_id=None)
    )
    await registry.create("upl_" + "f" * 32)


async def test_quota_is_asked_when_it_opens_and_when_it_is_confirmed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.create()
    await registry.send_all()
    monkeypatch.setattr(limits, "MAX_MODELS_PER_NAMESPACE", 0)
    with pytest.raises(QuotaExceededError):
        await registry.create("upl_" + "b" * 32)
    with pytest.raises(QuotaExceededError):
        await registry.uploads.assemble(REF, None, None)
    monkeypatch.undo()
    _, archive = await registry.uploads.assemble(REF, None, None)
    assert archive is not None


async def test_a_version_with_other_bytes_is_refused_before_anything_is_joined(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    registry.catalog.created(registry.manifest("0" * 64))
    with pytest.raises(VersionExistsError):
        await registry.uploads.assemble(REF, None, None)
    assert registry.uploads.find(REF).status is UploadStatus.OPEN
    with pytest.raises(VersionExistsError):
        await registry.create("upl_" + "b" * 32, sha256=SHA256)


async def test_a_version_with_the_same_bytes_completes_it(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    registry.catalog.created(registry.manifest())
    progress, archive = await registry.uploads.assemble(REF, None, None)
    assert archive is None
    assert progress.session.outcome == UploadOutcome(validation=ValidationStatus.PENDING, archive_sha256=SHA256)
    assert registry.kept() == {f"resumable/{UPLOAD}/upload.json"}


async def test_an_archive_whose_manifest_was_never_written_is_found_again(registry: Registry) -> None:
    """The registry was killed between the two, then the whole platform: its first sweep must spare the archive."""
    await registry.create()
    await registry.send_all()
    _, archive = await registry.uploads.assemble(REF, None, None)
    records = RecordStore(registry.store)
    records.promote_archive(archive.temporary_key, archive.sha256)
    registry.store.put(layout.archive_key("0" * 64), b"nobody's")
    registry.restart()
    Housekeeper(registry.catalog, records, registry.uploads).sweep(archives=True)

    assert not registry.store.exists(layout.archive_key("0" * 64))
    _, again = await registry.uploads.assemble(REF, None, None)
    assert registry.store.read(again.temporary_key) == WHOLE


@pytest.mark.parametrize(
    "ref",
    [
        UploadRef(upload_id=UPLOAD, organization_id="org_b", namespace_id=None),
        UploadRef(upload_id=UPLOAD, organization_id="org_a", namespace_id="ns_b"),
        UploadRef(upload_id="upl_none", organization_id="org_a", namespace_id=None),
    ],
)
async def test_someone_elses_upload_is_not_found(registry: Registry, ref: UploadRef) -> None:
    await registry.create()
    for question in (lambda: registry.uploads.find(ref), lambda: registry.uploads.admit_part(ref, 1)):
        with pytest.raises(UploadNotFoundError):
            question()
    for step in (
        registry.send(1, ref=ref),
        registry.uploads.assemble(ref, None, None),
        registry.uploads.finish(ref, PASSED),
        registry.uploads.abort(ref),
    ):
        with pytest.raises(UploadNotFoundError):
            await step
    assert registry.uploads.unconfirmed("org_b", None) == ()
    assert registry.uploads.find(REF).parts == ()


async def test_an_aborted_upload_leaves_nothing(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    await registry.uploads.abort(REF)
    assert registry.kept() == set()
    with pytest.raises(UploadNotFoundError):
        registry.uploads.find(REF)


async def test_an_expired_upload_is_gone_at_once_and_its_bytes_with_the_next_sweep(store: BlobStore) -> None:
    registry = Registry(store)
    await registry.create()
    await registry.send_all()
    await Registry(store, lifetime=timedelta(0)).create("upl_" + "b" * 32)
    registry.restart()
    expired = UploadRef(upload_id="upl_" + "b" * 32, organization_id="org_a", namespace_id=None)
    with pytest.raises(UploadNotFoundError):
        registry.uploads.find(expired)
    await registry.uploads.sweep()

    assert not store.exists(f"resumable/{expired.upload_id}/upload.json")
    assert len(registry.uploads.find(REF).parts) == 3


async def test_what_a_cut_short_removal_left_is_removed_at_the_next_start(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    registry.store.delete(f"resumable/{UPLOAD}/upload.json")
    registry.restart()
    assert registry.kept() == set()


async def test_what_lies_beside_an_unreadable_record_stays(registry: Registry) -> None:
    await registry.create()
    await registry.send_all()
    record = registry.store.read(f"resumable/{UPLOAD}/upload.json")
    registry.store.put(f"resumable/{UPLOAD}/upload.json", b"{")
    registry.restart()
    with pytest.raises(UploadNotFoundError):
        registry.uploads.find(REF)
    registry.store.put(f"resumable/{UPLOAD}/upload.json", record)
    registry.restart()
    assert len(registry.uploads.find(REF).parts) == 3

"""Durable records: written once, read strictly, one bad one never hiding the others."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from mixpeek_ray.core.errors import ConflictError, NotFoundError, StorageUnavailableError, VersionExistsError
from mixpeek_ray.core.records import (
    ApiKey,
    ArchiveContents,
    DeploymentMarker,
    FileInfo,
    ModelFormat,
    ModelManifest,
    Namespace,
    Organization,
    ResourceRequest,
    Role,
    Tier,
)
from mixpeek_ray.store import layout
from mixpeek_ray.store.memory_store import MemoryStore
from mixpeek_ray.store.records import RecordStore

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SHA = "ab" * 32

MANIFEST = ModelManifest(
    namespace_id="ns_1",
    model_id="my-model_1_0_0",
    name="my-model",
    version="1.0.0",
    model_format=ModelFormat.SAFETENSORS,
    framework="pytorch",
    task_type=None,
    resources=ResourceRequest(num_cpus=0.5, num_gpus=1, memory_bytes=2**31),
    archive_sha256=SHA,
    archive_bytes=123,
    created_at=NOW,
    contents=ArchiveContents(
        files=(FileInfo(path="a/b.safetensors", size_bytes=7),),
        tensor_count=2,
        parameter_count=3,
        dtypes=("float32", "bfloat16"),
        weights_bytes=64,
    ),
)
MARKER = DeploymentMarker(namespace_id="ns_1", model_id="my-model_1_0_0", requested_at=NOW)
NAMESPACE = Namespace(namespace_id="ns_1", organization_id="org_1", name="first", created_at=NOW)
ORGANIZATION = Organization(
    organization_id="org_1", name="Ünïcode & co", tier=Tier.ENTERPRISE, created_at=NOW, auto_create_namespaces=True
)
KEY = ApiKey(key_id="key_1", organization_id="org_1", name="ci", role=Role.WRITE, digest="0f" * 32, created_at=NOW)

MANIFEST_KEY = "namespaces/ns_1/models/my-model_1_0_0/manifest.json"


class FakeOutage(MemoryStore):
    """Lists, but cannot read."""

    def read(self, key: str) -> bytes:
        raise StorageUnavailableError("down")


class FakeVanishing(MemoryStore):
    """Every blob is deleted between being listed and being read."""

    def read(self, key: str) -> bytes:
        raise FileNotFoundError(key)


class FakeWatched(MemoryStore):
    """Remembers what was deleted, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[str] = []

    def delete(self, key: str) -> None:
        self.deleted.append(key)
        super().delete(key)


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def records(blobs: MemoryStore) -> RecordStore:
    return RecordStore(blobs)


@pytest.mark.parametrize("manifest", [MANIFEST, replace(MANIFEST, contents=None, framework=None)])
def test_records_come_back_equal(records: RecordStore, manifest: ModelManifest) -> None:
    records.create_manifest(manifest)
    records.put_deployment(MARKER)
    records.create_namespace(NAMESPACE)
    records.create_organization(ORGANIZATION)
    records.create_key(KEY)
    records.put_key(replace(KEY, revoked_at=NOW))
    records.put_organization(replace(ORGANIZATION, tier=Tier.FREE))

    assert records.load_manifests().records == (manifest,)
    assert records.load_deployments().records == (MARKER,)
    assert records.load_namespaces().records == (NAMESPACE,)
    assert records.load_organizations().records == (replace(ORGANIZATION, tier=Tier.FREE),)
    assert records.load_keys().records == (replace(KEY, revoked_at=NOW),)


def test_records_lie_where_the_layout_says(records: RecordStore, blobs: MemoryStore) -> None:
    records.create_manifest(MANIFEST)
    records.put_deployment(MARKER)
    records.create_namespace(NAMESPACE)
    records.create_organization(ORGANIZATION)
    records.create_key(KEY)

    assert {blob.key for blob in blobs.list("")} == {
        "namespaces/ns_1/namespace.json",
        MANIFEST_KEY,
        "namespaces/ns_1/models/my-model_1_0_0/deployment.json",
        "auth/organizations/org_1.json",
        "auth/keys/key_1.json",
    }


def test_a_stored_manifest_of_schema_1_stays_readable(records: RecordStore, blobs: MemoryStore) -> None:
    """The bytes on customers' disks: never edit them to make this pass; raise the schema and convert instead."""
    blobs.put(
        MANIFEST_KEY,
        b'{"schema":1,"record":{"namespace_id":"ns_1","model_id":"my-model_1_0_0","name":"my-model","version":"1.0.0",'
        b'"model_format":"safetensors","framework":"pytorch","task_type":null,"resources":{"num_cpus":0.5,"num_gpus":1,'
        b'"memory_bytes":2147483648},"archive_sha256":"%s","archive_bytes":123,"created_at":'
        b'"2026-01-02T03:04:05.678901Z","contents":{"files":[{"path":"a/b.safetensors","size_bytes":7}],"tensor_count":2,'
        b'"parameter_count":3,"dtypes":["float32","bfloat16"],"weights_bytes":64}}}' % SHA.encode(),
    )

    assert records.load_manifests().records == (MANIFEST,)


def test_of_many_racing_manifests_one_wins(records: RecordStore) -> None:
    start = threading.Barrier(20)

    def create(size: int) -> bool:
        start.wait(timeout=30)
        try:
            records.create_manifest(replace(MANIFEST, archive_bytes=size))
        except VersionExistsError:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(create, range(20))) == 1


@pytest.mark.parametrize(
    "create",
    [
        lambda records: records.create_namespace(NAMESPACE),
        lambda records: records.create_organization(ORGANIZATION),
        lambda records: records.create_key(KEY),
    ],
)
def test_ids_are_taken_once(records: RecordStore, create: Callable[[RecordStore], None]) -> None:
    create(records)
    with pytest.raises(ConflictError):
        create(records)


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the manifest's stored bytes after ``change``."""
    blobs = MemoryStore()
    RecordStore(blobs).create_manifest(MANIFEST)
    envelope = json.loads(blobs.read(MANIFEST_KEY))
    change(envelope)
    return json.dumps(envelope).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "restore"),
        (b'{"schema":1}', "record"),
        (edited(lambda envelope: envelope)[:-5], "not JSON"),
        (edited(lambda envelope: envelope.update(schema=2)), "upgrade mixpeek-ray"),
        (edited(lambda envelope: envelope.update(extra=1)), "extra"),
        (edited(lambda envelope: envelope["record"].update(extra=1)), "extra"),
        (edited(lambda envelope: envelope["record"]["resources"].update(extra=1)), "extra"),
        (edited(lambda envelope: envelope["record"]["contents"]["files"][0].update(extra=1)), "extra"),
        (edited(lambda envelope: envelope["record"].update(archive_bytes="123")), "archive_bytes"),
        (edited(lambda envelope: envelope["record"].update(model_format="zip")), "model_format"),
        (edited(lambda envelope: envelope["record"]["resources"].update(num_gpus=99)), "num_gpus"),
        (edited(lambda envelope: envelope["record"].pop("archive_sha256")), "archive_sha256"),
        (edited(lambda envelope: envelope["record"].update(namespace_id="ns_2")), "another record"),
    ],
)
def test_a_bad_record_is_reported_and_hides_no_other(
    records: RecordStore, blobs: MemoryStore, data: bytes, reason: str
) -> None:
    good = replace(MANIFEST, model_id="other_1_0_0", name="other")
    records.create_manifest(good)
    blobs.put(MANIFEST_KEY, data)

    loaded = records.load_manifests()

    assert loaded.records == (good,)
    assert [problem.key for problem in loaded.problems] == [MANIFEST_KEY]
    assert reason in loaded.problems[0].reason


def test_the_version_of_a_bad_manifest_stays_taken(records: RecordStore, blobs: MemoryStore) -> None:
    blobs.put(MANIFEST_KEY, b"garbage")
    with pytest.raises(VersionExistsError):
        records.create_manifest(MANIFEST)


def test_a_problem_shows_nothing_of_a_key(records: RecordStore, blobs: MemoryStore) -> None:
    records.create_key(KEY)
    envelope = json.loads(blobs.read("auth/keys/key_1.json"))
    envelope["record"].update(role="owner")
    blobs.put("auth/keys/key_1.json", json.dumps(envelope).encode())

    (problem,) = records.load_keys().problems
    assert KEY.digest not in problem.reason


def test_an_outage_is_no_bad_record() -> None:
    blobs = FakeOutage()
    records = RecordStore(blobs)
    records.create_manifest(MANIFEST)
    with pytest.raises(StorageUnavailableError):
        records.load_manifests()


def test_a_record_deleted_while_loading_is_skipped() -> None:
    records = RecordStore(FakeVanishing())
    records.create_manifest(MANIFEST)
    loaded = records.load_manifests()

    assert loaded.records == ()
    assert loaded.problems == ()


def test_deleting_a_model_takes_its_manifest_first_and_only_its_own_records() -> None:
    blobs = FakeWatched()
    records = RecordStore(blobs)
    other = replace(MANIFEST, model_id="my-model_1_0_00", version="1.0.00")
    for manifest in (MANIFEST, other):
        records.create_manifest(manifest)
    records.put_deployment(MARKER)
    records.delete_model("ns_1", "my-model_1_0_0")

    assert blobs.deleted == [MANIFEST_KEY, "namespaces/ns_1/models/my-model_1_0_0/deployment.json"]
    assert records.load_manifests().records == (other,)
    assert records.load_deployments().records == ()


def test_undeploying_keeps_the_model(records: RecordStore) -> None:
    records.create_manifest(MANIFEST)
    records.put_deployment(MARKER)
    for _ in range(2):
        records.delete_deployment("ns_1", "my-model_1_0_0")

    assert records.load_deployments().records == ()
    assert records.load_manifests().records == (MANIFEST,)


def test_an_upload_becomes_an_archive_also_when_asked_twice(records: RecordStore, blobs: MemoryStore) -> None:
    key = layout.new_upload_key()
    blobs.put(key, b"bytes")
    assert [upload.key for upload in records.list_uploads()] == [key]

    for _ in range(2):
        records.promote_archive(key, SHA)

    assert blobs.read(layout.archive_key(SHA)) == b"bytes"
    assert list(records.list_archives()) == [SHA]
    assert list(records.list_uploads()) == []


def test_an_upload_that_is_gone_must_be_sent_again(records: RecordStore) -> None:
    with pytest.raises(NotFoundError, match="upload the archive again"):
        records.promote_archive(layout.new_upload_key(), SHA)


def test_archives_and_uploads_are_deleted(records: RecordStore, blobs: MemoryStore) -> None:
    key = layout.new_upload_key()
    blobs.put(key, b"")
    blobs.put(layout.archive_key(SHA), b"")
    for _ in range(2):
        records.delete_upload(key)
        records.delete_archive(SHA)

    assert list(blobs.list("")) == []

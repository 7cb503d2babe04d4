"""A registry without HTTP on a Ray of one node, for benchmarks of what happens in workers."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import ray

from mixpeek_ray.core.records import ModelFormat, ResourceRequest, UploadedArchive, UploadForm
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.store.factory import open_store
from mixpeek_ray.store.layout import new_upload_key

NAMESPACE = "ns_bench"


def memory() -> dict[str, int]:
    """Return this process's memory by kind, in bytes (/proc/self/smaps_rollup)."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    return fields


def deploy(
    registry: Any, settings: Settings, source: Path, name: str, model_format: ModelFormat = ModelFormat.PYTORCH
) -> str:
    """Upload an archive of a file or folder to the store and deploy it, as the gateway does; return the model's id."""
    organization_id = ray.get(registry.key_ring.remote(None)).organizations[0].organization_id
    archive = source.with_suffix(".tar.gz")
    subprocess.run(["tar", "-C", source.parent, "-I", "gzip -1", "-cf", archive, source.name], check=True)
    store, key, digest = open_store(settings.resolved_store_url), new_upload_key(), hashlib.sha256()
    writer = store.open_write(key)
    with archive.open("rb") as packed:
        while chunk := packed.read(4 << 20):
            digest.update(chunk)
            writer.write(chunk)
    writer.commit()
    uploaded = UploadedArchive(temporary_key=key, sha256=digest.hexdigest(), size_bytes=archive.stat().st_size)
    archive.unlink()
    form = UploadForm(
        name=name,
        version="1.0.0",
        model_format=model_format,
        framework=None,
        task_type=None,
        resources=ResourceRequest(),
    )
    ray.get(registry.admit_upload.remote(organization_id, NAMESPACE))
    state, _ = ray.get(registry.commit_upload.remote(organization_id, NAMESPACE, form, uploaded, None))
    model_key = ModelKey(namespace_id=NAMESPACE, model_id=state.manifest.model_id)
    ray.get(registry.deploy.remote(organization_id, model_key))
    state = ray.get(registry.wait_deployed.remote(model_key, 600.0))
    assert state.status == "deployed", state.failure_message
    return str(state.manifest.model_id)

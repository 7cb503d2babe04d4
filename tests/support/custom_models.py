"""Custom models as the registry would describe them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from mixpeek_ray.core.ids import model_id
from mixpeek_ray.core.records import (
    ArchiveContents,
    DeploymentStatus,
    FileInfo,
    ModelFormat,
    ModelKind,
    ModelManifest,
    ModelState,
    ResourceRequest,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def custom_model(
    name: str = "mine",
    *,
    namespace_id: str = "ns_acme",
    architecture: str | None = "BertModel",
    paths: Sequence[str] = ("config.json", "model.safetensors"),
    status: DeploymentStatus = DeploymentStatus.DEPLOYED,
) -> ModelState:
    """Return a custom model in Hugging Face format, version 1.0.0."""
    manifest = ModelManifest(
        namespace_id=namespace_id,
        model_id=model_id(name, "1.0.0"),
        name=name,
        version="1.0.0",
        model_format=ModelFormat.HUGGINGFACE,
        framework=None,
        task_type=None,
        resources=ResourceRequest(),
        archive_sha256="0" * 64,
        archive_bytes=1,
        created_at=NOW,
        contents=ArchiveContents(
            files=tuple(FileInfo(path=path, size_bytes=1) for path in paths),
            tensor_count=1,
            parameter_count=1,
            dtypes=("float32",),
            weights_bytes=4,
            kind=ModelKind.HUGGINGFACE,
            architecture=architecture,
        ),
    )
    deployed_at = NOW if status is DeploymentStatus.DEPLOYED else None
    return ModelState(manifest=manifest, status=status, updated_at=NOW, deployed_at=deployed_at)

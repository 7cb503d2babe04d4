"""From records to the bodies on the wire."""

from __future__ import annotations

from typing import Any

from mixpeek_ray.api.ports import DeployResult, UploadResult
from mixpeek_ray.api.schemas import (
    ArchiveFile,
    DeploymentInfo,
    DeployProgress,
    Failure,
    ModelDeployResponse,
    ModelDocument,
    ModelListItem,
    ModelUploadResponse,
    NamespaceDocument,
    ResourceRequirements,
    ServedBy,
)
from mixpeek_ray.core.placement import PoolLimit
from mixpeek_ray.core.records import (
    DeploymentStatus,
    ModelKind,
    ModelManifest,
    ModelState,
    Namespace,
    ResourceRequest,
    TensorSignature,
)

# The contract's `base_image` names what a model runs in; every model runs in the platform's own workers.
BASE_IMAGE = "mixpeek-ray"


def present_model(state: ModelState, served_by: ServedBy | None = None) -> ModelDocument:
    """Return everything a caller may know of a model; ``served_by``: who answers its requests while it is deployed."""
    manifest = state.manifest
    contents = state.contents or manifest.contents
    return ModelDocument(
        model_id=manifest.model_id,
        namespace_id=manifest.namespace_id,
        name=manifest.name,
        version=manifest.version,
        model_archive_url=_archive_url(manifest),
        model_format=manifest.model_format,
        model_hash=manifest.archive_sha256,
        framework=manifest.framework,
        task_type=manifest.task_type,
        resource_requirements=_resources(manifest.resources),
        deployed=_is_deployed(state),
        deployment_status=state.status,
        deployment_info=_deployment_info(state, served_by),
        deployment_progress=_progress(state),
        failure=_failure(state),
        created_at=manifest.created_at,
        updated_at=state.updated_at,
        archive_bytes=manifest.archive_bytes,
        files=[ArchiveFile(path=f.path, size_bytes=f.size_bytes) for f in contents.files] if contents else None,
        tensor_count=contents.tensor_count if contents else None,
        parameter_count=contents.parameter_count if contents else None,
        dtypes=list(contents.dtypes) if contents else None,
        weights_bytes=contents.weights_bytes if contents else None,
        kind=contents.kind if contents else None,
        architecture=contents.architecture if contents else None,
        input_schema=_tensor_schema(contents.inputs) if contents else None,
        output_schema=_tensor_schema(contents.outputs) if contents else None,
    )


def served_by(state: ModelState, pool_limit: PoolLimit) -> ServedBy | None:
    """Return who answers a model's requests while it is deployed; None: weights alone, which nobody can compute with.

    ``pool_limit``: what the pool serves.
    """
    contents = state.contents or state.manifest.contents
    if contents is None or contents.kind is ModelKind.STATE_DICT:
        return None
    return "pool" if pool_limit.takes(state.manifest.resources) else "dedicated"


def present_list_item(state: ModelState, *, latest: bool) -> ModelListItem:
    """Return a model as lists show it; ``latest``: no version of its name is higher."""
    manifest = state.manifest
    return ModelListItem(
        model_id=manifest.model_id,
        name=manifest.name,
        version=manifest.version,
        latest=latest,
        model_format=manifest.model_format,
        framework=manifest.framework,
        task_type=manifest.task_type,
        deployed=_is_deployed(state),
        deployment_status=state.status,
        endpoint=_endpoint(manifest) if _is_deployed(state) else None,
        created_at=manifest.created_at,
        updated_at=state.updated_at,
    )


def present_upload(result: UploadResult) -> ModelUploadResponse:
    """Return the answer to an accepted upload."""
    manifest = result.model.manifest
    return ModelUploadResponse(
        success=True,
        model_id=manifest.model_id,
        deployment_status=result.model.status,
        endpoint=_endpoint(manifest),
        model_archive_url=_archive_url(manifest),
    )


def present_deploy(result: DeployResult) -> ModelDeployResponse:
    """Return the answer to a deploy call."""
    return present_status(result.model, _deploy_message(result), cached=result.cached)


def present_status(state: ModelState, message: str, *, cached: bool = False) -> ModelDeployResponse:
    """Return where a model stands, with ``message``."""
    return ModelDeployResponse(
        success=state.status is not DeploymentStatus.FAILED,
        model_id=state.manifest.model_id,
        namespace_id=state.manifest.namespace_id,
        deployment_status=state.status,
        cached=cached,
        message=message,
    )


def present_namespace(namespace: Namespace) -> NamespaceDocument:
    """Return a namespace."""
    return NamespaceDocument(
        namespace_id=namespace.namespace_id, namespace_name=namespace.name, created_at=namespace.created_at
    )


def archive_url(namespace_id: str, model_id: str, sha256: str) -> str:
    """Return the address that names a version's archive."""
    return f"mixpeek://{namespace_id}/{model_id}/{sha256}.tar.gz"


def _deploy_message(result: DeployResult) -> str:
    model_id = result.model.manifest.model_id
    if result.cached:
        return f"Model {model_id} was deployed already."
    match result.model.status:
        case DeploymentStatus.DEPLOYED:
            return f"Model {model_id} is deployed."
        case DeploymentStatus.FAILED:
            return result.model.failure_message or f"Model {model_id} could not be deployed."
        case _:
            return f"Model {model_id} is being deployed: get it to see when it is done."


def _is_deployed(state: ModelState) -> bool:
    return state.status is DeploymentStatus.DEPLOYED


def _endpoint(manifest: ModelManifest) -> str:
    return f"/models/{manifest.namespace_id}/{manifest.model_id}"


def _archive_url(manifest: ModelManifest) -> str:
    return archive_url(manifest.namespace_id, manifest.model_id, manifest.archive_sha256)


def _resources(request: ResourceRequest) -> ResourceRequirements:
    return ResourceRequirements(num_cpus=request.num_cpus, num_gpus=request.num_gpus, memory=request.memory_bytes)


def _deployment_info(state: ModelState, served_by: ServedBy | None) -> DeploymentInfo | None:
    if not _is_deployed(state):
        return None
    return DeploymentInfo(
        endpoint=_endpoint(state.manifest),
        base_image=BASE_IMAGE,
        deployed_at=state.deployed_at,
        served_by=served_by,
    )


def _progress(state: ModelState) -> DeployProgress | None:
    if state.status is not DeploymentStatus.PENDING:
        return None
    return DeployProgress(bytes_done=state.bytes_done, bytes_total=state.manifest.archive_bytes)


def _tensor_schema(signature: tuple[TensorSignature, ...]) -> dict[str, Any] | None:
    """Return a JSON schema of named tensors; ``x-shape`` has a size, a name or null for each axis."""
    if not signature:
        return None
    properties = {
        tensor.name: {"type": "array", "x-dtype": tensor.dtype, "x-shape": list(tensor.shape)} for tensor in signature
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _failure(state: ModelState) -> Failure | None:
    if state.status is not DeploymentStatus.FAILED or state.failure_code is None:
        return None
    return Failure(code=state.failure_code, message=state.failure_message or "")

"""From built-in and custom models to the bodies of ``/v1/models``."""

from __future__ import annotations

from mixpeek_ray.api.org_model_schemas import (
    BuiltinFacts,
    DatedOrgModelDocument,
    OrgModelDeploymentInfo,
    OrgModelDetailResponse,
    OrgModelDocument,
    OrgModelListItem,
    UsableModel,
    ValidationStatus,
)
from mixpeek_ray.api.presenters import present_model
from mixpeek_ray.api.schemas import ResourceRequirements
from mixpeek_ray.catalog.availability import Availability, BuiltinModel
from mixpeek_ray.catalog.cards import TASKS, HubSource, ModelCard, RerankOptions
from mixpeek_ray.catalog.custom import custom_family
from mixpeek_ray.catalog.extractors import BUILTIN_VERSION
from mixpeek_ray.core.records import DeploymentStatus, ModelFormat, ModelState, ResourceRequest

_OWNER = "mixpeek"
# The catalog keeps no dates, and a release's would change with every release: OpenAI's field must be a number.
_UNKNOWN_DATE = 0


def present_usable_builtin(model: BuiltinModel) -> UsableModel:
    """Return a built-in model as lists show it."""
    return UsableModel(
        id=model.card.name,
        created=_UNKNOWN_DATE,
        owned_by=_OWNER,
        task=model.card.task,
        description=model.card.description,
        availability=model.availability,
        reason=model.reason,
    )


def present_usable_custom(state: ModelState, organization_id: str) -> UsableModel:
    """Return a custom model as lists show it."""
    manifest = state.manifest
    family = custom_family(state)
    is_deployed = _is_deployed(state)
    return UsableModel(
        id=f"{manifest.namespace_id}/{manifest.model_id}",
        created=int(manifest.created_at.timestamp()),
        owned_by=organization_id,
        task=TASKS[family] if family is not None else None,
        description=f"Custom model {manifest.name} {manifest.version}.",
        availability=Availability.LOADED if is_deployed else Availability.UNAVAILABLE,
        reason=None if is_deployed else "The model is not deployed: deploy it first.",
    )


def present_org_model(state: ModelState) -> OrgModelListItem:
    """Return a custom model in the contract's words."""
    manifest = state.manifest
    return OrgModelListItem(
        model_id=manifest.model_id,
        namespace_id=manifest.namespace_id,
        name=manifest.name,
        version=manifest.version,
        model_format=manifest.model_format,
        framework=manifest.framework,
        task_type=manifest.task_type,
        deployed=_is_deployed(state),
        validation_status=_validation(state),
        created_at=manifest.created_at,
        updated_at=state.updated_at,
    )


def present_builtin_detail(model: BuiltinModel) -> OrgModelDetailResponse:
    """Return a built-in model."""
    return OrgModelDetailResponse(
        **dict(present_usable_builtin(model)), model=_builtin_document(model), builtin=_facts(model.card)
    )


def present_custom_detail(state: ModelState, organization_id: str) -> OrgModelDetailResponse:
    """Return a custom model."""
    return OrgModelDetailResponse(
        **dict(present_usable_custom(state, organization_id)),
        model=_custom_document(state, organization_id),
        builtin=None,
    )


def _builtin_document(model: BuiltinModel) -> OrgModelDocument:
    card = model.card
    is_loaded = model.availability is Availability.LOADED
    pinned = card.source.revision if isinstance(card.source, HubSource) else None
    return OrgModelDocument(
        model_id=card.name,
        organization_id=_OWNER,
        namespace_id=None,
        name=card.name,
        version=BUILTIN_VERSION,
        description=card.description,
        # Where the weights really lie may be a folder of this machine or a private bucket.
        s3_archive_url=f"mixpeek://builtin/{card.name}",
        model_format=ModelFormat.HUGGINGFACE,
        model_hash=pinned or "",
        task_type=card.task,
        resource_requirements=_resources(card.resources),
        deployed=is_loaded,
        # Weights are checked as they are loaded.
        validation_status="passed" if is_loaded else "pending",
        validation_errors=[],
    )


def _facts(card: ModelCard) -> BuiltinFacts:
    return BuiltinFacts(
        family=card.family,
        aliases=list(card.aliases),
        licence=card.licence,
        max_tokens=card.limits.max_tokens,
        max_inputs=card.limits.max_inputs,
        dimensions=None if isinstance(card.options, RerankOptions) else card.options.dimensions,
    )


def _custom_document(state: ModelState, organization_id: str) -> DatedOrgModelDocument:
    document = present_model(state)
    return DatedOrgModelDocument(
        model_id=document.model_id,
        organization_id=organization_id,
        namespace_id=document.namespace_id,
        name=document.name,
        version=document.version,
        description=None,
        s3_archive_url=document.model_archive_url,
        model_format=document.model_format,
        model_hash=document.model_hash,
        framework=document.framework,
        task_type=document.task_type,
        input_schema=document.input_schema,
        output_schema=document.output_schema,
        resource_requirements=document.resource_requirements,
        deployed=document.deployed,
        deployment_info=OrgModelDeploymentInfo(deployed_at=state.deployed_at) if document.deployed else None,
        validation_status=_validation(state),
        validation_errors=[state.failure_message] if state.failure_message else [],
        created_at=document.created_at,
        updated_at=document.updated_at,
    )


def _validation(state: ModelState) -> ValidationStatus:
    if state.status is DeploymentStatus.FAILED:
        return "failed"
    return "pending" if (state.contents or state.manifest.contents) is None else "passed"


def _is_deployed(state: ModelState) -> bool:
    return state.status is DeploymentStatus.DEPLOYED


def _resources(request: ResourceRequest) -> ResourceRequirements:
    return ResourceRequirements(num_cpus=request.num_cpus, num_gpus=request.num_gpus, memory=request.memory_bytes)

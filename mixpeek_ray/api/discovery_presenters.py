"""From extractors and stages to the bodies on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixpeek_ray.api.discovery_schemas import (
    ExtractorDiscovery,
    ExtractorDocument,
    ExtractorSource,
    FeatureDocument,
    NamespaceExtractorDocument,
    StageDefinition,
    StageDiscovery,
    VectorIndex,
    VectorIndexDefinition,
)
from mixpeek_ray.api.parameter_schemas import (
    extractor_inputs,
    extractor_outputs,
    extractor_parameters,
    feature_search_parameters,
    hybrid_search_parameters,
    rerank_parameters,
)
from mixpeek_ray.catalog.availability import Availability
from mixpeek_ray.catalog.cards import TASKS
from mixpeek_ray.catalog.extractors import Extractor, Feature, VectorKind
from mixpeek_ray.catalog.stages import AnyStage, FeatureSearch, HybridSearch, Rerank
from mixpeek_ray.core.records import DeploymentStatus

# The wire contract's names for a text.
_INPUT_TYPES = ("text", "string")
# Names of the Lucide icon set, which the published clients draw.
_TEXT_ICON, _CUSTOM_ICON = "file-text", "box"
_INFERENCE, _HYBRID = "/v1/inference", "/v1/embeddings/hybrid"
_EXAMPLE_QUERY = "How do plants make sugar?"
_EXAMPLE_DOCUMENTS = ["Photosynthesis turns light into sugar.", "Trains leave every hour."]


def present_extractor(extractor: Extractor) -> ExtractorDocument:
    """Return an extractor."""
    max_inputs = _max_inputs(extractor)
    is_builtin = extractor.custom is None
    return ExtractorDocument(
        feature_extractor_name=extractor.name,
        version=extractor.version,
        feature_extractor_id=extractor.extractor_id,
        source=ExtractorSource.BUILTIN if is_builtin else ExtractorSource.CUSTOM,
        description=extractor.description,
        icon=_TEXT_ICON if is_builtin else _CUSTOM_ICON,
        input_schema=extractor_inputs(max_inputs),
        output_schema=extractor_outputs(extractor),
        parameter_schema=extractor_parameters(extractor),
        default_parameters={"model": extractor.default.model, "input_type": "document", "truncate": "end"},
        supported_input_types=list(_INPUT_TYPES),
        max_inputs={} if max_inputs is None else dict.fromkeys(_INPUT_TYPES, max_inputs),
        required_vector_indexes=[_index(feature) for feature in extractor.features],
        required_payload_indexes=[],
        position_fields=[],
        features=[_feature(feature) for feature in extractor.features],
    )


def present_namespace_extractor(extractor: Extractor) -> NamespaceExtractorDocument:
    """Return an extractor as a namespace sees it."""
    state = extractor.custom
    is_deployed = state is not None and state.status is DeploymentStatus.DEPLOYED
    return NamespaceExtractorDocument(
        **dict(present_extractor(extractor)),
        feature_uri=str(extractor.default.uri),
        deployed=any(feature.availability is Availability.LOADED for feature in extractor.features),
        # What is deployed was opened and checked whole.
        validation_status=None if state is None else "passed" if is_deployed else "pending",
        created_at=None if state is None else state.manifest.created_at,
        updated_at=None if state is None else state.updated_at,
    )


def present_extractor_discovery(extractor: Extractor) -> ExtractorDiscovery:
    """Return an extractor in short."""
    return ExtractorDiscovery(
        name=extractor.name,
        version=extractor.version,
        description=extractor.description,
        supported_modalities=["text"],
        input_schema=extractor_inputs(_max_inputs(extractor)),
        output_features=[_feature(feature) for feature in extractor.features],
        example_usage={
            "endpoint": _INFERENCE,
            "body": {"feature_uri": str(extractor.default.uri), "inputs": {"text": _EXAMPLE_DOCUMENTS[0]}},
        },
    )


def present_stage(stage: AnyStage) -> StageDefinition:
    """Return a stage."""
    call = _call_of(stage)
    return StageDefinition(
        stage_id=stage.stage_id,
        description=stage.description,
        category=stage.category,
        icon=stage.icon,
        parameter_schema=call.parameters,
        endpoint=call.endpoint,
    )


def present_stage_discovery(stage: AnyStage) -> StageDiscovery:
    """Return a stage with parameters that work as they are."""
    return StageDiscovery(
        **dict(present_stage(stage)),
        common_use_cases=list(stage.use_cases),
        example_config=_call_of(stage).example,
    )


@dataclass(frozen=True, kw_only=True)
class _Call:
    """The request that serves a stage."""

    endpoint: str
    parameters: dict[str, Any]
    example: dict[str, Any]


def _call_of(stage: AnyStage) -> _Call:
    match stage:
        case FeatureSearch(extractor=extractor):
            query = {"inputs": {"text": _EXAMPLE_QUERY}, "parameters": {"input_type": "query"}}
            return _Call(
                endpoint=_INFERENCE,
                parameters=feature_search_parameters(extractor),
                example={"feature_uri": str(extractor.default.uri), **query},
            )
        case HybridSearch(extractor=extractor):
            parameters = hybrid_search_parameters(extractor)
            choices = parameters["properties"]["models"]["properties"]
            models = {kind: choice["default"] for kind, choice in choices.items()}
            return _Call(
                endpoint=_HYBRID,
                parameters=parameters,
                example={"models": models, "input": _EXAMPLE_QUERY, "input_type": "query"},
            )
        case Rerank():
            inputs = {"query": _EXAMPLE_QUERY, "documents": _EXAMPLE_DOCUMENTS}
            return _Call(
                endpoint=_INFERENCE,
                parameters=rerank_parameters(stage),
                example={"inference_name": stage.default.card.name, "inputs": inputs, "parameters": {"top_n": 1}},
            )


def _max_inputs(extractor: Extractor) -> int | None:
    """Return how many texts of a request every model of the extractor takes."""
    limits = [feature.card.limits.max_inputs for feature in extractor.features if feature.card is not None]
    return min(limits, default=None)


def _feature(feature: Feature) -> FeatureDocument:
    return FeatureDocument(
        name=feature.uri.output,
        feature_uri=str(feature.uri),
        model=feature.model,
        task=TASKS[feature.family],
        description=feature.description,
        type=feature.kind,
        dimensions=feature.dimensions,
        distance=feature.distance,
        max_tokens=feature.card.limits.max_tokens if feature.card is not None else None,
        availability=feature.availability,
        reason=feature.reason,
    )


def _index(feature: Feature) -> VectorIndexDefinition:
    # The contract wants ten characters at least of a description; a catalog's may have fewer.
    description = f"Vectors of {feature.model}: {feature.description}"
    return VectorIndexDefinition(
        name=feature.uri.output,
        description=description,
        feature_uri=str(feature.uri),
        index=VectorIndex(
            name=feature.uri.output,
            description=description,
            dimensions=feature.dimensions,
            type=feature.kind,
            distance=feature.distance,
            supported_inputs=list(_INPUT_TYPES),
            inference_name=feature.model,
            purpose="sparse" if feature.kind is VectorKind.SPARSE else "text",
        ),
    )

"""The bodies of discovery: extractors and retriever stages, as the published clients read them."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from mixpeek_ray.api.schemas import Body
from mixpeek_ray.catalog.availability import Availability
from mixpeek_ray.catalog.extractors import Distance, VectorKind
from mixpeek_ray.catalog.stages import StageCategory


class ExtractorSource(enum.StrEnum):
    """Whose extractor it is."""

    BUILTIN = "builtin"
    CUSTOM = "custom"


class FeatureDocument(Body):
    """One output of an extractor."""

    name: str
    feature_uri: str
    model: str = Field(description="What `model` is set to on the inference routes.")
    task: str
    description: str
    type: VectorKind
    dimensions: int | None = Field(description="Null for a custom model: its own files say.")
    distance: Distance
    max_tokens: int | None = Field(description="What the model reads of one text, special tokens included.")
    availability: Availability
    reason: str | None = Field(description="What to do about it when the model is unavailable.")


class VectorIndex(Body):
    """What an index of a feature's vectors is made with."""

    name: str
    description: str
    dimensions: int | None
    type: VectorKind
    distance: Distance
    datatype: Literal["float32"] = "float32"
    supported_inputs: list[str]
    inference_name: str = Field(description="What POST /v1/inference takes for a query of this index.")
    purpose: Literal["text", "sparse"]


class VectorIndexDefinition(Body):
    """An index and the feature whose vectors it holds."""

    name: str
    description: str
    type: Literal["single"] = "single"
    index: VectorIndex
    feature_uri: str


class ExtractorDocument(Body):
    """An extractor. Maps and lists are empty rather than null, which some clients cannot read."""

    feature_extractor_name: str
    version: str
    feature_extractor_id: str
    source: ExtractorSource
    description: str
    icon: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    parameter_schema: dict[str, Any]
    default_parameters: dict[str, Any]
    supported_input_types: list[str]
    max_inputs: dict[str, int] = Field(description="Of one request, by input type; empty where it is not known.")
    required_vector_indexes: list[VectorIndexDefinition]
    required_payload_indexes: list[dict[str, Any]]
    position_fields: list[str]
    features: list[FeatureDocument]


class NamespaceExtractorDocument(ExtractorDocument):
    """An extractor as one namespace sees it; what only a custom model has is null for the others."""

    feature_uri: str = Field(description="The feature that is meant when none is named.")
    deployed: bool = Field(description="Whether any of its models is in the cluster's memory.")
    plugin_id: str | None = None
    validation_status: Literal["passed", "pending", "failed"] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class NamespaceExtractorListResponse(Body):
    """A namespace's extractors, the built-in ones first."""

    success: bool = True
    extractors: list[NamespaceExtractorDocument]
    total: int
    namespace_id: str
    builtin_count: int
    custom_count: int


class ExtractorDiscovery(Body):
    """An extractor, in short, with a call that works as it is."""

    name: str
    version: str
    description: str
    supported_modalities: list[str]
    input_schema: dict[str, Any]
    output_features: list[FeatureDocument]
    example_usage: dict[str, Any]


class StageDefinition(Body):
    """A retriever stage; its parameters are a body of `endpoint`."""

    stage_id: str
    description: str
    category: StageCategory
    icon: str
    parameter_schema: dict[str, Any]
    endpoint: str


class StageDiscovery(StageDefinition):
    """A retriever stage, with parameters that work as they are."""

    cost_tier: str = "moderate"
    requires_collections: bool = Field(
        default=False, description="Always false: this platform keeps no documents, only models."
    )
    common_use_cases: list[str]
    example_config: dict[str, Any]

"""JSON schemas of what callers may send, made from the models that check it and from the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixpeek_ray.api.inference_body import DenseParameters, RerankInputs, RerankParameters, TextParameters
from mixpeek_ray.api.schemas import Body
from mixpeek_ray.catalog.availability import Availability
from mixpeek_ray.catalog.cards import DenseOptions, Family
from mixpeek_ray.catalog.extractors import Extractor, Feature, VectorKind, default_feature
from mixpeek_ray.catalog.stages import Rerank

Schema = dict[str, Any]

_NOTHING: Schema = {"not": {}}
_DENSE_OPTIONS = sorted(DenseParameters.model_fields.keys() - TextParameters.model_fields.keys())
_WITHOUT_DENSE_OPTIONS: Schema = {"properties": dict.fromkeys(_DENSE_OPTIONS, _NOTHING)}
# What the hybrid route calls each kind of vector.
_HYBRID_NAMES = {VectorKind.DENSE: "dense", VectorKind.SPARSE: "sparse", VectorKind.MULTI_DENSE: "multi_vector"}


def extractor_inputs(max_inputs: int | None) -> Schema:
    """Return the schema of what an extractor reads; ``max_inputs`` texts of one request, None where unknown."""
    texts: Schema = {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": "Texts, in order."}
    if max_inputs is not None:
        texts["maxItems"] = max_inputs
    either = _object({"text": {"type": "string", "description": "One text."}, "texts": texts})
    return {**either, "oneOf": [{"required": ["text"]}, {"required": ["texts"]}]}


def extractor_outputs(extractor: Extractor) -> Schema:
    """Return the schema of an extractor's features, by output."""
    return {"type": "object", "properties": {feature.uri.output: _vector(feature) for feature in extractor.features}}


def extractor_parameters(extractor: Extractor) -> Schema:
    """Return the schema of an extractor's parameters: the model, and what each model takes."""
    models = {feature.model: feature.availability for feature in extractor.features}
    choice = {"description": "The embedding model.", **_choice(models, extractor.default.model)}
    rules = [
        _when("model", feature.model, is_default=feature is extractor.default, then=_restrictions(feature))
        for feature in extractor.features
    ]
    return {**_object({"model": choice, **_properties_of(DenseParameters)}), "allOf": rules}


def feature_search_parameters(extractor: Extractor) -> Schema:
    """Return the schema of a query for one feature: a body of ``POST /v1/inference``."""
    uris = {str(feature.uri): feature.availability for feature in extractor.features}
    query = {"text": {"type": "string", "description": "The query."}}
    properties = {
        "feature_uri": {"description": "The feature to search.", **_choice(uris, str(extractor.default.uri))},
        "inputs": _object(query, required=["text"]),
        "parameters": _object(_properties_of(DenseParameters)),
    }
    rules = [
        _when(
            "feature_uri",
            str(feature.uri),
            is_default=False,
            then={"properties": {"parameters": _restrictions(feature)}},
        )
        for feature in extractor.features
    ]
    return {**_object(properties, required=["feature_uri", "inputs"]), "allOf": rules}


def hybrid_search_parameters(extractor: Extractor) -> Schema:
    """Return the schema of a query for several features at once: a body of ``POST /v1/embeddings/hybrid``."""
    of_kind: dict[str, list[Feature]] = {}
    for feature in extractor.features:
        of_kind.setdefault(_HYBRID_NAMES[feature.kind], []).append(feature)
    choices = {
        name: _choice({feature.model: feature.availability for feature in features}, default_feature(features).model)
        for name, features in of_kind.items()
    }
    properties = {
        "models": {"description": "Which to compute.", **_object(choices), "minProperties": 1},
        "input": {"type": "string", "description": "The query."},
        **_properties_of(DenseParameters),
    }
    rules = [
        {"if": _nested("models", "dense", feature.model), "then": _restrictions(feature)}
        for feature in of_kind.get("dense", [])
    ]
    without_dense = {"not": {"properties": {"models": {"required": ["dense"]}}}}
    rules.append({"if": without_dense, "then": _WITHOUT_DENSE_OPTIONS})
    return {**_object(properties, required=["models", "input"]), "allOf": rules}


def rerank_parameters(stage: Rerank) -> Schema:
    """Return the schema of a rerank call: a body of ``POST /v1/inference``."""
    names = {model.card.name: model.availability for model in stage.models}
    properties = {
        "inference_name": {"description": "The reranker.", **_choice(names, stage.default.card.name)},
        "inputs": _object(_properties_of(RerankInputs), required=["query", "documents"]),
        "parameters": _object(_properties_of(RerankParameters)),
    }
    return _object(properties, required=["inference_name", "inputs"])


def _restrictions(feature: Feature) -> Schema:
    """Return the schema that leaves a model what it takes of the parameters that some models do."""
    if feature.family is not Family.DENSE:
        others = DenseParameters.model_fields.keys() - TextParameters.model_fields.keys()
        return {"properties": dict.fromkeys(sorted(others), _NOTHING)}
    if feature.card is None or not isinstance(feature.card.options, DenseOptions):
        # A custom model's own files say what it takes.
        return {}
    options = feature.card.options
    taken: Schema = {"dimensions": {"enum": [*options.matryoshka, options.dimensions]}}
    if "{instruction}" not in (options.prompts.query or ""):
        taken["instruction"] = _NOTHING
    return {"properties": taken}


def _when(field: str, value: str, *, is_default: bool, then: Schema) -> Schema:
    condition: Schema = {"properties": {field: {"const": value}}}
    if not is_default:
        condition["required"] = [field]
    return {"if": condition, "then": then}


def _nested(outer: str, inner: str, value: str) -> Schema:
    within: Schema = {"properties": {inner: {"const": value}}, "required": [inner]}
    return {"properties": {outer: within}, "required": [outer]}


def _choice(availability: Mapping[str, Availability], default: str) -> Schema:
    return {
        "type": "string",
        "enum": list(availability),
        "default": default,
        "x-availability": {name: str(found) for name, found in availability.items()},
    }


def _vector(feature: Feature) -> Schema:
    described: Schema = {"description": feature.description, "x-feature-uri": str(feature.uri)}
    numbers: Schema = {"type": "array", "items": {"type": "number"}}
    if feature.dimensions is not None and feature.kind is not VectorKind.SPARSE:
        numbers |= {"minItems": feature.dimensions, "maxItems": feature.dimensions}
    match feature.kind:
        case VectorKind.DENSE:
            return {**described, **numbers}
        case VectorKind.MULTI_DENSE:
            return {**described, "type": "array", "items": numbers}
        case VectorKind.SPARSE:
            indices = {"type": "array", "items": {"type": "integer", "minimum": 0}}
            return {**described, **_object({"indices": indices, "values": numbers}, required=["indices", "values"])}


def _object(properties: Schema, *, required: Sequence[str] = ()) -> Schema:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


def _properties_of(body: type[Body]) -> Schema:
    """Return the fields of ``body``, each complete in itself and to be left out rather than null."""
    schema = body.model_json_schema()
    definitions = schema.get("$defs", {})
    return {name: _plain(field, definitions) for name, field in schema["properties"].items()}


def _plain(field: Schema, definitions: Schema) -> Schema:
    # pydantic puts an enum's values among its definitions, and what may be null beside null.
    reference = field.get("$ref", "").rpartition("/")[2]
    given = [option for option in field.get("anyOf", []) if option != {"type": "null"}]
    whole = {**definitions.get(reference, {}), **(given[0] if given else {}), **field}
    dropped = {"$ref", "anyOf", "title"} | ({"default"} if whole.get("default", ...) is None else set())
    return {name: value for name, value in whole.items() if name not in dropped}

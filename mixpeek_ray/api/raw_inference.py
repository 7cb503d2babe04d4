"""One call of ``POST /v1/inference``, from the model it means to the data it gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mixpeek_ray.api.inference_body import (
    DenseParameters,
    RawInferenceRequest,
    RerankInputs,
    RerankParameters,
    TextInputs,
    TextParameters,
    parse_section,
)
from mixpeek_ray.api.inference_ports import Computed, RerankRequest, TextInference, TextRequest
from mixpeek_ray.api.inference_presenters import ranked
from mixpeek_ray.api.inference_target import Target
from mixpeek_ray.catalog.cards import Family
from mixpeek_ray.catalog.stages import RERANKING_FAMILIES
from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.core.records import Principal
from mixpeek_ray.families.base import FloatArray, SparseVector


@dataclass(frozen=True, kw_only=True)
class RawResult:
    """What a model made of a call's inputs, ready for the wire but for its arrays."""

    data: Any
    model: str
    tokens: int


async def run(
    inference: TextInference, principal: Principal, target: Target, family: Family, request: RawInferenceRequest
) -> RawResult:
    """Return what ``target`` makes of the request's inputs. Raises ``ValidationError`` and as ``TextInference``."""
    parameters = request.parameters or {}
    asks_for_scores = family is Family.RERANK or (
        family in RERANKING_FAMILIES and not request.inputs.keys().isdisjoint(RerankInputs.model_fields)
    )
    if asks_for_scores:
        return await _rerank(inference, principal, target.model, request.inputs, parameters)
    return await _embed(inference, principal, target.model, family, request.inputs, parameters)


async def _embed(
    inference: TextInference,
    principal: Principal,
    model: str,
    family: Family,
    given_inputs: Mapping[str, Any],
    given_parameters: Mapping[str, Any],
) -> RawResult:
    inputs = parse_section(TextInputs, "inputs", given_inputs, subject=_subject(model, family))
    kind = DenseParameters if family is Family.DENSE else TextParameters
    parameters = parse_section(kind, "parameters", given_parameters, subject=_subject(model, family))
    dense = parameters if isinstance(parameters, DenseParameters) else None
    request = TextRequest(
        model=model,
        inputs=[inputs.text] if inputs.text is not None else inputs.texts or [],
        role=parameters.input_type,
        truncate=parameters.truncate,
        instruction=dense.instruction if dense else None,
        dimensions=dense.dimensions if dense else None,
    )
    computed: Computed[FloatArray] | Computed[SparseVector]
    with _placing("text" if inputs.text is not None else "texts"):
        match family:
            case Family.SPARSE:
                computed = await inference.embed_sparse(principal, request)
            case Family.LATE_INTERACTION:
                computed = await inference.embed_multi_vector(principal, request)
            case _:
                computed = await inference.embed(principal, request)
    data = [_vector(result) for result in computed.results]
    return RawResult(data=data[0] if inputs.text is not None else data, model=computed.model, tokens=computed.tokens)


async def _rerank(
    inference: TextInference,
    principal: Principal,
    model: str,
    given_inputs: Mapping[str, Any],
    given_parameters: Mapping[str, Any],
) -> RawResult:
    subject = _subject(model, Family.RERANK)
    inputs = parse_section(RerankInputs, "inputs", given_inputs, subject=subject)
    parameters = parse_section(RerankParameters, "parameters", given_parameters, subject=subject)
    request = RerankRequest(model=model, query=inputs.query, documents=inputs.documents, truncate=parameters.truncate)
    with _placing("documents"):
        computed = await inference.rerank(principal, request)
    data = ranked(computed.results, inputs.documents, parameters)
    return RawResult(data=data, model=computed.model, tokens=computed.tokens)


@contextmanager
def _placing(inputs: str) -> Iterator[None]:
    """Say where in this body the cause of a refusal is: what refuses knows the fields of the families' own routes."""
    try:
        yield
    except ValidationError as error:
        match error.details.get("field"):
            case "dimensions" | "instruction" as parameter:
                place: list[object] = ["parameters", parameter]
            case "query":
                place = ["inputs", "query"]
            case None:
                index = error.details.get("index")
                place = ["inputs", inputs] + ([index] if index is not None and inputs != "text" else [])
            case field:
                place = [field]
        found = {"loc": ["body", *place], "msg": error.message, "type": error.code}
        error.details["validation_errors"] = [found]
        raise


def _vector(result: FloatArray | SparseVector) -> Any:
    if isinstance(result, SparseVector):
        return {"indices": result.indices, "values": result.values}
    return result


_KINDS = {
    Family.DENSE: "a dense embedding model",
    Family.SPARSE: "a sparse embedding model",
    Family.LATE_INTERACTION: "a late-interaction model",
    Family.RERANK: "a reranker",
}


def _subject(model: str, family: Family) -> str:
    return f"{model}, {_KINDS[family]},"

"""The bodies of ``POST /models/{namespace}/{model}``: each task's own terms, and the arrays that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import Field

from mixpeek_ray.api.inference_body import (
    DenseParameters,
    RerankInputs,
    RerankParameters,
    TextParameters,
    Truncation,
    parse_section,
)
from mixpeek_ray.api.predict_arrays import array_of, inferred_dtype, parse_shape
from mixpeek_ray.api.schemas import Body
from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.families.base import Truncate
from mixpeek_ray.servables.base import (
    DOCUMENTS,
    MAX_NEW_TOKENS,
    QUERIES,
    TEXT,
    TEXTS,
    NamedArrays,
    Parameters,
    ServableRef,
    ServableSpec,
    Task,
)
from mixpeek_ray.servables.tensors import DTYPES, refused

SectionT = TypeVar("SectionT", bound=Body)

_INPUTS = """What the model takes:

- texts (embeddings, classification, token classification, text to text): a text, or a list of texts;
- rerankers: `{"query": "...", "documents": ["...", "..."]}`;
- ONNX and TorchScript: `{"input name": nested lists}`, or `{"input name": {"data": [...], "dtype": "float32",
  "shape": [2, 3]}}` with the numbers in row-major order; the nested lists alone where there is one input."""
_PARAMETERS = """How to compute it:

- embeddings: `input_type` (query or document), `truncate` (none, start or end), and for dense models `instruction` and
  `dimensions`;
- rerankers: `top_n`, `return_documents`, `truncate`;
- classification: `top_k` (default: all labels), `truncate` (none or end);
- token classification: `truncate`;
- text to text: `max_new_tokens`, `truncate`."""
_OUTPUTS = """What the model made of the inputs; of one text, its own result; of a list, a list in the same order:

- dense embeddings: an array of numbers; sparse: `{"indices": [...], "values": [...]}`; late interaction: one array a
  token;
- rerankers: `[{"index", "relevance_score", "document"?}]`, the best first;
- classification: `[{"label", "score"}]`, the best first;
- token classification: `[{"entity", "score", "index", "word", "start", "end"}]`;
- text to text: `{"generated_text"}`;
- ONNX and TorchScript: `{"output name": nested lists}`."""


class PredictRequest(Body):
    """Inputs in the model's own terms."""

    inputs: Any = Field(description=_INPUTS, examples=["hello world", {"given": [[0.5, 1.0]]}])
    parameters: dict[str, Any] | None = Field(default=None, description=_PARAMETERS)


class PredictResponse(Body):
    """Outputs in the model's own terms."""

    outputs: Any = Field(description=_OUTPUTS)
    model: str = Field(description="`{namespace}/{model_id}`.")


class TokenParameters(Body):
    """What token classifiers take."""

    truncate: Truncation = Field(default=Truncate.END, description="`none` refuses texts that are too long.")


class ClassificationParameters(TokenParameters):
    """What classifiers take."""

    top_k: int | None = Field(default=None, ge=1, description="How many labels to return; default: all.")


class GenerationParameters(TokenParameters):
    """What text-to-text models take."""

    max_new_tokens: int | None = Field(
        default=None, ge=1, le=MAX_NEW_TOKENS, description="Where a text ends at the latest; default: the model's own."
    )


class NoParameters(Body):
    """What models of raw tensors take: none."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as its model computes it, and what its answer depends on besides."""

    inputs: NamedArrays
    parameters: Parameters
    # The answer is one result, not a list of one.
    is_single: bool = False
    top_k: int | None = None
    # Of rerankers.
    ranking: RerankParameters = field(default_factory=RerankParameters)
    documents: tuple[str, ...] = ()


def asked_of(ref: ServableRef, spec: ServableSpec, body: PredictRequest) -> Asked:
    """Return what ``body`` asks of a model. Raises ``ValidationError`` naming what the model does not take."""
    parameters = _Section(given=body.parameters or {}, subject=f"{ref.name}, a model for {spec.task},")
    match spec.task:
        case Task.TENSORS:
            parameters.parsed(NoParameters)
            return Asked(inputs=_tensors(spec, body.inputs), parameters=Parameters())
        case Task.RERANKING:
            return _asked_of_reranker(body.inputs, parameters)
        case Task.EMBEDDING:
            dense = parameters.parsed(DenseParameters)
            computed = Parameters(
                role=dense.input_type,
                truncate=dense.truncate,
                instruction=dense.instruction,
                dimensions=dense.dimensions,
            )
            return _asked_of_texts(body.inputs, computed)
        case Task.SPARSE_EMBEDDING | Task.MULTI_VECTOR_EMBEDDING:
            texts = parameters.parsed(TextParameters)
            return _asked_of_texts(body.inputs, Parameters(role=texts.input_type, truncate=texts.truncate))
        case Task.CLASSIFICATION:
            chosen = parameters.parsed(ClassificationParameters)
            return _asked_of_texts(body.inputs, Parameters(truncate=chosen.truncate), top_k=chosen.top_k)
        case Task.TOKEN_CLASSIFICATION:
            tokens = parameters.parsed(TokenParameters)
            return _asked_of_texts(body.inputs, Parameters(truncate=tokens.truncate))
        case Task.GENERATION:
            made = parameters.parsed(GenerationParameters)
            return _asked_of_texts(body.inputs, Parameters(truncate=made.truncate, max_new_tokens=made.max_new_tokens))


@dataclass(frozen=True, kw_only=True)
class _Section:
    given: Mapping[str, Any]
    subject: str

    def parsed(self, kind: type[SectionT]) -> SectionT:
        return parse_section(kind, "parameters", self.given, subject=self.subject)


def _asked_of_texts(inputs: Any, parameters: Parameters, *, top_k: int | None = None) -> Asked:
    is_single = isinstance(inputs, str)
    texts = [inputs] if is_single else inputs
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValidationError("`inputs` must be a text, or a list of texts.", field="inputs")
    return Asked(inputs={TEXTS: array_of(TEXTS, TEXT, texts)}, parameters=parameters, is_single=is_single, top_k=top_k)


def _asked_of_reranker(inputs: Any, section: _Section) -> Asked:
    if not isinstance(inputs, dict):
        raise ValidationError("`inputs` must be an object with `query` and `documents`.", field="inputs")
    given = parse_section(RerankInputs, "inputs", inputs, subject=section.subject)
    ranking = section.parsed(RerankParameters)
    return Asked(
        inputs={
            QUERIES: array_of(QUERIES, TEXT, [given.query] * len(given.documents)),
            DOCUMENTS: array_of(DOCUMENTS, TEXT, given.documents),
        },
        parameters=Parameters(truncate=ranking.truncate),
        ranking=ranking,
        documents=tuple(given.documents),
    )


def _tensors(spec: ServableSpec, inputs: Any) -> NamedArrays:
    names = [signature.name for signature in spec.inputs]
    if not isinstance(inputs, dict):
        if len(names) != 1:
            raise ValidationError(
                f"`inputs` must be an object with {', '.join(map(ascii, names))}, for the model takes them.",
                field="inputs",
            )
        inputs = {names[0]: inputs}
    dtypes = {signature.name: signature.dtype for signature in spec.inputs}
    for name in inputs:
        if name not in dtypes:
            raise refused(name, f"is none of the model's inputs: it takes {', '.join(map(ascii, names))}")
    return {name: _tensor(name, dtypes[name], value) for name, value in inputs.items()}


def _tensor(name: str, dtype: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return array_of(name, dtype or inferred_dtype(name, value), value)
    if unknown := value.keys() - {"data", "dtype", "shape"}:
        raise refused(name, f"has {sorted(map(str, unknown))[0][:80]!a}: send data, dtype and shape")
    stated = value.get("dtype", dtype or inferred_dtype(name, value.get("data")))
    if (dtype and stated != dtype) or not isinstance(stated, str) or stated not in DTYPES:
        raise refused(name, f"has the dtype {str(stated)[:80]!a}, and the model takes {dtype or ', '.join(DTYPES)}")
    shape = parse_shape(name, value["shape"]) if "shape" in value else None
    return array_of(name, stated, value.get("data"), shape)

"""What the embedding and reranking routes take: OpenAI's, Cohere's and Jina's shapes, and what these lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, Field, StrictStr, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from mixpeek_ray.api.inference_body import DenseParameters, RerankParameters, TextParameters
from mixpeek_ray.api.inference_ports import RerankRequest, TextRequest
from mixpeek_ray.api.schemas import Body
from mixpeek_ray.core import limits
from mixpeek_ray.families.base import TextInput

_TokenId = Annotated[int, Field(strict=True, ge=0)]
# The first wrong one ends the check: a million wrong ones would be a million errors.
_TokenIds = Annotated[list[_TokenId], Field(max_length=limits.MAX_TEXT_CHARS, fail_fast=True)]
_Input = (
    StrictStr
    | Annotated[list[StrictStr], Field(min_length=1, max_length=limits.MAX_INPUTS, fail_fast=True)]
    | Annotated[_TokenIds, Field(min_length=1)]
    | Annotated[list[_TokenIds], Field(min_length=1, max_length=limits.MAX_INPUTS, fail_fast=True)]
)


ModelName = Annotated[
    str,
    Field(
        description="A built-in model's name or alias, or `{namespace}/{model_id}`, or `{namespace}/{name}@{alias}`."
    ),
]
EncodingFormat = Annotated[
    Literal["float", "base64"],
    Field(description="`base64`: the numbers as little-endian float32, one vector after the other."),
]


def _text_of(document: object) -> object:
    return document.get("text") if isinstance(document, dict) else document


_Document = Annotated[
    StrictStr,
    BeforeValidator(_text_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
            ]
        }
    ),
]


class _Texts(Body):
    input: _Input = Field(
        description="a text, a list of texts, a text's token ids, or a list of such lists",
        union_mode="left_to_right",
        examples=["hello world", ["hello", "world"]],
    )
    user: str | None = Field(default=None, description="Without effect.")

    @property
    def inputs(self) -> Sequence[TextInput]:
        """The texts one by one."""
        given = self.input
        if isinstance(given, str) or isinstance(given[0], int):
            return [cast("TextInput", given)]
        return cast("Sequence[TextInput]", given)


class _ModelTexts(_Texts, TextParameters):
    model: ModelName

    def asked(self) -> TextRequest:
        """Return what the model is asked."""
        return TextRequest(model=self.model, inputs=self.inputs, role=self.input_type, truncate=self.truncate)


class EmbeddingsRequest(_ModelTexts, DenseParameters):
    """Texts for a dense embedding model."""

    encoding_format: EncodingFormat = "float"

    def asked(self) -> TextRequest:
        """Return what the model is asked."""
        return replace(super().asked(), instruction=self.instruction, dimensions=self.dimensions)


class SparseEmbeddingsRequest(_ModelTexts):
    """Texts for a sparse embedding model."""

    encoding_format: Literal["float"] = "float"


class MultiVectorEmbeddingsRequest(_ModelTexts):
    """Texts for a late-interaction model."""

    encoding_format: EncodingFormat = "float"


class HybridModels(Body):
    """Which model makes which representation: at least one."""

    dense: ModelName | None = None
    sparse: ModelName | None = None
    multi_vector: ModelName | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> HybridModels:
        if self.dense is None and self.sparse is None and self.multi_vector is None:
            raise PydanticCustomError("missing", "name a model for at least one of dense, sparse and multi_vector")
        return self


class HybridEmbeddingsRequest(_Texts, DenseParameters):
    """Texts for up to three models at once; `instruction` and `dimensions` are the dense one's."""

    models: HybridModels
    encoding_format: EncodingFormat = "float"

    def asked_of_dense(self, model: str) -> TextRequest:
        """Return what the dense model is asked."""
        return replace(self.asked(model), instruction=self.instruction, dimensions=self.dimensions)

    def asked(self, model: str) -> TextRequest:
        """Return what another model is asked."""
        return TextRequest(model=model, inputs=self.inputs, role=self.input_type, truncate=self.truncate)


class RerankBody(RerankParameters):
    """A query and what is to be scored against it, as Cohere and Jina take them."""

    model: ModelName
    query: str
    documents: list[_Document] = Field(
        min_length=1,
        max_length=limits.MAX_INPUTS,
        fail_fast=True,
        description="Texts, or objects with a `text`; what else such an object holds is ignored.",
    )

    def asked(self) -> RerankRequest:
        """Return what the model is asked."""
        return RerankRequest(model=self.model, query=self.query, documents=self.documents, truncate=self.truncate)

"""The bodies of ``POST /v1/inference``: what each kind of model takes, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic import ValidationError as PydanticError

from mixpeek_ray.api.schemas import Body
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.families.base import Role, Truncate

_DATA = """The result for `text`, or a list of results in the order of `texts`:

- dense models: an array of numbers;
- sparse models: `{"indices": [...], "values": [...]}`, the indices ascending;
- late-interaction models: one array of numbers a token;
- with `query` and `documents`: `[{"index", "relevance_score", "document"?}]`, the best first."""


def _role(value: object) -> object:
    # Cohere's names for the same two sides.
    return value.removeprefix("search_") if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


InputType = Annotated[Role, BeforeValidator(_role)]
Truncation = Annotated[Truncate, BeforeValidator(_lower)]


class RawInferenceRequest(Body):
    """Inputs for the one model that is named by `provider` and `model`, `inference_name` or `feature_uri`."""

    provider: str | None = Field(
        default=None,
        description="`mixpeek` for a built-in model, `custom` for `{namespace}/{model_id}` or a model of X-Namespace.",
    )
    model: str | None = Field(default=None, description="The model's name, at `provider` or at whichever has it.")
    inference_name: str | None = Field(
        default=None, description="`provider/model`, `provider:model`, or a model's name or alias alone."
    )
    feature_uri: str | None = Field(
        default=None,
        description="`mixpeek://{extractor}@{version}/{output}`, as discovery lists them; a custom model's also "
        "needs X-Namespace.",
    )
    inputs: dict[str, Any] = Field(
        description="`text` or `texts` for an embedding model; `query` and `documents` for a reranker. A "
        "late-interaction model takes either.",
        examples=[{"text": "hello world"}, {"query": "a pet", "documents": ["a cat", "a car"]}],
    )
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="For texts: `input_type` (query or document), `truncate` (none, start or end), and for dense "
        "models `instruction` and `dimensions`. For documents: `top_n`, `return_documents`, `truncate`.",
    )
    enable_semantic_cache: bool = Field(
        default=False, description="Not offered: true is refused, since no answer here comes from a cache."
    )
    cache_delta: float | None = Field(
        default=None, ge=0.0, le=1.0, allow_inf_nan=False, description="Without effect, for there is no cache."
    )

    @field_validator("enable_semantic_cache")
    @classmethod
    def _no_cache(cls, wanted: bool) -> bool:
        if wanted:
            raise ValueError("is not offered: every answer is computed; leave it out")
        return wanted


class RawInferenceResponse(Body):
    """What the model made of the inputs."""

    data: Any = Field(description=_DATA)
    provider: str
    model: str
    latency_ms: float = Field(description="From the checked request to the computed answer.")
    tokens_used: dict[str, int] | None = Field(
        default=None, description="`prompt` and `total`: the tokens of all inputs, special ones included."
    )
    cached: bool = False


class TextInputs(Body):
    """What an embedding model takes: one of the two."""

    text: str | None = None
    texts: list[str] | None = Field(default=None, min_length=1, max_length=limits.MAX_INPUTS)

    @model_validator(mode="after")
    def _one_of_both(self) -> TextInputs:
        if (self.text is None) == (self.texts is None):
            raise ValueError("send `text` or `texts`, and not both")
        return self


class RerankInputs(Body):
    """What a reranker takes."""

    query: str
    documents: list[str] = Field(min_length=1, max_length=limits.MAX_INPUTS)


class TextParameters(Body):
    """What every embedding model takes."""

    input_type: InputType = Field(default=Role.DOCUMENT, description="Which side of a search the texts are on.")
    truncate: Truncation = Field(
        default=Truncate.END, description="What happens to texts that are too long: `none` refuses them."
    )


class DenseParameters(TextParameters):
    """What dense embedding models take."""

    instruction: str | None = Field(
        default=None, description="The task, for models whose queries carry one; default: the model's own."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="A shorter vector, for models that were trained for it."
    )


class RerankParameters(Body):
    """What rerankers take."""

    top_n: int | None = Field(default=None, ge=1, description="How many of the best to return; default: all.")
    return_documents: bool = Field(default=False, description="Whether to repeat each document's text.")
    truncate: Truncation = Field(
        default=Truncate.END, description="What happens to documents that are too long: `none` refuses them."
    )


SectionT = TypeVar("SectionT", bound=Body)


def parse_section(kind: type[SectionT], section: str, given: Mapping[str, Any], *, subject: str) -> SectionT:
    """Return ``given``, a part of the body called ``section``, as what ``subject`` takes there.

    Raises ``ValidationError`` for a name it does not take, saying which ones it does, and FastAPI's own error for a
    value that is not allowed: the envelope answers both with the place in the body.
    """
    unknown = [name for name in given if name not in kind.model_fields]
    if unknown:
        message = (
            f"{subject} takes no {unknown[0][:80]!a} among its {section}: it takes {', '.join(kind.model_fields)}."
        )
        found = {"loc": ["body", section, ascii(unknown[0][:80])[1:-1]], "msg": message, "type": "extra_forbidden"}
        raise ValidationError(message, field=section, validation_errors=[found])
    try:
        return kind.model_validate(given)
    except PydanticError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**problem, "loc": ("body", section, *problem["loc"])} for problem in problems]
        ) from None

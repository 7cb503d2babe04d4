"""The catalog file's shape: what an operator may write, checked before it becomes a card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mixpeek_ray.catalog import cards
from mixpeek_ray.core import ids, limits
from mixpeek_ray.core.records import ResourceRequest

# Where a text takes more tokens than this, no model of the catalog's families was trained to read it.
_LONGEST_CONTEXT = 131_072
_LARGEST_VECTOR = 65_536
# A name as clients write it: also a hub id (`intfloat/e5`) or a feature URI's output.
_ALIAS = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
_COMMIT = r"^[0-9a-f]{40}$"
_REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"


def _checked_name(value: object) -> object:
    if isinstance(value, str) and not ids.is_valid_name(value):
        raise ValueError("use 1 to 64 letters, digits, '-' or '_', beginning with a letter or digit")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SourceEntry(_Strict):
    """Exactly one of ``hub`` (with ``revision``), ``path`` and ``url``."""

    hub: str | None = Field(default=None, pattern=_REPOSITORY)
    revision: str | None = Field(default=None, pattern=_COMMIT)
    path: str | None = None
    url: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9+.-]*://.+")

    @model_validator(mode="after")
    def _one_place(self) -> SourceEntry:
        if sum(place is not None for place in (self.hub, self.path, self.url)) != 1:
            raise ValueError("name exactly one of hub, path and url")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub")
        return self

    def source(self) -> cards.Source:
        """Return where the weights lie."""
        if self.hub is not None:
            return cards.HubSource(repository=self.hub, revision=self.revision)
        if self.path is not None:
            return cards.DirectorySource(path=Path(self.path).expanduser())
        return cards.UrlSource(url=self.url or "")


class LimitsEntry(_Strict):
    """Defaults suit a model of BERT's size on a CPU."""

    # OpenAI's own limit on the inputs of one request.
    max_inputs: int = Field(default=2_048, ge=1, le=limits.MAX_INPUTS)
    # Larger batches are no faster on a CPU, and a base model's working memory stays near 200 MB.
    max_batch_tokens: int = Field(default=8_192, ge=1, le=1_048_576)


class ResourcesEntry(_Strict):
    """What one replica reserves."""

    cpus: float = Field(default=limits.DEFAULT_CPUS, ge=limits.MIN_CPUS, le=limits.MAX_CPUS)
    gpus: int = Field(default=0, ge=0, le=limits.MAX_GPUS)
    memory_gb: float = Field(default=2.0, gt=0, le=limits.MAX_MEMORY_BYTES / limits.GIB)

    def request(self) -> ResourceRequest:
        """Return the checked request."""
        return ResourceRequest.from_gigabytes(num_cpus=self.cpus, num_gpus=self.gpus, memory_gb=self.memory_gb)


class PromptsEntry(_Strict):
    """Templates; each must hold ``{text}``."""

    query: str | None = None
    document: str | None = None
    instruction: str | None = None

    @model_validator(mode="after")
    def _templates_hold_text(self) -> PromptsEntry:
        templates = [template for template in (self.query, self.document) if template is not None]
        if any("{text}" not in template for template in templates):
            raise ValueError("a template must hold {text}")
        if self.instruction is None and any("{instruction}" in template for template in templates):
            raise ValueError("a template with {instruction} needs a default instruction")
        return self


class _ModelEntry(_Strict):
    name: Annotated[str, BeforeValidator(_checked_name)]
    source: SourceEntry
    licence: str = Field(min_length=1)
    description: str = Field(min_length=1)
    aliases: list[Annotated[str, Field(pattern=_ALIAS)]] = []
    max_tokens: int = Field(ge=8, le=_LONGEST_CONTEXT)
    precision: Annotated[cards.Precision, Field(strict=False)] = cards.Precision.AUTO
    backend: Annotated[cards.Backend, Field(strict=False)] = cards.Backend.AUTO
    limits: LimitsEntry = LimitsEntry()
    resources: ResourcesEntry = ResourcesEntry()

    @model_validator(mode="after")
    def _longest_input_fits_a_batch(self) -> _ModelEntry:
        if self.limits.max_batch_tokens < self.max_tokens:
            raise ValueError(f"limits.max_batch_tokens must be at least max_tokens ({self.max_tokens})")
        return self

    def options(self) -> cards.FamilyOptions:
        """Return what only this family's models have."""
        raise NotImplementedError

    def card(self) -> cards.ModelCard:
        """Return the frozen card."""
        return cards.ModelCard(
            name=self.name,
            source=self.source.source(),
            licence=self.licence,
            description=self.description,
            aliases=tuple(self.aliases),
            options=self.options(),
            limits=cards.Limits(
                max_tokens=self.max_tokens,
                max_inputs=self.limits.max_inputs,
                max_batch_tokens=self.limits.max_batch_tokens,
            ),
            resources=self.resources.request(),
            compute=cards.Compute(precision=self.precision, backend=self.backend),
        )


class DenseEntry(_ModelEntry):
    """A model of the dense family."""

    family: Literal["dense"]
    dimensions: int = Field(ge=1, le=_LARGEST_VECTOR)
    pooling: Annotated[cards.Pooling, Field(strict=False)]
    normalize: bool = True
    prompts: PromptsEntry = PromptsEntry()
    matryoshka: list[Annotated[int, Field(ge=1)]] = []

    @model_validator(mode="after")
    def _cuts_are_shorter(self) -> DenseEntry:
        if any(size >= self.dimensions for size in self.matryoshka):
            raise ValueError(f"matryoshka sizes must be below dimensions ({self.dimensions})")
        return self

    def options(self) -> cards.DenseOptions:
        """Return the dense options."""
        return cards.DenseOptions(
            dimensions=self.dimensions,
            pooling=self.pooling,
            normalize=self.normalize,
            prompts=cards.Prompts(**self.prompts.model_dump()),
            matryoshka=tuple(sorted(self.matryoshka)),
        )


class SparseEntry(_ModelEntry):
    """A model of the sparse family."""

    family: Literal["sparse"]
    dimensions: int = Field(ge=1, le=1_000_000)

    def options(self) -> cards.SparseOptions:
        """Return the sparse options."""
        return cards.SparseOptions(dimensions=self.dimensions)


class LateInteractionEntry(_ModelEntry):
    """A model of the late interaction family."""

    family: Literal["late_interaction"]
    dimensions: int = Field(ge=1, le=_LARGEST_VECTOR)
    # Below 4 nothing of a text is left beside [CLS], the marker and [SEP].
    query_tokens: int = Field(default=32, ge=4)
    document_tokens: int = Field(default=180, ge=4)
    query_marker: str = "[unused0]"
    document_marker: str = "[unused1]"

    @model_validator(mode="after")
    def _sides_fit_the_model(self) -> LateInteractionEntry:
        if max(self.query_tokens, self.document_tokens) > self.max_tokens:
            raise ValueError(f"query_tokens and document_tokens must not pass max_tokens ({self.max_tokens})")
        return self

    def options(self) -> cards.LateInteractionOptions:
        """Return the late interaction options."""
        return cards.LateInteractionOptions(
            dimensions=self.dimensions,
            query_tokens=self.query_tokens,
            document_tokens=self.document_tokens,
            query_marker=self.query_marker,
            document_marker=self.document_marker,
        )


class RerankEntry(_ModelEntry):
    """A model of the rerank family."""

    family: Literal["rerank"]
    activation: Annotated[cards.Activation, Field(strict=False)]

    def options(self) -> cards.RerankOptions:
        """Return the rerank options."""
        return cards.RerankOptions(activation=self.activation)


ModelEntry = Annotated[
    DenseEntry | SparseEntry | LateInteractionEntry | RerankEntry,
    Field(discriminator="family"),
]


class CatalogFile(_Strict):
    """The whole file."""

    models: list[ModelEntry] = Field(min_length=1)

"""Model cards: everything the platform knows about a built-in model before it sees a weight."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from mixpeek_ray.core.records import ResourceRequest


class Family(enum.StrEnum):
    """The computation a model needs; each is one module of ``mixpeek_ray.families``."""

    DENSE = "dense"
    SPARSE = "sparse"
    LATE_INTERACTION = "late_interaction"
    RERANK = "rerank"


class Task(enum.StrEnum):
    """What callers use a model for."""

    EMBEDDING = "embedding"
    SPARSE_EMBEDDING = "sparse_embedding"
    MULTI_VECTOR_EMBEDDING = "multi_vector_embedding"
    RERANK = "rerank"


class Pooling(enum.StrEnum):
    """How a dense model turns its tokens' vectors into one."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


class Activation(enum.StrEnum):
    """What a reranker does to its logit."""

    NONE = "none"
    SIGMOID = "sigmoid"


class Precision(enum.StrEnum):
    """What matrix products are computed in; everything between them stays float32 where the backend allows."""

    # bfloat16 where the CPU multiplies it natively, else float32.
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Backend(enum.StrEnum):
    """Who runs the forward pass."""

    # The platform's own BERT forward where the architecture allows, else transformers.
    AUTO = "auto"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository of the Hugging Face hub; ``revision`` is a commit, None its newest one."""

    repository: str
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class DirectorySource:
    """A Hugging Face directory on this machine."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class UrlSource:
    """A Hugging Face directory behind an fsspec URL such as ``s3://bucket/models/e5``."""

    url: str


Source = HubSource | DirectorySource | UrlSource


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Templates with ``{text}`` and, where the model takes one, ``{instruction}``; None leaves a text as it is."""

    query: str | None = None
    document: str | None = None
    # Fills ``{instruction}`` when the caller gives none.
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """One vector a text."""

    dimensions: int
    pooling: Pooling
    normalize: bool
    prompts: Prompts = Prompts()
    # Shorter sizes that the model was trained for: its vectors may be cut to them. Empty: only ``dimensions``.
    matryoshka: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SparseOptions:
    """One weight for each word of the vocabulary a text, nearly all of them zero."""

    dimensions: int


@dataclass(frozen=True, kw_only=True)
class LateInteractionOptions:
    """One vector a token (ColBERT)."""

    dimensions: int
    query_tokens: int
    document_tokens: int
    # The vocabulary's tokens that tell the model which side a text is on.
    query_marker: str
    document_marker: str


@dataclass(frozen=True, kw_only=True)
class RerankOptions:
    """One score a pair of query and document."""

    activation: Activation


FamilyOptions = DenseOptions | SparseOptions | LateInteractionOptions | RerankOptions

_FAMILIES: dict[type[FamilyOptions], Family] = {
    DenseOptions: Family.DENSE,
    SparseOptions: Family.SPARSE,
    LateInteractionOptions: Family.LATE_INTERACTION,
    RerankOptions: Family.RERANK,
}
TASKS = {
    Family.DENSE: Task.EMBEDDING,
    Family.SPARSE: Task.SPARSE_EMBEDDING,
    Family.LATE_INTERACTION: Task.MULTI_VECTOR_EMBEDDING,
    Family.RERANK: Task.RERANK,
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one input, one request and one batch may hold."""

    # Special tokens count.
    max_tokens: int
    # Texts or pairs of one request.
    max_inputs: int
    # Tokens that go through the model together: bounds its working memory.
    max_batch_tokens: int


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the forward pass runs."""

    precision: Precision = Precision.AUTO
    backend: Backend = Backend.AUTO
    # A small model's matrices are copied into the order that the CPU's kernels want, in each process: when it is
    # opened, or else while it is busy.
    packs_at_once: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """One built-in model."""

    name: str
    source: Source
    # SPDX identifier of the weights' licence.
    licence: str
    description: str
    # Other names it answers to, such as the output of a feature URI.
    aliases: tuple[str, ...]
    options: FamilyOptions
    limits: Limits
    # Of one replica.
    resources: ResourceRequest
    compute: Compute = Compute()

    @property
    def family(self) -> Family:
        """The computation this model needs."""
        return _FAMILIES[type(self.options)]

    @property
    def task(self) -> Task:
        """What callers use this model for."""
        return TASKS[self.family]

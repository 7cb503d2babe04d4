"""The shape that every servable model has: named arrays in, named arrays out, whatever computes between.

A text is an element of an object array, and so is what has no fixed size (the entities of a text, a sparse vector):
its JSON, as text. Nothing here imports torch.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from mixpeek_ray.core.records import ModelKind, ResourceRequest, TensorSignature
from mixpeek_ray.families.base import Role, Truncate

NamedArrays = Mapping[str, npt.NDArray[Any]]

# The dtype of texts and of JSON, in signatures; NumPy's own is object.
TEXT = "string"
# What text models call their inputs and outputs.
TEXTS, QUERIES, DOCUMENTS = "text", "query", "document"
EMBEDDINGS, SCORES, ENTITIES, GENERATED = "embedding", "score", "entities", "generated_text"
# Of one generated text: the longest that anybody would wait for.
MAX_NEW_TOKENS = 1_024


class Task(enum.StrEnum):
    """What a servable model does, and so what its JSON looks like."""

    TENSORS = "tensors"
    EMBEDDING = "embedding"
    SPARSE_EMBEDDING = "sparse-embedding"
    MULTI_VECTOR_EMBEDDING = "multi-vector-embedding"
    RERANKING = "reranking"
    CLASSIFICATION = "classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105  # no password
    GENERATION = "text2text-generation"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How inputs are to be computed; requests with equal ones are computed together."""

    # For text models that read a limited number of tokens.
    truncate: Truncate = Truncate.END
    # For embedding models.
    role: Role = Role.DOCUMENT
    # For dense embedding models; None: the model's own.
    instruction: str | None = None
    dimensions: int | None = None
    # For generation; None: the model's own.
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class OwnApplication:
    """The Serve application of a model that asks for more than the pool has."""

    name: str
    # What each of its replicas reserves.
    resources: ResourceRequest


@dataclass(frozen=True, kw_only=True)
class ServableRef:
    """A deployed model that a caller may use."""

    namespace_id: str
    model_id: str
    version: str
    kind: ModelKind
    # The archive's hash: differs whenever what is behind the name does.
    content: str
    # What its uploader says that it is for.
    task_type: str | None = None
    # Who serves it; None: the pool.
    own: OwnApplication | None = None

    @property
    def name(self) -> str:
        """What callers know it by."""
        return f"{self.namespace_id}/{self.model_id}"


@dataclass(frozen=True, kw_only=True)
class ServableSpec:
    """What a model takes and returns."""

    task: Task
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    # Of a classifier, in the order of its scores.
    labels: tuple[str, ...] = ()
    # False: a program that tells the names of its inputs, and nothing else of them or of its outputs.
    is_typed: bool = True

    @property
    def takes_texts(self) -> bool:
        """Tell whether its inputs are texts, each computed for itself whatever else is in a batch."""
        return self.task is not Task.TENSORS

    @property
    def has_rows(self) -> bool:
        """Tell whether rows of several requests may be computed as one: the first axis of all varies, by one name."""
        first = {signature.shape[0] if signature.shape else None for signature in (*self.inputs, *self.outputs)}
        return len(first) == 1 and isinstance(first.pop(), str)

    def rows_of(self, inputs: NamedArrays) -> int:
        """Return how many rows checked ``inputs`` have; those of a model without rows are one."""
        return len(next(iter(inputs.values()))) if self.has_rows else 1


def unknown_tensor(name: str) -> TensorSignature:
    """Return the signature of an input of which only its name is known."""
    return TensorSignature(name=name, dtype="", shape=())


class InProcess:
    """What computes in this process alone has in common."""

    def close(self) -> None:
        """Return: nothing was taken outside of this process."""


class Servable(Protocol):
    """A model that computes; its methods are called from one thread at a time."""

    @property
    def spec(self) -> ServableSpec:
        """What it takes and returns."""

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs for inputs that fit the signatures; where the model has rows, a row for each.

        Raises ``ValidationError`` for values that the model does not take.
        """

    def close(self) -> None:
        """Let go of what computing took outside of this process."""

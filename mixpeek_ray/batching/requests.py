"""What callers ask of text models, and what they get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mixpeek_ray.families.base import Role, TextInput, Truncate

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Computed(Generic[ResultT]):
    """What a model made of a request's inputs, in their order."""

    # The name that the model answers to: a built-in model's own, or ``{namespace}/{model_id}``.
    model: str
    results: Sequence[ResultT]
    # Of all inputs, special ones included.
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """Texts for one embedding model."""

    # A built-in model's name or alias, ``{namespace}/{model_id}``, or ``{namespace}/{name}@{alias}``.
    model: str
    inputs: Sequence[TextInput]
    role: Role = Role.DOCUMENT
    truncate: Truncate = Truncate.END
    # For models whose prompt has one; None: the model's own.
    instruction: str | None = None
    # For dense models that were trained for shorter vectors; None: the model's own.
    dimensions: int | None = None
    # What makes a caller meet the same version behind an alias again; None: any of them, by weight.
    sticky: str | None = None
    # Nobody waits for the answer: another version gave it. Counted apart.
    is_shadow: bool = False


@dataclass(frozen=True, kw_only=True)
class RerankRequest:
    """A query and the documents that are to be scored against it."""

    # A reranker, or a late-interaction model.
    model: str
    query: str
    documents: Sequence[str]
    truncate: Truncate = Truncate.END
    # As in ``TextRequest``.
    sticky: str | None = None
    is_shadow: bool = False

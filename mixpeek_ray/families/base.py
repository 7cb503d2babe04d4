"""The shape that every text family has: pre, core, post, so that each can run on threads of its own.

``pre`` turns inputs into items on the caller's thread, and refuses what is too long before it costs anything. ``core``
takes any items of one model, whoever asked for them, through the network together. ``post`` turns each item's part of
the outcome into its result. All three are safe to call from several threads at a time.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mixpeek_ray.catalog.cards import ModelCard

IdArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

# A text, or its tokens' ids without the special ones that a model puts around them.
TextInput = str | Sequence[int]


class Role(enum.StrEnum):
    """Which side of a search a text is on."""

    QUERY = "query"
    DOCUMENT = "document"


class Truncate(enum.StrEnum):
    """What happens to an input with more tokens than the model reads."""

    # Refuse it.
    NONE = "none"
    # Drop its first tokens.
    START = "start"
    # Drop its last tokens.
    END = "end"


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One tokenized input."""

    # Special tokens included.
    ids: IdArray
    # Which of two texts a token belongs to; None: there is one text, or the model does not tell them apart.
    type_ids: IdArray | None = None
    # Tokens after this many are invisible to the others (the padding of a ColBERT query); None: all are visible.
    visible: int | None = None

    @property
    def length(self) -> int:
        """Tokens that the network computes."""
        return len(self.ids)

    @property
    def token_count(self) -> int:
        """Tokens of the input, special ones included: what ``usage`` reports."""
        return len(self.ids) if self.visible is None else self.visible


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseVector:
    """The weights above zero of one text."""

    # int32 [n], ascending: token ids.
    indices: npt.NDArray[np.int32]
    # float32 [n].
    values: FloatArray


ItemT_contra = TypeVar("ItemT_contra", bound=Item, contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class TextFamily(Protocol[ItemT_contra, ResultT_co]):
    """What the families have in common; each has a ``pre`` of its own."""

    @property
    def card(self) -> ModelCard:
        """The model that this computes."""

    def core(self, items: Sequence[ItemT_contra]) -> FloatArray:
        """Return the network's outcome for ``items``, in their order, as a new array of the family's own shape."""

    def post(self, raw: FloatArray, items: Sequence[ItemT_contra]) -> Sequence[ResultT_co]:
        """Return one result an item, from what ``core`` returned for the same items."""

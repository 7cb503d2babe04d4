"""One vector a token: ColBERT.

What the published code does, and what differs from an ordinary encoder: a marker stands in place of the ``.`` that is
put before every text; a query is padded with mask tokens, which see the query but are not seen, and whose vectors
count; a document's punctuation is read but its vectors are dropped.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from mixpeek_ray.catalog.cards import LateInteractionOptions, ModelCard
from mixpeek_ray.core.errors import InvalidCatalogError, InvalidWeightsError, ValidationError
from mixpeek_ray.families.base import FloatArray, IdArray, Item, Role, TextInput, Truncate
from mixpeek_ray.families.networks.base import build_batch
from mixpeek_ray.families.networks.build import build_network
from mixpeek_ray.families.shared_tokens import shared_tokenizer
from mixpeek_ray.families.weights import WeightsSource

# Stands for the marker until its id takes its place.
PLACEHOLDER = ". "
# Where a projection lies: ColBERT's own checkpoints, and those of sentence-transformers' Dense module.
_PROJECTIONS = ("linear.weight", "1_Dense/linear.weight")


@dataclass(frozen=True, kw_only=True, eq=False)
class LateInteractionItem(Item):
    """A text and which of its tokens' vectors count."""

    # bool [length]; None: all.
    kept: npt.NDArray[np.bool_] | None = None


class LateInteractionFamily:
    """Multi-vector embeddings of one model. Safe to use from several threads at a time."""

    def __init__(self, card: ModelCard, options: LateInteractionOptions, source: WeightsSource) -> None:
        """Build over the tensors of ``source``. Raises ``InvalidWeightsError``, ``InvalidCatalogError``."""
        self.card, self._options = card, options
        self._network = build_network(card, source)
        self._tokenizer = shared_tokenizer(source)
        self._projection = _projection(source)
        if len(self._projection) != options.dimensions:
            raise InvalidCatalogError(
                f"Model {card.name!a}, field 'dimensions': the weights make vectors of {len(self._projection)}, "
                f"not of {options.dimensions}."
            )
        self._markers = {
            Role.QUERY: self._marker(options.query_marker, "query_marker"),
            Role.DOCUMENT: self._marker(options.document_marker, "document_marker"),
        }
        self._mask = self._tokenizer.mask_id
        found = (self._tokenizer.id_of(mark) for mark in string.punctuation)
        self._skipped: IdArray = np.array([mark for mark in found if mark is not None], dtype=np.int64)
        self.core(self.pre([""], role=Role.DOCUMENT, truncate=Truncate.END))

    def pre(self, inputs: Sequence[TextInput], *, role: Role, truncate: Truncate) -> list[LateInteractionItem]:
        """Return ``inputs`` tokenized as texts of ``role``.

        Raises ``InputTooLongError`` with an input's index and tokens when ``truncate`` is NONE, and
        ``ValidationError`` for token ids, which have no place for the marker.
        """
        limit = self._options.query_tokens if role is Role.QUERY else self._options.document_tokens
        texts = [_marked(given, index) for index, given in enumerate(inputs)]
        items = []
        for index, content in enumerate(self._tokenizer.encode(texts)):
            ids, type_ids = self._tokenizer.single(content, index=index, limit=limit, truncate=truncate, head=1)
            ids[1] = self._markers[role]
            if role is Role.DOCUMENT:
                kept = ~np.isin(ids, self._skipped)
                items.append(LateInteractionItem(ids=ids, type_ids=type_ids, kept=kept))
            else:
                padded = np.pad(ids, (0, limit - len(ids)), constant_values=self._mask)
                items.append(LateInteractionItem(ids=padded, visible=len(ids)))
        return items

    def core(self, items: Sequence[LateInteractionItem]) -> FloatArray:
        """Return float32 [tokens of all items, dimensions], L2-normalised, in input order."""
        with torch.inference_mode():
            batch = build_batch(items)
            hidden = self._network(batch).to(self._projection.dtype)
            vectors = functional.normalize(functional.linear(hidden, self._projection).float(), dim=-1)
            texts = dict(zip(batch.order, torch.split(vectors, list(batch.lengths)), strict=True))
            return torch.cat([texts[index] for index in range(len(items))]).cpu().numpy()

    def post(self, raw: FloatArray, items: Sequence[LateInteractionItem]) -> list[FloatArray]:
        """Return float32 [kept tokens, dimensions] an item; a query's have ``query_tokens`` rows."""
        ends = np.cumsum([item.length for item in items])
        texts = np.split(raw, ends[:-1])
        return [text if item.kept is None else text[item.kept] for text, item in zip(texts, items, strict=True)]

    def _marker(self, token: str, field: str) -> int:
        token_id = self._tokenizer.id_of(token)
        if token_id is None:
            raise InvalidCatalogError(
                f"Model {self.card.name!a}, field {field!a}: {token!a} is no token of the model's vocabulary."
            )
        return token_id


def max_sim(query: FloatArray, document: FloatArray) -> float:
    """Return the sum over the query's vectors of each one's largest product with one of the document's.

    A document without vectors scores 0.
    """
    return float((query @ document.T).max(axis=1).sum()) if len(document) else 0.0


def _projection(source: WeightsSource) -> torch.Tensor:
    for name in _PROJECTIONS:
        if name in source.state_dict:
            return source.state_dict[name]
    raise InvalidWeightsError(
        f"The weights hold no tensor {_PROJECTIONS[0]!r}: a model read by AutoModel loses it, save ColBERT's own."
    )


def _marked(given: TextInput, index: int) -> str:
    if isinstance(given, str):
        return PLACEHOLDER + given
    raise ValidationError(
        f"Input {index} is a list of token ids, which this model does not take: send the text itself.", index=index
    )

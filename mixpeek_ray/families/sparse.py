"""One weight a word of the vocabulary: SPLADE over a masked language model's logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mixpeek_ray.catalog.cards import ModelCard, SparseOptions
from mixpeek_ray.core.errors import InvalidCatalogError
from mixpeek_ray.families.base import FloatArray, Item, SparseVector, TextInput, Truncate
from mixpeek_ray.families.networks.base import TokenBatch, build_batch
from mixpeek_ray.families.networks.build import build_network
from mixpeek_ray.families.shared_tokens import shared_tokenizer
from mixpeek_ray.families.weights import WeightsSource

# Tokens whose logits are held at once: with BERT's vocabulary 125 MB in float32, and enough to keep a CPU busy.
_TOKENS_AT_ONCE = 1_024


class SparseFamily:
    """Sparse embeddings of one model. Safe to use from several threads at a time."""

    def __init__(self, card: ModelCard, options: SparseOptions, source: WeightsSource) -> None:
        """Build over the tensors of ``source``. Raises ``InvalidWeightsError``, ``InvalidCatalogError``."""
        self.card = card
        self._network = build_network(card, source)
        self._tokenizer = shared_tokenizer(source)
        width = self.core(self.pre([""], truncate=Truncate.END)).shape[1]
        if width != options.dimensions:
            raise InvalidCatalogError(
                f"Model {card.name!a}, field 'dimensions': the vocabulary has {width} tokens, not {options.dimensions}."
            )

    def pre(self, inputs: Sequence[TextInput], *, truncate: Truncate) -> list[Item]:
        """Return ``inputs`` tokenized.

        Raises ``InputTooLongError`` with an input's index and tokens when ``truncate`` is NONE, and
        ``ValidationError`` for token ids outside the vocabulary.
        """
        limit = self.card.limits.max_tokens
        items = []
        for index, content in enumerate(self._tokenizer.encode(inputs)):
            ids, type_ids = self._tokenizer.single(content, index=index, limit=limit, truncate=truncate)
            items.append(Item(ids=ids, type_ids=type_ids))
        return items

    def core(self, items: Sequence[Item]) -> FloatArray:
        """Return float32 [items, vocabulary] in input order: the max over a text's tokens of log(1 + relu(logit))."""
        order = sorted(range(len(items)), key=lambda index: items[index].length)
        weights: list[FloatArray] = [np.empty(0, dtype=np.float32)] * len(items)
        with torch.inference_mode():
            for chosen in _portions(order, items):
                batch = build_batch([items[index] for index in chosen])
                for index, row in zip(chosen, batch.restore(self._weights(batch)), strict=True):
                    weights[index] = row
        return np.stack(weights)

    def post(self, raw: FloatArray, items: Sequence[Item]) -> list[SparseVector]:
        """Return the weights above zero, one vector an item."""
        found = []
        for row, _ in zip(raw, items, strict=True):
            indices = np.flatnonzero(row).astype(np.int32)
            found.append(SparseVector(indices=indices, values=row[indices]))
        return found

    def _weights(self, batch: TokenBatch) -> torch.Tensor:
        # Both functions only grow, so the largest logit alone has to go through them.
        largest = torch.cat([texts.amax(dim=1) for texts in batch.per_text(self._network(batch))])
        return torch.log1p(torch.relu(largest.float()))


def _portions(order: Sequence[int], items: Sequence[Item]) -> Iterator[list[int]]:
    """Yield ``order`` in pieces of at most ``_TOKENS_AT_ONCE`` tokens, or of one longer text."""
    portion: list[int] = []
    tokens = 0
    for index in order:
        if portion and tokens + items[index].length > _TOKENS_AT_ONCE:
            yield portion
            portion, tokens = [], 0
        portion.append(index)
        tokens += items[index].length
    yield portion

"""One score a pair of query and document: cross-encoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mixpeek_ray.catalog.cards import Activation, ModelCard, RerankOptions
from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.families.base import FloatArray, Item, Truncate
from mixpeek_ray.families.networks.base import build_batch
from mixpeek_ray.families.networks.build import build_network
from mixpeek_ray.families.shared_tokens import shared_tokenizer
from mixpeek_ray.families.tokens import checked
from mixpeek_ray.families.weights import WeightsSource


class RerankFamily:
    """Relevance scores of one model. Safe to use from several threads at a time."""

    def __init__(self, card: ModelCard, options: RerankOptions, source: WeightsSource) -> None:
        """Build over the tensors of ``source``. Raises ``InvalidWeightsError``, ``InvalidCatalogError``."""
        self.card, self._options = card, options
        self._network = build_network(card, source)
        self._tokenizer = shared_tokenizer(source)
        self.core(self.pre("", [""], truncate=Truncate.END))

    def pre(self, query: str, documents: Sequence[str], *, truncate: Truncate) -> list[Item]:
        """Return one item a document: the pair with ``query``, tokenized.

        Raises ``InputTooLongError`` with a document's index and the pair's tokens when ``truncate`` is NONE.
        """
        limit = self.card.limits.max_tokens
        question = self._tokenizer.encode([checked(query, "The query", field="query")])[0]
        items = []
        for index, content in enumerate(self._tokenizer.encode(documents)):
            ids, type_ids = self._tokenizer.pair(question, content, index=index, limit=limit, truncate=truncate)
            items.append(Item(ids=ids, type_ids=type_ids))
        return items

    def core(self, items: Sequence[Item]) -> FloatArray:
        """Return float32 [items] in input order: the raw logits."""
        with torch.inference_mode():
            batch = build_batch(items)
            logits = self._network(batch)
            if logits.shape[1] != 1:
                raise InvalidWeightsError(
                    f"The model has {logits.shape[1]} labels where a reranker has one: "
                    "it is another kind of classifier."
                )
            return batch.restore(logits[:, 0])

    def post(self, raw: FloatArray, items: Sequence[Item]) -> list[float]:
        """Return one score an item: the logit, or its sigmoid where the card says so."""
        if self._options.activation is Activation.NONE:
            return [float(logit) for logit, _ in zip(raw, items, strict=True)]
        # In float64 no float32 logit overflows.
        wide = raw.astype(np.float64)
        return [float(score) for score, _ in zip(1.0 / (1.0 + np.exp(-wide)), items, strict=True)]

"""One vector a text: an encoder's last hidden states, pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mixpeek_ray.catalog.cards import DenseOptions, ModelCard, Pooling
from mixpeek_ray.core.errors import InvalidCatalogError, ValidationError
from mixpeek_ray.families.base import FloatArray, Item, Role, TextInput, Truncate
from mixpeek_ray.families.networks.base import TokenBatch, build_batch
from mixpeek_ray.families.networks.bert import BertEncoder
from mixpeek_ray.families.networks.build import build_network
from mixpeek_ray.families.prompts import Prompt, prompt_for
from mixpeek_ray.families.shared_tokens import shared_tokenizer
from mixpeek_ray.families.weights import WeightsSource


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseItem(Item):
    """A text and the size its vector is cut to; None: the model's own."""

    dimensions: int | None = None


class DenseFamily:
    """Dense embeddings of one model. Safe to use from several threads at a time."""

    def __init__(self, card: ModelCard, options: DenseOptions, source: WeightsSource) -> None:
        """Build over the tensors of ``source``. Raises ``InvalidWeightsError``, ``InvalidCatalogError``."""
        self.card, self._options = card, options
        self._network = build_network(card, source)
        self._tokenizer = shared_tokenizer(source)
        width = self._width()
        if width != options.dimensions:
            raise InvalidCatalogError(
                f"Model {card.name!a}, field 'dimensions': the weights make vectors of {width}, "
                f"not of {options.dimensions}."
            )

    def _width(self) -> int:
        """Return the size of the vectors."""
        if isinstance(self._network, BertEncoder):
            # A forward pass reads all weights, which for a large model takes as long as the first request itself.
            return self._network.width
        return int(self.core(self.pre([""], role=Role.DOCUMENT, truncate=Truncate.END)).shape[1])

    def pre(
        self,
        inputs: Sequence[TextInput],
        *,
        role: Role,
        truncate: Truncate,
        instruction: str | None = None,
        dimensions: int | None = None,
    ) -> list[DenseItem]:
        """Return ``inputs`` tokenized, each with the prompt of ``role`` around it.

        Raises ``InputTooLongError`` with an input's index and tokens when ``truncate`` is NONE, and
        ``ValidationError`` for token ids where a prompt belongs, an instruction or a size that the model does not take.
        """
        self._check_dimensions(dimensions)
        prompt = prompt_for(self._options.prompts, role, instruction)
        head = 0
        if prompt:
            head = len(self._tokenizer.encode([prompt.head.rstrip()])[0])
            inputs = [_prompted(given, prompt, index) for index, given in enumerate(inputs)]
        limit = self.card.limits.max_tokens
        items = []
        for index, content in enumerate(self._tokenizer.encode(inputs)):
            ids, type_ids = self._tokenizer.single(content, index=index, limit=limit, truncate=truncate, head=head)
            items.append(DenseItem(ids=ids, type_ids=type_ids, dimensions=dimensions))
        return items

    def core(self, items: Sequence[DenseItem]) -> FloatArray:
        """Return float32 [items, dimensions], L2-normalised where the card says so, in input order."""
        with torch.inference_mode():
            batch = build_batch(items)
            vectors = _pooled(self._network(batch), batch, self._options.pooling)
            return batch.restore(functional.normalize(vectors) if self._options.normalize else vectors)

    def post(self, raw: FloatArray, items: Sequence[DenseItem]) -> list[FloatArray]:
        """Return float32 [dimensions] an item; cut ones are normalised again where the card normalises."""
        return [self._cut(vector, item.dimensions) for vector, item in zip(raw, items, strict=True)]

    def _cut(self, vector: FloatArray, dimensions: int | None) -> FloatArray:
        if dimensions is None or dimensions == len(vector):
            return vector
        short = vector[:dimensions]
        # Like torch's normalize, which the whole vectors went through: a zero vector stays one.
        return short / max(float(np.linalg.norm(short)), 1e-12) if self._options.normalize else short

    def _check_dimensions(self, dimensions: int | None) -> None:
        allowed = (*self._options.matryoshka, self._options.dimensions)
        if dimensions is not None and dimensions not in allowed:
            raise ValidationError(
                f"dimensions={dimensions} is not a size of {self.card.name!a}: use "
                f"{' or '.join(str(size) for size in allowed)}, or leave it out.",
                field="dimensions",
            )


def _prompted(given: TextInput, prompt: Prompt, index: int) -> str:
    if isinstance(given, str):
        return prompt.around(given)
    raise ValidationError(
        f"Input {index} is a list of token ids, and the model puts a prompt around such texts: send the text itself.",
        index=index,
    )


def _pooled(hidden: torch.Tensor, batch: TokenBatch, pooling: Pooling) -> torch.Tensor:
    """Return float32 [texts, width]."""
    runs = batch.per_text(hidden)
    match pooling:
        case Pooling.MEAN:
            return torch.cat([texts.float().mean(dim=1) for texts in runs])
        case Pooling.CLS:
            return torch.cat([texts[:, 0] for texts in runs]).float()
        case Pooling.LAST:
            return torch.cat([texts[:, -1] for texts in runs]).float()

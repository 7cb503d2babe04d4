"""Batches without padding, and what a network makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import numpy as np
import torch

from mixpeek_ray.families.base import FloatArray, IdArray, Item


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring texts of one length."""

    # Places of the first text's first and the last text's last token (exclusive).
    start: int
    stop: int
    texts: int
    length: int
    # How many tokens of each text the others see; None: all of every text.
    visible: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """Texts laid end to end, shortest first."""

    # int64 [tokens].
    ids: torch.Tensor
    # int64 [tokens]; each token's place in its own text, from 0.
    positions: torch.Tensor
    # int64 [tokens], or None where every token has type 0.
    type_ids: torch.Tensor | None
    # Tokens of each text.
    lengths: tuple[int, ...]
    # Tokens of each text that the others see.
    visible: tuple[int, ...]
    # Which of the caller's items each text is.
    order: tuple[int, ...]

    def on(self, device: torch.device) -> TokenBatch:
        """Return the batch with its tensors on ``device``; itself where they are there."""
        if self.ids.device == device:
            return self
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            type_ids=None if self.type_ids is None else self.type_ids.to(device),
        )

    def runs(self) -> Iterator[Run]:
        """Yield the neighbours of equal length, first to last."""
        start = first = 0
        for length, group in groupby(self.lengths):
            texts = sum(1 for _ in group)
            visible = self.visible[first : first + texts]
            stop = start + texts * length
            hidden = any(seen < length for seen in visible)
            yield Run(start=start, stop=stop, texts=texts, length=length, visible=visible if hidden else None)
            start, first = stop, first + texts

    def per_text(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield ``rows`` [tokens, width] as views [texts, length, width], one for each run."""
        for run in self.runs():
            yield rows[run.start : run.stop].view(run.texts, run.length, -1)

    def restore(self, rows: torch.Tensor) -> FloatArray:
        """Return ``rows`` [texts, …], one a text, as a new float32 array in the order of the caller's items."""
        found = rows.float().cpu().numpy()
        restored = np.empty_like(found)
        restored[list(self.order)] = found
        return restored


class Network(Protocol):
    """Vectors or logits of a batch. Safe to call from several threads at a time."""

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Return floats [tokens, width], in the batch's order; a classifier's are [texts, labels].

        They are on the device of the weights, wherever the batch is.
        """


def build_batch(items: Sequence[Item]) -> TokenBatch:
    """Return ``items`` as one batch; there must be at least one."""
    order = tuple(sorted(range(len(items)), key=lambda index: items[index].length))
    chosen = [items[index] for index in order]
    typed = any(item.type_ids is not None for item in chosen)
    return TokenBatch(
        ids=torch.from_numpy(np.concatenate([item.ids for item in chosen])),
        positions=torch.from_numpy(np.concatenate([np.arange(item.length) for item in chosen])),
        type_ids=torch.from_numpy(np.concatenate([_types_of(item) for item in chosen])) if typed else None,
        lengths=tuple(item.length for item in chosen),
        visible=tuple(item.token_count for item in chosen),
        order=order,
    )


def _types_of(item: Item) -> IdArray:
    return item.type_ids if item.type_ids is not None else np.zeros(item.length, dtype=np.int64)

"""The two layers that BERT is made of, over weights that stay where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mixpeek_ray.core import limits

# A model's matrices are copied into oneDNN's own layout if they take no more than this: a text alone is then computed
# 1.4 times as fast (MiniLM, 21 MB in bfloat16), larger batches 1.0 to 1.1 times. Larger models stay shared with their
# node.
PACKED_AT_MOST_BYTES = 64 * limits.MIB


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A matrix product in its weight's dtype."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [tokens, out] in the weight's dtype."""
        return functional.linear(rows.to(self.weight.dtype), self.weight, self.bias)


class PackedLinear:
    """A matrix product over a private copy of its weight, in the layout that oneDNN computes with."""

    def __init__(self, linear: Linear) -> None:
        """Copy the weight of ``linear``; needs ``has_one_dnn()``."""
        self._dtype, self.bias = linear.weight.dtype, linear.bias
        # The operators that torch.compile emits for frozen weights: torch has no other way to keep a packed one.
        self._ops: Any = torch.ops.mkldnn
        self.weight: torch.Tensor = self._ops._reorder_linear_weight(linear.weight, None)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [tokens, out] in the weight's dtype."""
        found: torch.Tensor = self._ops._linear_pointwise(rows.to(self._dtype), self.weight, self.bias, "none", [], "")
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerNorm:
    """A LayerNorm in float32."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return float32 [tokens, width]."""
        return functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


def has_one_dnn() -> bool:
    """Tell whether this build of torch has the operators of ``PackedLinear``."""
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))

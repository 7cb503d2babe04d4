"""BERT's layers as one TorchScript program, which runs from the first to the last without the interpreter's lock.

A forward in Python takes the lock back after every operator, and the event loop beside it in a replica holds it a third
of the time: 282 texts a second instead of 430 (MiniLM, 16 texts of 13 words); so it is 348. torch.compile and
AOTInductor would need a C++ compiler on every node, and ONNX Runtime multiplies no bfloat16 on CPUs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mixpeek_ray.families.networks.base import Run
from mixpeek_ray.families.networks.layers import LayerNorm, Linear, PackedLinear, has_one_dnn
from mixpeek_ray.families.networks.packing import BusyMatrices

AnyLinear = Linear | PackedLinear


@dataclass(frozen=True, kw_only=True, eq=False)
class BertLayer:
    """One layer's matrices and norms; all layers of a model are packed, or none is."""

    query: AnyLinear
    key: AnyLinear
    value: AnyLinear
    attended: AnyLinear
    up: AnyLinear
    down: AnyLinear
    attended_norm: LayerNorm
    down_norm: LayerNorm

    @property
    def linears(self) -> tuple[AnyLinear, ...]:
        """The six matrices, in the order of the program."""
        return self.query, self.key, self.value, self.attended, self.up, self.down


class BertLayers:
    """All layers of a model."""

    def __init__(
        self, layers: Sequence[BertLayer], *, heads: int, dtype: torch.dtype, packs_when_busy: bool = False
    ) -> None:
        """``dtype``: that of the matrices."""
        linears = [linear for layer in layers for linear in layer.linears]
        norms = [norm for layer in layers for norm in (layer.attended_norm, layer.down_norm)]
        weights = [linear.weight for linear in linears]
        self._weights = weights if not packs_when_busy else BusyMatrices(weights)
        self._biases = [linear.bias for linear in linears]
        self._norms = [tensor for norm in norms for tensor in (norm.weight, norm.bias)]
        self._epsilon = norms[0].epsilon
        self._heads, self._dtype = heads, dtype
        # Also over weights in their own order oneDNN is faster than torch's choice for float32: BERT-large's matrices
        # take 188 ms for 15 tokens instead of 248, 1.5 s for 256 instead of 1.75 (one thread).
        self._one_dnn = has_one_dnn() and linears[0].weight.device.type == "cpu"

    def __call__(self, rows: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor:
        """Return float32 [tokens, width] for the embeddings ``rows`` of the same shape."""
        found: torch.Tensor = _PROGRAM(
            rows,
            self._weights.used() if isinstance(self._weights, BusyMatrices) else self._weights,
            self._biases,
            self._norms,
            [[run.start, run.stop, run.texts, run.length] for run in runs],
            [_mask(run, rows.device) for run in runs],
            self._heads,
            self._epsilon,
            self._dtype,
            self._one_dnn,
        )
        return found


def _mask(run: Run, device: torch.device) -> torch.Tensor | None:
    if run.visible is None:
        return None
    return (torch.arange(run.length) < torch.tensor(run.visible).unsqueeze(1))[:, None, None, :].to(device)


# What follows is TorchScript: the types of Python that it knows, and no objects.


def _linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, one_dnn: bool) -> torch.Tensor:
    if one_dnn:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return found
    return functional.linear(rows, weight, bias)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: list[list[int]],
    masks: list[torch.Tensor | None],
    heads: int,
) -> torch.Tensor:
    attended: list[torch.Tensor] = []
    for index, (start, stop, texts, length) in enumerate(runs):
        shape = [texts, length, heads, -1]
        # [texts, heads, tokens, width of a head]
        queries = query[start:stop].view(shape).transpose(1, 2)
        keys = key[start:stop].view(shape).transpose(1, 2)
        values = value[start:stop].view(shape).transpose(1, 2)
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=masks[index])
        attended.append(found.transpose(1, 2).reshape(stop - start, -1))
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def _forward(
    rows: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor | None],
    norms: list[torch.Tensor],
    runs: list[list[int]],
    masks: list[torch.Tensor | None],
    heads: int,
    epsilon: float,
    dtype: torch.dtype,
    one_dnn: bool,
) -> torch.Tensor:
    width = [rows.shape[1]]
    for layer in range(len(weights) // 6):
        w, b = weights[6 * layer : 6 * layer + 6], biases[6 * layer : 6 * layer + 6]
        n = norms[4 * layer : 4 * layer + 4]
        given = rows.to(dtype)
        query = _linear(given, w[0], b[0], one_dnn)
        key = _linear(given, w[1], b[1], one_dnn)
        value = _linear(given, w[2], b[2], one_dnn)
        attended = _linear(_attention(query, key, value, runs, masks, heads), w[3], b[3], one_dnn)
        rows = functional.layer_norm(rows + attended, width, n[0], n[1], epsilon)
        raised = functional.gelu(_linear(rows.to(dtype), w[4], b[4], one_dnn))
        rows = functional.layer_norm(rows + _linear(raised, w[5], b[5], one_dnn), width, n[2], n[3], epsilon)
    return rows


with warnings.catch_warnings():
    # Deprecated in favour of torch.compile, see above; the pinned torch has it.
    warnings.simplefilter("ignore", DeprecationWarning)
    _PROGRAM: Any = torch.jit.script(_forward)

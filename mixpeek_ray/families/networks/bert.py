"""BERT's forward pass over batches without padding, for BERT, RoBERTa and XLM-RoBERTa weights.

Why not transformers' own: it computes padding, and its Python costs more than the arithmetic of a short text. The
weights are used where they lie; only matrices that are not stored in the dtype of the products are copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.families.networks.base import TokenBatch
from mixpeek_ray.families.networks.bert_layers import AnyLinear, BertLayer, BertLayers
from mixpeek_ray.families.networks.layers import PACKED_AT_MOST_BYTES, LayerNorm, Linear, PackedLinear, has_one_dnn

_TABLE = "embeddings.word_embeddings.weight"
# Model types of this architecture, and whether positions count from behind the padding id, as RoBERTa's do.
_MODEL_TYPES = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}


def computes(config: Mapping[str, Any]) -> bool:
    """Tell whether the model that ``config`` describes is BERT's encoder, unaltered."""
    return (
        config.get("model_type") in _MODEL_TYPES
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and not config.get("add_cross_attention")
    )


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """A checkpoint's tensors by the names of this architecture, whatever a saver put before them."""

    by_name: Mapping[str, torch.Tensor]
    prefix: str

    @classmethod
    def of(cls, state_dict: Mapping[str, torch.Tensor]) -> Tensors:
        """Return the tensors of ``state_dict``. Raises ``InvalidWeightsError`` when it holds no BERT."""
        # TensorFlow's names of a LayerNorm's weight and bias survive in checkpoints of 2018 and 2019.
        renamed = {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
            for name, tensor in state_dict.items()
        }
        tables = [name for name in renamed if name.endswith(_TABLE)]
        if len(tables) != 1:
            raise InvalidWeightsError(f"The weights hold {len(tables)} tensors named {_TABLE!r} where one is needed.")
        return cls(by_name=renamed, prefix=tables[0].removesuffix(_TABLE))

    @property
    def words(self) -> torch.Tensor:
        """The table of word embeddings, [vocabulary, width]."""
        return self.by_name[self.prefix + _TABLE]

    def encoder(self, name: str) -> torch.Tensor:
        """Return a tensor of the encoder itself. Raises ``InvalidWeightsError`` when it is absent."""
        return self.head(self.prefix + name)

    def head(self, name: str) -> torch.Tensor:
        """Return a tensor beside the encoder. Raises ``InvalidWeightsError`` when it is absent."""
        try:
            return self.by_name[name]
        except KeyError:
            raise InvalidWeightsError(
                f"The weights hold no tensor {name!r}: they do not match the model's config.json."
            ) from None


class BertEncoder:
    """Last hidden states of BERT."""

    def __init__(
        self, tensors: Tensors, config: Mapping[str, Any], dtype: torch.dtype, *, packs_at_once: bool = True
    ) -> None:
        """Build over ``tensors``; matrices are multiplied in ``dtype``, a small model's in copies: see ``Compute``.

        Raises ``InvalidWeightsError`` when a tensor that ``config`` promises is absent.
        """
        self.epsilon = float(config.get("layer_norm_eps", 1e-12))
        self._tensors, self._dtype = tensors, dtype
        self._words = tensors.words
        self._positions = tensors.encoder("embeddings.position_embeddings.weight")
        self._types = tensors.encoder("embeddings.token_type_embeddings.weight")
        self._norm = self.norm(tensors.prefix + "embeddings.LayerNorm")
        for table in ("word", "position", "token_type"):
            name = f"{tensors.prefix}embeddings.{table}_embeddings.weight"
            self._check_shape(name, self._rows(name), self.width)
        self._check_shape(f"{tensors.prefix}embeddings.LayerNorm.weight", self.width)
        self._check_shape(f"{tensors.prefix}embeddings.LayerNorm.bias", self.width)
        heads = _size(config, "num_attention_heads")
        if self.width % heads:
            raise InvalidWeightsError(
                f"Hidden states of {self.width} cannot be divided among {heads} heads: the weights do not match the "
                "model's config.json."
            )
        is_small = self._is_small()
        self._packed = packs_at_once and is_small
        layers = [self._layer(index) for index in range(_size(config, "num_hidden_layers"))]
        self._layers = BertLayers(layers, heads=heads, dtype=dtype, packs_when_busy=is_small and not packs_at_once)
        padding = config.get("pad_token_id", 1)
        behind_padding = _MODEL_TYPES[config["model_type"]] and isinstance(padding, int)
        self._first_position = padding + 1 if behind_padding else 0

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return int(self._words.shape[-1])

    @property
    def max_tokens(self) -> int:
        """The longest text that has positions."""
        return len(self._positions) - self._first_position

    def linear(self, name: str) -> AnyLinear:
        """Return the matrix called ``name`` in full. Raises ``InvalidWeightsError`` when it is absent."""
        weight, bias = self._tensors.head(f"{name}.weight"), self._tensors.head(f"{name}.bias")
        linear = Linear(weight=weight.to(self._dtype), bias=bias.to(self._dtype))
        return PackedLinear(linear) if self._packed else linear

    def norm(self, name: str) -> LayerNorm:
        """Return the LayerNorm called ``name`` in full. Raises ``InvalidWeightsError`` when it is absent."""
        weight, bias = self._tensors.head(f"{name}.weight"), self._tensors.head(f"{name}.bias")
        return LayerNorm(weight=weight.float(), bias=bias.float(), epsilon=self.epsilon)

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Return float32 [tokens, width]."""
        return self._layers(self._embedded(batch.on(self._words.device)), list(batch.runs()))

    def _embedded(self, batch: TokenBatch) -> torch.Tensor:
        # Looked up as stored and added as float32, in the reference's order.
        words = functional.embedding(batch.ids, self._words).float()
        types = self._types[0] if batch.type_ids is None else functional.embedding(batch.type_ids, self._types)
        positions = functional.embedding(batch.positions + self._first_position, self._positions)
        return self._norm(words + types.float() + positions.float())

    def _is_small(self) -> bool:
        inside = f"{self._tensors.prefix}encoder.layer."
        elements = sum(tensor.numel() for name, tensor in self._tensors.by_name.items() if name.startswith(inside))
        fits = elements * self._dtype.itemsize <= PACKED_AT_MOST_BYTES
        return fits and self._words.device.type == "cpu" and has_one_dnn()

    def _layer(self, index: int) -> BertLayer:
        inside = f"{self._tensors.prefix}encoder.layer.{index}."
        names = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attended": "attention.output.dense",
            "up": "intermediate.dense",
            "down": "output.dense",
        }
        inner = self._rows(f"{inside}{names['up']}.weight")
        rows, columns = {"up": inner}, {"down": inner}
        for part, name in names.items():
            out = rows.get(part, self.width)
            self._check_shape(f"{inside}{name}.weight", out, columns.get(part, self.width))
            self._check_shape(f"{inside}{name}.bias", out)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            self._check_shape(f"{inside}{name}.weight", self.width)
            self._check_shape(f"{inside}{name}.bias", self.width)
        return BertLayer(
            **{part: self.linear(inside + name) for part, name in names.items()},
            attended_norm=self.norm(inside + "attention.output.LayerNorm"),
            down_norm=self.norm(inside + "output.LayerNorm"),
        )

    def _rows(self, name: str) -> int:
        shape = self._tensors.head(name).shape
        return int(shape[0]) if shape else 0

    def _check_shape(self, name: str, *expected: int) -> None:
        """Raise ``InvalidWeightsError`` unless the tensor fits the others: no model is tried when it is built."""
        found = tuple(self._tensors.head(name).shape)
        if found != expected:
            raise InvalidWeightsError(
                f"The tensor {name!r} has the shape {list(found)}, and the others need {list(expected)}: they do not "
                "match the model's config.json."
            )


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise InvalidWeightsError(f"The model's config.json must hold {name}, a whole number above 0.")
    return value

"""What BERT's checkpoints put on top of the encoder: a masked language model's or a classifier's head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from mixpeek_ray.families.networks.base import TokenBatch
from mixpeek_ray.families.networks.bert import BertEncoder, Tensors
from mixpeek_ray.families.networks.layers import Linear


def decoder_name(config: Mapping[str, Any]) -> str:
    """Return the name of the matrix from vectors to the vocabulary; a checkpoint without it has it tied."""
    return "cls.predictions.decoder.weight" if config["model_type"] == "bert" else "lm_head.decoder.weight"


class MaskedLanguageModel:
    """Logits over the vocabulary for every token."""

    def __init__(self, encoder: BertEncoder, tensors: Tensors, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Build over ``tensors``. Raises ``InvalidWeightsError`` when the head is not among them."""
        self._encoder = encoder
        if config["model_type"] == "bert":
            inside, bias = "cls.predictions.transform.", "cls.predictions.bias"
            transform, norm = inside + "dense", inside + "LayerNorm"
        else:
            transform, norm, bias = "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"
        self._transform, self._norm = encoder.linear(transform), encoder.norm(norm)
        # Tied to the word embeddings unless the checkpoint holds a matrix of its own.
        weight = tensors.by_name.get(decoder_name(config), tensors.words)
        self._decoder = Linear(weight=weight.to(dtype), bias=tensors.head(bias).to(dtype))

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Return [tokens, vocabulary] in the dtype of the products."""
        return self._decoder(self._norm(functional.gelu(self._transform(self._encoder(batch))).float()))


class Classifier:
    """Logits of each text, from its first token."""

    def __init__(self, encoder: BertEncoder, tensors: Tensors, config: Mapping[str, Any]) -> None:
        """Build over ``tensors``. Raises ``InvalidWeightsError`` when the head is not among them."""
        self._encoder = encoder
        if config["model_type"] == "bert":
            self._pooler, self._out = encoder.linear(f"{tensors.prefix}pooler.dense"), encoder.linear("classifier")
        else:
            self._pooler, self._out = encoder.linear("classifier.dense"), encoder.linear("classifier.out_proj")

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Return float32 [texts, labels]."""
        first = torch.cat([texts[:, 0] for texts in batch.per_text(self._encoder(batch))])
        return self._out(torch.tanh(self._pooler(first).float())).float()

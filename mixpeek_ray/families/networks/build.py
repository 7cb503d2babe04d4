"""Which network computes a card's model, over which tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mixpeek_ray.catalog.cards import Backend, ModelCard, Precision
from mixpeek_ray.core.errors import InvalidCatalogError
from mixpeek_ray.families.networks.base import Network
from mixpeek_ray.families.networks.bert import BertEncoder, Tensors, computes
from mixpeek_ray.families.networks.heads import Classifier, MaskedLanguageModel
from mixpeek_ray.families.networks.precision import matrix_dtype
from mixpeek_ray.families.networks.transformers import Head, TransformersNetwork
from mixpeek_ray.families.weights import WeightsSource, read_config


def build_network(card: ModelCard, source: WeightsSource, head: Head) -> Network:
    """Return the forward pass of ``card`` over the tensors of ``source``.

    Raises ``InvalidWeightsError`` when tensors are missing, ``InvalidCatalogError`` when the card promises longer
    texts than the model has positions.
    """
    config = read_config(source)
    if card.compute.backend is Backend.AUTO and computes(config):
        return _own(card, source, config, head)
    # All of a transformers model has one dtype: bfloat16 residuals cost accuracy that nobody asked to give up.
    wanted = card.compute.precision
    dtype = torch.bfloat16 if wanted is Precision.BFLOAT16 else torch.float32
    network = TransformersNetwork(source, head, dtype)
    _check_length(card, network.max_tokens)
    return network


def _own(card: ModelCard, source: WeightsSource, config: Mapping[str, Any], head: Head) -> Network:
    tensors, dtype = Tensors.of(source.state_dict), matrix_dtype(card.compute.precision)
    encoder = BertEncoder(tensors, config, dtype)
    _check_length(card, encoder.max_tokens)
    match head:
        case Head.NONE:
            return encoder
        case Head.MASKED_LANGUAGE_MODEL:
            return MaskedLanguageModel(encoder, tensors, config, dtype)
        case Head.CLASSIFIER:
            return Classifier(encoder, tensors, config)


def _check_length(card: ModelCard, most: int | None) -> None:
    if most is not None and card.limits.max_tokens > most:
        raise InvalidCatalogError(
            f"Model {card.name!a}, field 'max_tokens': the weights have positions for {most} tokens, "
            f"not for {card.limits.max_tokens}."
        )

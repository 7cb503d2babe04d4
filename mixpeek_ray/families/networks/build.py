"""Which network computes a card's model, and over tensors of which dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mixpeek_ray.catalog.cards import Backend, Family, ModelCard, Precision
from mixpeek_ray.core.errors import InvalidCatalogError
from mixpeek_ray.families.networks.base import Network
from mixpeek_ray.families.networks.bert import BertEncoder, Tensors, computes
from mixpeek_ray.families.networks.heads import Classifier, MaskedLanguageModel, decoder_name
from mixpeek_ray.families.networks.precision import matrix_dtype
from mixpeek_ray.families.networks.transformers import Head, TransformersNetwork
from mixpeek_ray.families.weights import WeightsSource, read_config

_HEADS = {
    Family.DENSE: Head.NONE,
    Family.SPARSE: Head.MASKED_LANGUAGE_MODEL,
    Family.LATE_INTERACTION: Head.NONE,
    Family.RERANK: Head.CLASSIFIER,
}


def build_network(card: ModelCard, source: WeightsSource) -> Network:
    """Return the forward pass of ``card`` over the tensors of ``source``.

    Raises ``InvalidWeightsError`` when tensors are missing, ``InvalidCatalogError`` when the card promises longer
    texts than the model has positions.
    """
    config, head = read_config(source), _HEADS[card.family]
    if _is_own(card, config):
        return _build_own(card, source, config, head)
    network = TransformersNetwork(source, head, _whole_dtype(card))
    _check_length(card, network.max_tokens)
    return network


def prepared(card: ModelCard, source: WeightsSource) -> dict[str, torch.Tensor]:
    """Return the tensors of ``source`` in the dtypes that this machine computes ``card`` in; the rest are its own.

    Done once before weights are shared, it keeps every replica from making a converted copy. The platform's own
    forward converts matrices only: embedding tables stay as they are stored, their rows are converted as they are
    looked up. Raises ``InvalidWeightsError`` when the config or the word embeddings are missing.
    """
    config, state_dict = read_config(source), source.state_dict
    if not _is_own(card, config):
        dtype = _whole_dtype(card)
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}
    dtype = matrix_dtype(card.compute.precision)
    converted = {name: tensor.to(dtype) if _is_matrix(name, tensor) else tensor for name, tensor in state_dict.items()}
    decoder = decoder_name(config)
    if _HEADS[card.family] is Head.MASKED_LANGUAGE_MODEL and decoder not in converted:
        # Tied to the word embeddings, which stay as they are: as a matrix they are needed converted.
        converted[decoder] = Tensors.of(state_dict).words.to(dtype)
    return converted


def _is_own(card: ModelCard, config: Mapping[str, Any]) -> bool:
    return card.compute.backend is Backend.AUTO and computes(config)


def _whole_dtype(card: ModelCard) -> torch.dtype:
    # All of a transformers model has one dtype: bfloat16 residuals cost accuracy that `auto` does not give up.
    return torch.bfloat16 if card.compute.precision is Precision.BFLOAT16 else torch.float32


def _is_matrix(name: str, tensor: torch.Tensor) -> bool:
    return tensor.dim() == 2 and tensor.is_floating_point() and not name.endswith("embeddings.weight")


def _build_own(card: ModelCard, source: WeightsSource, config: Mapping[str, Any], head: Head) -> Network:
    tensors, dtype = Tensors.of(source.state_dict), matrix_dtype(card.compute.precision)
    encoder = BertEncoder(tensors, config, dtype, packs_at_once=card.compute.packs_at_once)
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

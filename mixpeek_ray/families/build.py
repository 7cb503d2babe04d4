"""From a card and its weights to the family that computes it."""

from __future__ import annotations

from mixpeek_ray.catalog.cards import (
    DenseOptions,
    LateInteractionOptions,
    ModelCard,
    RerankOptions,
    SparseOptions,
)
from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.families.dense import DenseFamily
from mixpeek_ray.families.late_interaction import LateInteractionFamily
from mixpeek_ray.families.rerank import RerankFamily
from mixpeek_ray.families.sparse import SparseFamily
from mixpeek_ray.families.weights import WeightsSource

AnyFamily = DenseFamily | SparseFamily | LateInteractionFamily | RerankFamily


def build_family(card: ModelCard, source: WeightsSource) -> AnyFamily:
    """Return the card's model, ready to compute over the tensors of ``source``, which it keeps views of.

    Raises ``InvalidWeightsError`` when files or tensors are missing or contradict each other, and
    ``InvalidCatalogError`` when the card says otherwise than the weights.
    """
    try:
        return _built(card, source)
    except RuntimeError:
        # What is computed when a family is built says here that shapes do not fit each other.
        raise InvalidWeightsError(
            f"The tensors of {card.name!a} do not fit each other: they do not match the model's config.json."
        ) from None


def _built(card: ModelCard, source: WeightsSource) -> AnyFamily:
    match card.options:
        case DenseOptions() as options:
            return DenseFamily(card, options, source)
        case SparseOptions() as options:
            return SparseFamily(card, options, source)
        case LateInteractionOptions() as options:
            return LateInteractionFamily(card, options, source)
        case RerankOptions() as options:
            return RerankFamily(card, options, source)

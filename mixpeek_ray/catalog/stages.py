"""Retriever stages: the steps of a search that the built-in models can serve."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from mixpeek_ray.catalog.availability import Availability, BuiltinModel
from mixpeek_ray.catalog.cards import Family
from mixpeek_ray.catalog.extractors import Extractor, text_extractor

RERANKING_FAMILIES = frozenset({Family.RERANK, Family.LATE_INTERACTION})


class StageCategory(enum.StrEnum):
    """What a stage does to the documents that reach it: those of the wire contract's words that occur here."""

    FILTER = "filter"
    SORT = "sort"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a search."""

    stage_id: str
    category: StageCategory
    description: str
    # A name of the Lucide icon set, which the published clients draw.
    icon: str
    use_cases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FeatureSearch(Stage):
    """A search by one feature of ``extractor``."""

    stage_id: str = "feature_search"
    category: StageCategory = StageCategory.FILTER
    description: str = (
        "Turns a query into the vector of one feature, for a search of the index that holds the documents'."
    )
    icon: str = "search"
    use_cases: tuple[str, ...] = ("Search by meaning", "Search by weighted terms", "Late interaction search")
    extractor: Extractor


@dataclass(frozen=True, kw_only=True)
class HybridSearch(Stage):
    """A search by several kinds of features of ``extractor`` at once."""

    stage_id: str = "hybrid_search"
    category: StageCategory = StageCategory.FILTER
    description: str = (
        "Turns a query into dense, sparse and multi-vector representations in one call, for searches whose results are "
        "then fused."
    )
    icon: str = "combine"
    use_cases: tuple[str, ...] = ("Search by meaning and by terms together",)
    extractor: Extractor


@dataclass(frozen=True, kw_only=True)
class Rerank(Stage):
    """A second look at what a search found, with one of ``models``."""

    stage_id: str = "rerank"
    category: StageCategory = StageCategory.SORT
    description: str = "Scores documents against a query, with a cross-encoder or by late interaction, and sorts them."
    icon: str = "arrow-up-down"
    use_cases: tuple[str, ...] = (
        "Refine the first results of a search",
        "Choose the passages that a language model is given",
    )
    # At least one.
    models: tuple[BuiltinModel, ...]

    @property
    def default(self) -> BuiltinModel:
        """The first model that can be had now, or else the first."""
        usable = (model for model in self.models if model.availability is not Availability.UNAVAILABLE)
        return next(usable, self.models[0])


AnyStage = FeatureSearch | HybridSearch | Rerank


def retriever_stages(models: Sequence[BuiltinModel]) -> tuple[AnyStage, ...]:
    """Return the stages that ``models`` can serve, in the order in which a search takes them."""
    stages: list[AnyStage] = []
    extractor = text_extractor(models)
    if extractor is not None:
        stages.append(FeatureSearch(extractor=extractor))
        if len({feature.kind for feature in extractor.features}) > 1:
            stages.append(HybridSearch(extractor=extractor))
    rerankers = tuple(model for model in models if model.card.family in RERANKING_FAMILIES)
    if rerankers:
        stages.append(Rerank(models=rerankers))
    return tuple(stages)

"""Feature extractors: the embedding models as clients see them that think in features.

``mixpeek://{extractor}@{version}/{output}`` names a feature everywhere. The built-in embedding models are the outputs
of one extractor, ``text_extractor`` ``v1``; a custom model is an extractor of its own, named and versioned as uploaded.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mixpeek_ray.catalog.availability import Availability, BuiltinModel
from mixpeek_ray.catalog.cards import TASKS, Family, ModelCard, RerankOptions
from mixpeek_ray.core import ids
from mixpeek_ray.core.errors import InvalidCatalogError, ValidationError
from mixpeek_ray.core.records import DeploymentStatus, ModelState

TEXT_EXTRACTOR, BUILTIN_VERSION = "text_extractor", "v1"
# Versions are part of an output's name, so that another model under the same name makes another feature.
_VERSIONED_OUTPUT = re.compile(r"[a-z][a-z0-9_]*_v[0-9]+", re.ASCII)
_URI = re.compile(r"mixpeek://([A-Za-z0-9_-]{1,64})@([A-Za-z0-9.]{1,32})/([A-Za-z0-9_]{1,128})", re.ASCII)


class VectorKind(enum.StrEnum):
    """What one text becomes: the wire contract's words."""

    DENSE = "dense"
    SPARSE = "sparse"
    MULTI_DENSE = "multi_dense"


class Distance(enum.StrEnum):
    """How an index compares two vectors; multi-dense ones sum the best of it over a query's tokens."""

    COSINE = "cosine"
    DOT = "dot"


VECTOR_KINDS: Mapping[Family, VectorKind] = {
    Family.DENSE: VectorKind.DENSE,
    Family.SPARSE: VectorKind.SPARSE,
    Family.LATE_INTERACTION: VectorKind.MULTI_DENSE,
}


@dataclass(frozen=True, kw_only=True)
class FeatureUri:
    """The name of one output of one version of an extractor."""

    extractor: str
    version: str
    output: str

    def __str__(self) -> str:
        return f"mixpeek://{self.extractor}@{self.version}/{self.output}"

    @classmethod
    def parse(cls, text: str) -> FeatureUri:
        """Return the URI in ``text``. Raises ``ValidationError``."""
        match = _URI.fullmatch(text)
        if match is None:
            raise ValidationError(
                f"{text[:80]!a} is no feature URI: write mixpeek://extractor@version/output, such as "
                "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1.",
                field="feature_uri",
            )
        return cls(extractor=match[1], version=match[2], output=match[3])


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One output: what a model makes of a text."""

    uri: FeatureUri
    # What `model` is set to on the inference routes.
    model: str
    family: Family
    description: str
    availability: Availability
    # What to do about it when the model is unavailable.
    reason: str | None = None
    # The built-in model's; None: a custom model's own files say, and they are read when it is loaded.
    card: ModelCard | None = None

    @property
    def kind(self) -> VectorKind:
        """What one text becomes."""
        return VECTOR_KINDS[self.family]

    @property
    def dimensions(self) -> int | None:
        """The size of a vector, for a sparse one of its vocabulary; None where it is not known."""
        if self.card is None or isinstance(self.card.options, RerankOptions):
            return None
        return self.card.options.dimensions

    @property
    def distance(self) -> Distance:
        """What the model was trained for."""
        return Distance.DOT if self.kind is VectorKind.SPARSE else Distance.COSINE


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A named, versioned set of features of the same input."""

    name: str
    version: str
    description: str
    # At least one; the first is the default.
    features: tuple[Feature, ...]
    # The custom model it is; None: a built-in extractor.
    custom: ModelState | None = None

    @property
    def extractor_id(self) -> str:
        """The extractor's id: ``text_extractor_v1``, or a custom model's own."""
        return ids.model_id(self.name, self.version)

    @property
    def default(self) -> Feature:
        """The feature that is meant when none is named."""
        return default_feature(self.features)


def default_feature(features: Sequence[Feature]) -> Feature:
    """Return the first of ``features`` that can be had now, or else the first."""
    usable = (feature for feature in features if feature.availability is not Availability.UNAVAILABLE)
    return next(usable, features[0])


def feature_outputs(cards: Iterable[ModelCard]) -> dict[str, ModelCard]:
    """Return the built-in embedding models by the output of ``text_extractor`` that each is, in their order.

    An output is the model's first name or alias of the form ``…_v1``, else one made of its name. Raises
    ``InvalidCatalogError`` when two models would be one output.
    """
    outputs: dict[str, ModelCard] = {}
    for card in cards:
        if card.family not in VECTOR_KINDS:
            continue
        output = _output_of(card)
        taken = outputs.setdefault(output, card)
        if taken is not card:
            raise InvalidCatalogError(
                f"Model {card.name!a}: its feature {output!a} is that of {taken.name!a} already: give it an alias of "
                "its own that ends in _v1."
            )
    return outputs


def text_extractor(models: Sequence[BuiltinModel]) -> Extractor | None:
    """Return the extractor whose outputs are the built-in embedding models; None when there is no such model."""
    known = {model.card.name: model for model in models}
    features = tuple(
        _builtin_feature(output, known[card.name])
        for output, card in feature_outputs(model.card for model in models).items()
    )
    if not features:
        return None
    return Extractor(
        name=TEXT_EXTRACTOR,
        version=BUILTIN_VERSION,
        description="Turns texts into vectors for search: one output for each built-in embedding model.",
        features=features,
    )


def custom_extractor(state: ModelState, family: Family) -> Extractor:
    """Return the extractor that a custom embedding model of ``family`` is."""
    manifest = state.manifest
    is_deployed = state.status is DeploymentStatus.DEPLOYED
    feature = Feature(
        # The extractor's name is the model's already: the output says what it is.
        uri=FeatureUri(extractor=manifest.name, version=manifest.version, output=TASKS[family]),
        model=f"{manifest.namespace_id}/{manifest.model_id}",
        family=family,
        description=f"Custom model {manifest.name} {manifest.version}.",
        availability=Availability.LOADED if is_deployed else Availability.UNAVAILABLE,
        reason=None if is_deployed else "The model is not deployed: deploy it first.",
    )
    return Extractor(
        name=manifest.name,
        version=manifest.version,
        description=feature.description,
        features=(feature,),
        custom=state,
    )


def _output_of(card: ModelCard) -> str:
    for name in (card.name, *card.aliases):
        if _VERSIONED_OUTPUT.fullmatch(name):
            return name
    return re.sub(r"[^a-z0-9]+", "_", card.name.lower()) + "_v1"


def _builtin_feature(output: str, model: BuiltinModel) -> Feature:
    return Feature(
        uri=FeatureUri(extractor=TEXT_EXTRACTOR, version=BUILTIN_VERSION, output=output),
        model=model.card.name,
        family=model.card.family,
        description=model.card.description,
        availability=model.availability,
        reason=model.reason,
        card=model.card,
    )

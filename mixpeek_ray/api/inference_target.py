"""Which model a call of ``POST /v1/inference`` means, out of the ways to name one."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from mixpeek_ray.api.access import is_plausible_id
from mixpeek_ray.api.custom_models import MODEL_NOT_FOUND
from mixpeek_ray.api.inference_body import RawInferenceRequest
from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.catalog.catalog import Catalog
from mixpeek_ray.catalog.extractors import BUILTIN_VERSION, TEXT_EXTRACTOR, FeatureUri, feature_outputs
from mixpeek_ray.core import ids
from mixpeek_ray.core.aliases import parse_reference
from mixpeek_ray.core.errors import ModelNotFoundError, ValidationError


class Provider(enum.StrEnum):
    """Whose models there are."""

    MIXPEEK = "mixpeek"
    CUSTOM = "custom"


@dataclass(frozen=True, kw_only=True)
class BuiltinTarget:
    """A built-in model."""

    card: ModelCard
    provider: ClassVar[Provider] = Provider.MIXPEEK

    @property
    def model(self) -> str:
        """The name that inference knows the model by."""
        return self.card.name


@dataclass(frozen=True, kw_only=True)
class CustomTarget:
    """What may be a custom model: whether there is one, the registry knows."""

    namespace_id: str
    # Or ``{name}@{alias}``.
    model_id: str
    # What the model's output was called, where a feature URI named it.
    output: str | None = field(default=None, compare=False)
    provider: ClassVar[Provider] = Provider.CUSTOM

    @property
    def model(self) -> str:
        """The name that inference knows the model by."""
        return f"{self.namespace_id}/{self.model_id}"


Target = BuiltinTarget | CustomTarget


class Targets:
    """Finds what names mean; holds no more than the catalog's names."""

    def __init__(self, catalog: Catalog) -> None:
        """Raises ``InvalidCatalogError`` when two models would be one feature."""
        self._catalog = catalog
        self._outputs = feature_outputs(catalog.values())

    def find(self, request: RawInferenceRequest, namespace_id: str | None) -> Target:
        """Return the model that ``request`` names; bare ids of custom models are looked for in ``namespace_id``.

        Raises ``ValidationError`` when nothing names a model, or two names mean two models, and
        ``ModelNotFoundError`` for a name that no model can have.
        """
        found = list(self._named(request, namespace_id))
        if not found:
            raise ValidationError(
                "Name the model: send inference_name, feature_uri, or provider and model.", field="inference_name"
            )
        (first_field, first), *others = found
        for other_field, target in others:
            if target != first:
                raise ValidationError(
                    f"{first_field} and {other_field} name two models, {first.model!a} and {target.model!a}: send "
                    "one of them.",
                    field=other_field,
                )
        return first

    def _named(self, request: RawInferenceRequest, namespace_id: str | None) -> Iterator[tuple[str, Target]]:
        if request.model is not None:
            yield "model", self._at_provider(request.provider, request.model, namespace_id)
        elif request.provider is not None:
            raise ValidationError("provider alone names no model: send model with it.", field="model")
        if request.inference_name is not None:
            yield "inference_name", self._by_name(request.inference_name, namespace_id, field="inference_name")
        if request.feature_uri is not None:
            yield "feature_uri", self._by_uri(FeatureUri.parse(request.feature_uri), namespace_id)

    def _at_provider(self, provider: str | None, model: str, namespace_id: str | None) -> Target:
        if provider is None:
            return self._by_name(model, namespace_id, field="model")
        # The owner and the name of a hub repository are an alias of the model that comes from there.
        known = self._builtin(f"{provider}/{model}")
        return known or self._of(provider, model, namespace_id, field="provider")

    def _by_name(self, name: str, namespace_id: str | None, *, field: str) -> Target:
        if (known := self._builtin(name)) is not None:
            return known
        provider, colon, model = name.partition(":")
        if colon:
            return self._of(provider, model, namespace_id, field=field)
        provider, slash, model = name.partition("/")
        if slash and provider in set(Provider):
            return self._of(provider, model, namespace_id, field=field)
        return _custom(name, namespace_id)

    def _of(self, provider: str, model: str, namespace_id: str | None, *, field: str) -> Target:
        match provider:
            case Provider.MIXPEEK:
                return BuiltinTarget(card=self._catalog.find(model))
            case Provider.CUSTOM:
                return _custom(model, namespace_id)
        raise ValidationError(
            f"The provider {provider[:80]!a} is not served here: use {' or '.join(Provider)}.", field=field
        )

    def _by_uri(self, uri: FeatureUri, namespace_id: str | None) -> Target:
        if (uri.extractor, uri.version) != (TEXT_EXTRACTOR, BUILTIN_VERSION):
            return replace(_custom(ids.model_id(uri.extractor, uri.version), namespace_id), output=uri.output)
        card = self._outputs.get(uri.output)
        if card is None:
            raise ModelNotFoundError(
                f"{TEXT_EXTRACTOR} {BUILTIN_VERSION} has no output {uri.output!a}: "
                "GET /v1/feature-extractors lists those there are.",
                field="feature_uri",
            )
        return BuiltinTarget(card=card)

    def _builtin(self, name: str) -> BuiltinTarget | None:
        try:
            return BuiltinTarget(card=self._catalog.find(name))
        except ModelNotFoundError:
            return None


def _custom(name: str, namespace_id: str | None) -> CustomTarget:
    named, slash, model_id = name.rpartition("/")
    owner = named if slash else namespace_id
    if owner is None or not is_plausible_id(owner) or not _is_plausible(owner, model_id):
        raise ModelNotFoundError(MODEL_NOT_FOUND)
    return CustomTarget(namespace_id=owner, model_id=model_id)


def _is_plausible(owner: str, model_id: str) -> bool:
    return is_plausible_id(model_id) or parse_reference(owner, model_id) is not None

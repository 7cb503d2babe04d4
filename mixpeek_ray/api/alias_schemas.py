"""The bodies of the alias routes, and what makes them from records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from pydantic import Field

from mixpeek_ray.api.schemas import Body
from mixpeek_ray.core import limits
from mixpeek_ray.core.aliases import ModelAlias, TargetSet

_Weight = Annotated[int, Field(strict=True, ge=0, le=limits.MAX_ALIAS_WEIGHT)]
_ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class AliasPutRequest(Body):
    """Where an alias is to point."""

    targets: dict[_ModelId, _Weight] = Field(
        description="Ids of versions of the model, each with its weight: its share of the sum of all weights.",
        min_length=1,
        max_length=limits.MAX_MODELS_PER_NAMESPACE,
        examples=[{"my-model_1_0_0": 90, "my-model_1_1_0": 10}],
    )


class EarlierTargets(Body):
    """What an alias pointed to from ``set_at`` on; a rollback does not come back to what is ``undone``."""

    targets: dict[str, int]
    set_at: datetime
    key_id: str
    undone: bool


class AliasItem(Body):
    """An alias as lists show it; ``reference`` stands for it where a model id may stand."""

    namespace_id: str
    name: str
    alias: str
    reference: str
    targets: dict[str, int]
    revision: int
    created_at: datetime
    updated_at: datetime
    key_id: str = Field(description="The key that moved it last.")


class AliasDocument(AliasItem):
    """An alias with what it pointed to before, newest first."""

    history: list[EarlierTargets]


class AliasResponse(Body):
    """One alias."""

    success: bool = True
    alias: AliasDocument


class AliasListResponse(Body):
    """Aliases, by name and alias."""

    success: bool = True
    aliases: list[AliasItem]
    total: int
    namespace_id: str


class AliasDeleteResponse(Body):
    """An alias is gone."""

    success: bool = True
    reference: str
    message: str


def present_alias(alias: ModelAlias) -> AliasResponse:
    """Return an alias with its history."""
    history = [
        EarlierTargets(
            targets=_weights(earlier),
            set_at=earlier.change.made_at,
            key_id=earlier.change.key_id,
            undone=earlier.undone,
        )
        for earlier in alias.history
    ]
    return AliasResponse(alias=AliasDocument(**_item(alias).model_dump(), history=history))


def present_aliases(aliases: Sequence[ModelAlias], namespace_id: str) -> AliasListResponse:
    """Return a list of aliases."""
    return AliasListResponse(aliases=[_item(alias) for alias in aliases], total=len(aliases), namespace_id=namespace_id)


def _item(alias: ModelAlias) -> AliasItem:
    return AliasItem(
        namespace_id=alias.ref.namespace_id,
        name=alias.ref.name,
        alias=alias.ref.alias,
        reference=alias.ref.reference,
        targets=_weights(alias.current),
        revision=alias.revision,
        created_at=alias.created_at,
        updated_at=alias.current.change.made_at,
        key_id=alias.current.change.key_id,
    )


def _earlier(targets: TargetSet) -> EarlierTargets:
    change = targets.change
    return EarlierTargets(targets=_weights(targets), set_at=change.made_at, key_id=change.key_id, undone=targets.undone)


def _weights(targets: TargetSet) -> dict[str, int]:
    return {target.model_id: target.weight for target in targets.targets}

"""The bodies of the alias routes, and what makes them from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, model_validator

from mixpeek_ray.api.schemas import Body
from mixpeek_ray.core import limits
from mixpeek_ray.core.alias_options import MAX_WINDOW_MINUTES, RollbackGuard, Shadow
from mixpeek_ray.core.aliases import AliasPlan, ModelAlias, TargetSet

_Weight = Annotated[int, Field(strict=True, ge=0, le=limits.MAX_ALIAS_WEIGHT)]
_ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class ShadowBody(Body):
    """A version that also computes a share of the alias' requests, after their answers and apart from them."""

    model_id: _ModelId = Field(description="A deployed version of the model.")
    percent: int = Field(strict=True, ge=1, le=100, description="Of the alias' requests, at random.")


class GuardBody(Body):
    """How much worse than the others the newest version may do: beyond, it gets no more of the alias' requests."""

    max_error_rate: float | None = Field(
        default=None, gt=0, le=1, description="How much larger its share of failed requests may be.", examples=[0.05]
    )
    max_latency_ratio: float | None = Field(
        default=None, gt=1, le=1_000, description="How many times as long its median latency may be.", examples=[1.5]
    )
    min_requests: int = Field(
        default=100,
        strict=True,
        ge=1,
        le=1_000_000,
        description="Fewer tell nothing: of its requests, and for latency of each side's answers.",
    )
    window_minutes: int = Field(
        default=10,
        strict=True,
        ge=1,
        le=MAX_WINDOW_MINUTES,
        description="How far back requests count; never to before the alias was moved.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.max_error_rate is None and self.max_latency_ratio is None:
            raise ValueError("send max_error_rate, max_latency_ratio or both")
        return self


class AliasPutRequest(Body):
    """What an alias is to do; what is left out, it does no more."""

    targets: dict[_ModelId, _Weight] = Field(
        description="Ids of versions of the model, each with its weight: its share of the sum of all weights.",
        min_length=1,
        max_length=limits.MAX_MODELS_PER_NAMESPACE,
        examples=[{"my-model_1_0_0": 90, "my-model_1_1_0": 10}],
    )
    shadow: ShadowBody | None = None
    guard: GuardBody | None = None

    def plan(self) -> AliasPlan:
        """Return the same as a record."""
        return AliasPlan(
            weights=self.targets,
            shadow=Shadow(**self.shadow.model_dump()) if self.shadow else None,
            guard=RollbackGuard(**self.guard.model_dump()) if self.guard else None,
        )


_KEY_ID = "The key that moved it there; `guard`: the alias' own guard did."
_REASON = "What the guard found, where it was the guard."


class EarlierTargets(Body):
    """What an alias pointed to from ``set_at`` on; a rollback does not come back to what is ``undone``."""

    targets: dict[str, int]
    shadow: ShadowBody | None
    guard: GuardBody | None
    set_at: datetime
    key_id: str = Field(description=_KEY_ID)
    reason: str | None = Field(description=_REASON)
    undone: bool


class AliasItem(Body):
    """An alias as lists show it; ``reference`` stands for it where a model id may stand."""

    namespace_id: str
    name: str
    alias: str
    reference: str
    targets: dict[str, int]
    shadow: ShadowBody | None
    guard: GuardBody | None
    revision: int
    created_at: datetime
    updated_at: datetime
    key_id: str = Field(description=_KEY_ID)
    reason: str | None = Field(description=_REASON)


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
    history = [_earlier(earlier) for earlier in alias.history]
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
        shadow=_shadow(alias.current),
        guard=_guard(alias.current),
        revision=alias.revision,
        created_at=alias.created_at,
        updated_at=alias.current.change.made_at,
        key_id=alias.current.change.key_id,
        reason=alias.current.change.reason,
    )


def _earlier(targets: TargetSet) -> EarlierTargets:
    change = targets.change
    return EarlierTargets(
        targets=_weights(targets),
        shadow=_shadow(targets),
        guard=_guard(targets),
        set_at=change.made_at,
        key_id=change.key_id,
        reason=change.reason,
        undone=targets.undone,
    )


def _shadow(targets: TargetSet) -> ShadowBody | None:
    return ShadowBody(**asdict(targets.shadow)) if targets.shadow is not None else None


def _guard(targets: TargetSet) -> GuardBody | None:
    return GuardBody(**asdict(targets.guard)) if targets.guard is not None else None


def _weights(targets: TargetSet) -> dict[str, int]:
    return {target.model_id: target.weight for target in targets.targets}

"""Aliases: names such as ``production`` under a model's name, each for one or several of its versions. Pure.

``my-model@production`` names one wherever a model id may stand. The versions have weights; which of them answers is
decided by a point between 0 and 1: a random one, or the same one again for what should always meet the same version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from secrets import randbits

from mixpeek_ray.core import limits
from mixpeek_ray.core.alias_options import RollbackGuard, Shadow
from mixpeek_ray.core.errors import InvalidNameError, NoPreviousTargetsError, RevisionMismatchError
from mixpeek_ray.core.ids import is_valid_name

# `my-model@latest`: the highest version that is deployed. No alias may be called so.
LATEST = "latest"
# Stands in a change for the key of whoever made it: an alias' own guard.
GUARD = "guard"
_SEPARATOR = "@"
# No `-` first: an alias is a part of its record's key in the store.
_ALIAS = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}", re.ASCII)
# As many as a float tells apart, so that the highest is below 1.
_POINT_BITS = 53
_POINTS = 1 << _POINT_BITS


@dataclass(frozen=True, kw_only=True)
class AliasRef:
    """Names an alias: a namespace, a model's name, and the alias under it."""

    namespace_id: str
    name: str
    alias: str

    @property
    def reference(self) -> str:
        """What stands for the alias where a model id may stand."""
        return f"{self.name}{_SEPARATOR}{self.alias}"


@dataclass(frozen=True, kw_only=True)
class WeightedTarget:
    """A version that an alias points to, and its share of the sum of all weights."""

    model_id: str
    weight: int


@dataclass(frozen=True, kw_only=True)
class AliasPlan:
    """What an alias is wanted to do."""

    # By the versions' ids.
    weights: Mapping[str, int]
    shadow: Shadow | None = None
    guard: RollbackGuard | None = None


@dataclass(frozen=True, kw_only=True)
class AliasRoute:
    """Where an alias' requests go now."""

    # The highest version first: see ``choose``.
    targets: tuple[WeightedTarget, ...]
    shadow: Shadow | None = None


@dataclass(frozen=True, kw_only=True)
class AliasChange:
    """Who changes an alias and when; ``change_id`` tells a repeated call from another one."""

    change_id: str
    # Or ``GUARD``.
    key_id: str
    made_at: datetime
    # What the guard found; None: somebody wanted it so.
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class TargetSet:
    """What an alias does, or did, since ``change.made_at``."""

    # The highest version first: see ``choose``.
    targets: tuple[WeightedTarget, ...]
    change: AliasChange
    # A rollback left it, or came back to it and made it current anew: the next one goes further back.
    undone: bool = False
    shadow: Shadow | None = None
    guard: RollbackGuard | None = None

    def answering(self) -> tuple[WeightedTarget, ...]:
        """Return the targets that answer requests, the highest version first."""
        return tuple(target for target in self.targets if target.weight)

    def does_as(self, other: TargetSet) -> bool:
        """Tell whether requests fare as with ``other``, whoever made it and when."""
        return (self.targets, self.shadow, self.guard) == (other.targets, other.shadow, other.guard)


@dataclass(frozen=True, kw_only=True)
class ModelAlias:
    """An alias as the store keeps it."""

    ref: AliasRef
    # Rises by one with every change, from 1.
    revision: int
    created_at: datetime
    current: TargetSet
    # Newest first, at most ``limits.MAX_ALIAS_HISTORY``.
    history: tuple[TargetSet, ...] = ()

    def moved(self, wanted: TargetSet) -> ModelAlias:
        """Return the alias doing what is ``wanted``."""
        return self._with(wanted, (self.current, *self.history))

    def previous(self) -> TargetSet:
        """Return what a rollback comes back to. Raises ``NoPreviousTargetsError``."""
        for earlier in self.history:
            if not earlier.undone:
                return earlier
        raise NoPreviousTargetsError(
            f"Alias {self.ref.reference!a} has no earlier targets to come back to: PUT the targets it should have."
        )

    def rolled_back(self, change: AliasChange) -> ModelAlias:
        """Return the alias pointing to what it pointed to before. Raises ``NoPreviousTargetsError``.

        A second rollback goes one step further: it never brings back what the first one left.
        """
        return self._back_to(self.previous(), change)

    def before(self, model_id: str) -> TargetSet | None:
        """Return what the alias did last without sending requests to a version; None when it always did."""
        for earlier in self.history:
            if not earlier.undone and all(target.model_id != model_id for target in earlier.answering()):
                return earlier
        return None

    def withdrawn(self, model_id: str, change: AliasChange, *, to: TargetSet | None) -> ModelAlias:
        """Return the alias sending no requests to a version: as in ``to``, an earlier set, or else as it is now."""
        if to is not None:
            return self._back_to(to, change)
        without = tuple(
            replace(target, weight=0) if target.model_id == model_id else target for target in self.current.targets
        )
        left = replace(self.current, undone=True)
        return self._with(replace(self.current, targets=without, change=change), (left, *self.history))

    def _back_to(self, restored: TargetSet, change: AliasChange) -> ModelAlias:
        # What came after it is left for good.
        place = self.history.index(restored)
        left = tuple(replace(item, undone=True) for item in (self.current, *self.history[: place + 1]))
        return self._with(replace(restored, change=change, undone=False), (*left, *self.history[place + 1 :]))

    def _with(self, current: TargetSet, history: tuple[TargetSet, ...]) -> ModelAlias:
        kept = history[: limits.MAX_ALIAS_HISTORY]
        return replace(self, revision=self.revision + 1, current=current, history=kept)


def check_alias(alias: str) -> str:
    """Return ``alias`` if one may be called so; raise ``InvalidNameError`` otherwise."""
    if _ALIAS.fullmatch(alias) is None:
        raise InvalidNameError(
            f"{alias[:80]!a} is not an alias: use 1 to 64 lower-case letters, digits, '-' or '_', not beginning with "
            "'-'.",
            field="alias",
        )
    if alias == LATEST:
        raise InvalidNameError(
            f"No alias may be called {LATEST!a}: that is each model's highest deployed version.", field="alias"
        )
    return alias


def check_revision(alias: ModelAlias | None, expected: int | None) -> None:
    """Return if the alias is as the caller last saw it: at that revision, 0 for none. None: the caller does not care.

    Raises ``RevisionMismatchError``.
    """
    found = alias.revision if alias is not None else 0
    if expected is not None and expected != found:
        raise RevisionMismatchError(
            f"The alias is at revision {found}, not at {expected}: get it again, and decide on what it is now.",
            revision=found,
        )


def parse_reference(namespace_id: str, text: str) -> AliasRef | None:
    """Return the alias that ``text`` names in the form ``{name}@{alias}``; None for any other text."""
    name, separator, alias = text.partition(_SEPARATOR)
    if not separator or not is_valid_name(name) or _ALIAS.fullmatch(alias) is None:
        return None
    return AliasRef(namespace_id=namespace_id, name=name, alias=alias)


def choose(targets: Sequence[WeightedTarget], point: float) -> str:
    """Return the id of the version that answers at ``point``, 0 <= point < 1; some weight must be above 0.

    The targets lie one after the other between 0 and 1, in their order, each as wide as its share. With the highest
    version first, and its share growing, whoever met it meets it still; so it is for the lowest, at the other end.
    """
    place = point * sum(target.weight for target in targets)
    upper = 0
    for target in targets:
        upper += target.weight
        if place < upper:
            return target.model_id
    raise ValueError("a point lies between 0 and 1, and some weight is above 0")


def random_point() -> float:
    """Return a point for a request that may meet any version."""
    return randbits(_POINT_BITS) / _POINTS


def sticky_point(ref: AliasRef, sticky: str) -> float:
    """Return the same point for the same ``sticky`` text under an alias, in every process and every release."""
    # None of the names can contain the separator, so no two different callers hash the same text.
    text = "\0".join((ref.namespace_id, ref.name, ref.alias, sticky))
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> (64 - _POINT_BITS)) / _POINTS

"""From ``{name}@{alias}`` to the version that answers a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from mixpeek_ray.api.remembered import RememberedAnswers
from mixpeek_ray.core import ids
from mixpeek_ray.core.aliases import AliasRef, AliasRoute, choose, random_point, sticky_point
from mixpeek_ray.core.errors import ModelNotDeployedError, ModelNotFoundError
from mixpeek_ray.core.records import Principal

AnswerT = TypeVar("AnswerT")

# A moved alias takes effect everywhere within 2 s: half of that is left for a registry that is slow to answer.
_TRUST_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The version that answers a request."""

    model_id: str
    # The version that computes it too, apart from the answer; None: no other.
    shadow_id: str | None


class AliasResolver:
    """Chooses versions, for one process; use it from one event loop."""

    def __init__(self, ask: Callable[[Principal, AliasRef], Awaitable[AliasRoute]]) -> None:
        """``ask``: as ``ports.ModelAliases.route``."""
        self._ask = ask
        # By organisation too: what one may use, another may not even know of.
        self._answers = RememberedAnswers[tuple[str, AliasRef], AliasRoute](trust_s=_TRUST_S)

    async def choose(
        self,
        principal: Principal,
        ref: AliasRef,
        sticky: str | None,
        *,
        version: str | None = None,
        afresh: bool = False,
    ) -> str:
        """Return the id of the version that answers: at random by weight, or the same one for the same ``sticky``.

        ``version``: only that one may answer, as far as the alias sends it requests. ``afresh`` asks the registry,
        whatever it said a moment ago. Raises ``AliasNotFoundError``, ``NamespaceNotFoundError``,
        ``ModelNotFoundError`` for another ``version`` and for a ``latest`` of no model, ``ModelNotDeployedError`` for
        a ``latest`` that there is none of, and ``RegistryUnavailableError`` when there is no earlier answer to go on
        with.
        """
        return (await self._chosen(principal, ref, sticky, version=version, afresh=afresh)).model_id

    async def answered(
        self,
        principal: Principal,
        ref: AliasRef,
        sticky: str | None,
        attempt: Callable[[Chosen], Awaitable[AnswerT]],
        *,
        version: str | None = None,
    ) -> AnswerT:
        """Return what ``attempt`` makes of the version that answers. Raises as it does, and as ``choose``.

        A version may have been taken away since the alias moved on, which this process has not heard yet: then the
        one that the alias means now is attempted.
        """
        chosen = await self._chosen(principal, ref, sticky, version=version)
        try:
            return await attempt(chosen)
        except (ModelNotDeployedError, ModelNotFoundError):
            current = await self._chosen(principal, ref, sticky, version=version, afresh=True)
            if current.model_id == chosen.model_id:
                raise
            return await attempt(current)

    async def _chosen(
        self, principal: Principal, ref: AliasRef, sticky: str | None, *, version: str | None, afresh: bool = False
    ) -> Chosen:
        question = (principal.organization.organization_id, ref)
        route = await self._answers.get(question, lambda: self._ask(principal, ref), afresh=afresh)
        if version is not None:
            model_id = _only(route, ref, version)
        else:
            model_id = choose(route.targets, random_point() if sticky is None else sticky_point(ref, sticky))
        shadow = route.shadow
        if shadow is not None and shadow.computes(model_id, random_point()):
            return Chosen(model_id=model_id, shadow_id=shadow.model_id)
        return Chosen(model_id=model_id, shadow_id=None)


def _only(route: AliasRoute, ref: AliasRef, version: str) -> str:
    for target in route.targets:
        if target.weight and target.model_id == ids.model_id(ref.name, version):
            return target.model_id
    raise ModelNotFoundError(
        f"The alias {ref.reference!a} sends no requests to a version {version[:32]!a}: leave the version out, or name "
        "one that it points to."
    )

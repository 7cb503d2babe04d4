"""From ``{name}@{alias}`` to the version that answers a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mixpeek_ray.api.remembered import RememberedAnswers
from mixpeek_ray.core import ids
from mixpeek_ray.core.aliases import AliasRef, WeightedTarget, choose, random_point, sticky_point
from mixpeek_ray.core.errors import ModelNotDeployedError, ModelNotFoundError
from mixpeek_ray.core.records import Principal

AnswerT = TypeVar("AnswerT")

# A moved alias takes effect everywhere within 2 s: half of that is left for a registry that is slow to answer.
_TRUST_S = 1.0


class AliasResolver:
    """Chooses versions, for one process; use it from one event loop."""

    def __init__(self, ask: Callable[[Principal, AliasRef], Awaitable[Sequence[WeightedTarget]]]) -> None:
        """``ask``: as ``ports.ModelAliases.targets``."""
        self._ask = ask
        # By organisation too: what one may use, another may not even know of.
        self._answers = RememberedAnswers[tuple[str, AliasRef], Sequence[WeightedTarget]](trust_s=_TRUST_S)

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
        question = (principal.organization.organization_id, ref)
        targets = await self._answers.get(question, lambda: self._ask(principal, ref), afresh=afresh)
        if version is not None:
            return _only(targets, ref, version)
        return choose(targets, random_point() if sticky is None else sticky_point(ref, sticky))

    async def answered(
        self,
        principal: Principal,
        ref: AliasRef,
        sticky: str | None,
        attempt: Callable[[str], Awaitable[AnswerT]],
        *,
        version: str | None = None,
    ) -> AnswerT:
        """Return what ``attempt`` makes of the version that answers, given its id; raises as both it and ``choose`` do.

        A version may have been taken away since the alias moved on, which this process has not heard yet: then the
        one that the alias means now is attempted.
        """
        chosen = await self.choose(principal, ref, sticky, version=version)
        try:
            return await attempt(chosen)
        except (ModelNotDeployedError, ModelNotFoundError):
            current = await self.choose(principal, ref, sticky, version=version, afresh=True)
            if current == chosen:
                raise
            return await attempt(current)


def _only(targets: Sequence[WeightedTarget], ref: AliasRef, version: str) -> str:
    for target in targets:
        if target.weight and target.model_id == ids.model_id(ref.name, version):
            return target.model_id
    raise ModelNotFoundError(
        f"The alias {ref.reference!a} sends no requests to a version {version[:32]!a}: leave the version out, or name "
        "one that it points to."
    )

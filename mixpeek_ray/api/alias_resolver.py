"""From ``{name}@{alias}`` to the version that answers a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from mixpeek_ray.api.remembered import RememberedAnswers
from mixpeek_ray.core.aliases import AliasRef, WeightedTarget, choose, random_point, sticky_point
from mixpeek_ray.core.records import Principal

# A moved alias takes effect everywhere within 2 s: half of that is left for a registry that is slow to answer.
_TRUST_S = 1.0


class AliasResolver:
    """Chooses versions, for one process; use it from one event loop."""

    def __init__(self, ask: Callable[[Principal, AliasRef], Awaitable[Sequence[WeightedTarget]]]) -> None:
        """``ask``: as ``ports.ModelAliases.targets``."""
        self._ask = ask
        # By organisation too: what one may use, another may not even know of.
        self._answers = RememberedAnswers[tuple[str, AliasRef], Sequence[WeightedTarget]](trust_s=_TRUST_S)

    async def choose(self, principal: Principal, ref: AliasRef, sticky: str | None, *, afresh: bool = False) -> str:
        """Return the id of the version that answers: at random by weight, or the same one for the same ``sticky``.

        ``afresh`` asks the registry, whatever it said a moment ago. Raises ``AliasNotFoundError``,
        ``NamespaceNotFoundError``, for ``latest`` also ``ModelNotFoundError`` and ``ModelNotDeployedError``, and
        ``RegistryUnavailableError`` when there is no earlier answer to go on with.
        """
        question = (principal.organization.organization_id, ref)
        targets = await self._answers.get(question, lambda: self._ask(principal, ref), afresh=afresh)
        return choose(targets, random_point() if sticky is None else sticky_point(ref, sticky))

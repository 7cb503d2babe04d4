"""Watches the aliases that have a guard: a version that does worse than it may gets no more of their requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import ray
from ray.util import metrics

from mixpeek_ray.analytics.recent import RecentRequests
from mixpeek_ray.analytics.verdict import fault_of
from mixpeek_ray.core.alias_options import RollbackGuard
from mixpeek_ray.core.aliases import GUARD, AliasChange, AliasRef, ModelAlias
from mixpeek_ray.core.ids import new_id
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.registry.aliases import Aliases
from mixpeek_ray.registry.analytics import ANALYTICS_NAME
from mixpeek_ray.registry.calls import call
from mixpeek_ray.registry.handles import RAY_NAMESPACE
from mixpeek_ray.registry.state import now

_log = get_logger(__name__)

# Replicas report every few seconds.
_PERIOD_S = 2.0
# Counts are in memory: an actor that does not answer at once is asked again a moment later.
_TIMEOUT_S = 2.0

# Returns the requests to each group of a namespace's versions since a moment, in seconds since 1970.
AskRecent = Callable[[str, Sequence[Sequence[str]], float], Awaitable[Sequence[RecentRequests]]]


class AliasWatch:
    """Judges the newest version of every guarded alias again and again. Use it from the registry's event loop."""

    def __init__(self, aliases: Aliases, ask: AskRecent) -> None:
        self._aliases = aliases
        self._ask = ask
        # Each is told once in the log, not every few seconds.
        self._unjudged: set[AliasRef] = set()
        self._withdrawals = metrics.Counter(
            "mixpeek_alias_withdrawals", "Versions that a guard took back.", tag_keys=("alias",)
        )

    async def keep(self) -> None:
        """Judge every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.judge()

    async def judge(self) -> None:
        """Take back each newest version that does worse than its guard allows; what cannot be judged now stays."""
        for alias, guard in self._aliases.guarded():
            try:
                await self._judge(alias, guard)
                self._unjudged.discard(alias.ref)
            except Exception as error:  # noqa: BLE001  # one alias that cannot be judged must not end the guard of all
                # Moved meanwhile, or analytics or the store are away: the next time decides.
                if alias.ref not in self._unjudged:
                    self._unjudged.add(alias.ref)
                    _log.warning("alias %s is not judged now (%s)", alias.ref.reference, type(error).__name__)

    async def _judge(self, alias: ModelAlias, guard: RollbackGuard) -> None:
        newest, *others = alias.current.answering()
        if self._aliases.serves(alias.ref, newest.model_id):
            since = max(alias.current.change.made_at, now() - timedelta(minutes=guard.window_minutes))
            groups = ((newest.model_id,), tuple(target.model_id for target in others))
            of_newest, of_others = await self._ask(alias.ref.namespace_id, groups, since.timestamp())
            fault = fault_of(guard, of_newest, of_others)
        else:
            # A version that requests are sent to is not undeployed: it failed, or its crashes put it into quarantine.
            fault = "it is not deployed any more"
        if fault is None:
            return
        reason = f"{newest.model_id}: {fault}"
        change = AliasChange(change_id=new_id("chg"), key_id=GUARD, made_at=now(), reason=reason)
        await self._aliases.withdraw(alias.ref, newest.model_id, change, alias.revision)
        self._withdrawals.inc(1, {"alias": f"{alias.ref.namespace_id}/{alias.ref.reference}"})
        _log.warning("alias %s/%s rolled back: %s", alias.ref.namespace_id, alias.ref.reference, reason)


class RecentCounts:
    """What the analytics actor counted of late; the actor is looked up when there is something to ask."""

    def __init__(self) -> None:
        self._analytics: Any = None

    async def ask(self, namespace_id: str, groups: Sequence[Sequence[str]], since_s: float) -> Sequence[RecentRequests]:
        """Return the requests to each group of versions since a moment. Raises ``RegistryUnavailableError``."""
        if self._analytics is None:
            try:
                self._analytics = await asyncio.to_thread(ray.get_actor, ANALYTICS_NAME, namespace=RAY_NAMESPACE)
            except ValueError:
                # The first replica that computes makes the actor: nothing was asked of any version yet.
                return [RecentRequests(requests=0, errors=0, median_s=0.0) for _ in groups]
        asked = self._analytics.recent.remote(namespace_id, groups, since_s)
        counted: Sequence[RecentRequests] = await call(asked, _TIMEOUT_S)
        return counted

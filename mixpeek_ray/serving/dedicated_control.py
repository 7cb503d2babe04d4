"""The actor that keeps Serve's applications equal to what the registry says is deployed, for models with their own.

It holds nothing that matters: what is wanted is the registry's to say, what runs is Serve's. Killed, it goes on where
it was; while the registry is silent it changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from mixpeek_ray.core.errors import MixpeekError, RegistryUnavailableError, UnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import ModelState
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.registry.bootstrap import head_actor
from mixpeek_ray.registry.calls import call
from mixpeek_ray.registry.handles import RAY_NAMESPACE, find_registry
from mixpeek_ray.servables.base import OwnApplication, ServableRef
from mixpeek_ray.serving.dedicated_plan import Plan, own_applications
from mixpeek_ray.serving.placement import DedicatedModels

_log = get_logger(__name__)

CONTROL_NAME = "DedicatedApplications"

# How soon a deploy or an undeploy is noticed that nobody tells of.
_PERIOD_S = 2.0
# Replicas of the pool believe for 2 s that a model is deployed: an application outlives that, and what they sent it
# is finished by Serve's own draining.
_GRACE_S = 5.0
# Calls queue here while the actor restarts; the caller's own time limit ends the wait.
_TASK_RETRIES = 5
_CONCURRENCY = 1_000
# One round asks the registry and Serve's controller, and starts what is missing: seconds on a busy machine.
_ROUND_TIMEOUT_S = 20.0

# Makes a model's application; given in from the layer above, which defines Serve's deployments.
BuildApplication = Callable[[ServableRef, OwnApplication], Any]


class DedicatedApplications:
    """Starts and deletes applications; the only one to do so for models."""

    async def __init__(self, build: BuildApplication) -> None:  # type: ignore[misc]  # Ray awaits it
        self._build = build
        self._settings = get_settings()
        self._plan = Plan(grace_s=_GRACE_S)
        # While no model wants an application and none can be left over, Serve is not asked, nor imported.
        self._looks_at_serve = ray.get_runtime_context().was_current_actor_reconstructed
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._keeping = asyncio.create_task(self._keep())

    async def refresh(self) -> None:
        """Return once Serve was told of every model that is deployed now.

        Raises ``RegistryUnavailableError``, ``UnavailableError``.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._round())
        await asyncio.shield(self._next)

    async def _keep(self) -> None:
        while True:
            try:
                await self.refresh()
            except MixpeekError as error:
                _log.warning("applications of models not looked after: %s", error.message)
            await asyncio.sleep(_PERIOD_S)

    async def _round(self) -> None:
        async with self._lock:
            # Whoever comes from now on may know of what this round does not see.
            self._next = None
            try:
                await self._reconcile()
            except MixpeekError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever Serve raises: the next round tries again
                _log.exception("applications of models not looked after")
                raise UnavailableError(
                    f"Ray Serve does not answer ({type(error).__name__}): try again in a few seconds."
                ) from None

    async def _reconcile(self) -> None:
        states = await self._deployed_states()
        if not states and not self._looks_at_serve:
            return
        models = DedicatedModels.of(states, self._settings.pool_limit)
        applications = await asyncio.to_thread(_applications)
        # Without any application there is no platform: Serve is down, or not up yet, and asking it to run something
        # would start it.
        if not applications:
            return
        change = self._plan.change(models, applications, time.monotonic())
        self._looks_at_serve = bool(change.start or own_applications(applications))
        if change.start:
            await asyncio.to_thread(self._start, change.start)
        for name in change.delete:
            await asyncio.to_thread(_delete, name)

    async def _deployed_states(self) -> Sequence[ModelState]:
        try:
            registry = await asyncio.to_thread(find_registry)
        except ValueError:
            raise UnavailableError("There is no model registry yet: try again in a few seconds.") from None
        states: Sequence[ModelState] = await call(registry.dedicated_models.remote(), self._settings.registry_timeout_s)
        return states

    def _start(self, missing: Sequence[ServableRef]) -> None:
        from ray import serve

        # No route: requests come through the pool, which knows who may use a model.
        targets = [
            serve.RunTarget(self._build(ref, ref.own), name=ref.own.name, route_prefix=None)
            for ref in missing
            if ref.own is not None
        ]
        serve.run_many(targets, wait_for_applications_running=False)
        for target in targets:
            _log.info("application started", extra={"application": target.name})


class ControlClient:
    """Tells the actor that an application is missing; used from a replica's event loop."""

    def __init__(self) -> None:
        self._control: Any = None

    async def refresh(self) -> None:
        """Return once Serve was told of every model that is deployed. Raises ``UnavailableError``."""
        try:
            if self._control is None:
                self._control = await asyncio.to_thread(ray.get_actor, CONTROL_NAME, RAY_NAMESPACE)
            await call(self._control.refresh.remote(), _ROUND_TIMEOUT_S)
        except (ValueError, RegistryUnavailableError):
            raise UnavailableError(
                "What starts the applications of large models does not answer: try again in a few seconds."
            ) from None


def ensure_control(build: BuildApplication) -> Any:
    """Return a handle of the actor, creating the actor unless it is there."""
    actor = head_actor(
        DedicatedApplications, CONTROL_NAME, max_task_retries=_TASK_RETRIES, max_concurrency=_CONCURRENCY
    )
    return actor.remote(build)


def _applications() -> frozenset[str]:
    from ray import serve

    return frozenset(serve.status().applications)


def _delete(name: str) -> None:
    from ray import serve

    # Its replicas finish what they were sent, which may take minutes.
    serve.delete(name, _blocking=False)
    _log.info("application deleted", extra={"application": name})

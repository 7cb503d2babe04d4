"""Built-in models' weights: brought into the cluster when somebody wants them, let go when nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import ray
from ray.exceptions import RayError, RayTaskError

from mixpeek_ray.catalog.availability import BuiltinModel
from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.catalog.catalog import Catalog
from mixpeek_ray.core.errors import MixpeekError, WeightsUnavailableError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.registry import builtin_materialize
from mixpeek_ray.registry.actor import RegistryConfig
from mixpeek_ray.registry.builtin_materialize import BuiltinContents, BuiltinJob
from mixpeek_ray.registry.builtin_sources import local_folder, probe
from mixpeek_ray.registry.builtin_state import BuiltinStates
from mixpeek_ray.registry.capacity import check_capacity
from mixpeek_ray.registry.handles import LoadTicket

_log = get_logger(__name__)

# How often idle weights are looked for: as a share of the time after which they go, and at least this often, because
# a warm model that could not be loaded is tried again then.
_IDLE_SHARE = 0.25
_LONGEST_PAUSE_S = 15.0
# Whether a hub or a store has a model hardly changes; an outage is known within this.
_PROBE_PERIOD_S = 300.0
# At a time, in threads of their own: those of the registry's store must not wait for a hub that hangs.
_PROBES = 4


class BuiltinModels:
    """Owns the ObjectRefs of built-in models' weights. Used from the registry's event loop."""

    def __init__(self, states: BuiltinStates, config: RegistryConfig) -> None:
        self._states = states
        self._cards = config.cards
        self._models_dir = Path(config.models_dir) if config.models_dir is not None else None
        self._spool_dir = config.spool_dir
        self._pause_s = min(config.model_idle_s * _IDLE_SHARE, _LONGEST_PAUSE_S)
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._probers = ThreadPoolExecutor(_PROBES, thread_name_prefix="probe")

    @classmethod
    def of(cls, config: RegistryConfig) -> Self:
        """Return the built-in models of the registry that ``config`` describes, none of them loaded."""
        states = BuiltinStates(Catalog(config.cards), warm=config.warm_models, idle_s=config.model_idle_s)
        return cls(states, config)

    async def resolve(self, name: str, wait_s: float) -> LoadTicket | None:
        """Return where the weights are; None when they are still on their way after ``wait_s``.

        However many ask, they are loaded once. Raises ``ModelNotFoundError``, and what loading them failed with.
        """
        card = self._states.card(name)
        if card.name not in self._attempts:
            ticket = self._states.use(card, time.monotonic())
            if ticket is not None:
                return ticket
        await asyncio.wait({self._started(card)}, timeout=wait_s)
        return None if card.name in self._attempts else self._states.use(card, time.monotonic())

    def keep(self, names: Sequence[str]) -> None:
        """Count these models as in use. Raises ``ModelNotFoundError``."""
        self._states.keep(names, time.monotonic())

    async def models(self) -> tuple[BuiltinModel, ...]:
        """Return every model with what is known of its weights; looks at local directories, and never waits for more.

        A reason to be unavailable is no refusal: the next call tries again.
        """
        local = await asyncio.to_thread(self._local_problems)
        return self._states.models(local)

    async def watch(self) -> None:
        """Load the warm models and let idle ones go, and learn what could be loaded, until cancelled."""
        await asyncio.gather(self._tidy(), self._probe())

    async def _tidy(self) -> None:
        while True:
            for card in self._states.missing_warm(time.monotonic()):
                self._started(card)
            for name in self._states.drop_idle(time.monotonic()):
                _log.info("built-in model let go", extra={"model_id": name})
            await asyncio.sleep(self._pause_s)

    async def _probe(self) -> None:
        while True:
            local = await asyncio.to_thread(self._local_problems)
            await asyncio.gather(*(self._probe_one(card) for card in self._cards if card.name not in local))
            await asyncio.sleep(_PROBE_PERIOD_S)

    async def _probe_one(self, card: ModelCard) -> None:
        problem = await asyncio.get_running_loop().run_in_executor(self._probers, probe, card)
        self._states.probed(card, problem, time.monotonic())

    def _local_problems(self) -> dict[str, str | None]:
        """Return, for each model whose weights lie on this machine, why they cannot be had, or None."""
        problems: dict[str, str | None] = {}
        for card in self._cards:
            try:
                if local_folder(card, self._models_dir) is not None:
                    problems[card.name] = None
            except WeightsUnavailableError as error:
                problems[card.name] = error.message
        return problems

    def _started(self, card: ModelCard) -> asyncio.Task[None]:
        attempt = self._attempts.get(card.name)
        if attempt is None:
            attempt = self._attempts[card.name] = asyncio.get_running_loop().create_task(self._load(card))
        return attempt

    async def _load(self, card: ModelCard) -> None:
        try:
            ticket, contents = await self._materialized(card)
        except (RayError, MixpeekError, ValueError) as error:
            cause = _as_mixpeek_error(error)
            self._states.failed(card, cause, time.monotonic())
            _log.warning("built-in model not loaded", extra={"model_id": card.name, "error_code": cause.code})
        else:
            self._states.loaded(card, ticket, time.monotonic())
            _log.info("built-in model loaded", extra={"model_id": card.name, "size_bytes": contents.weights_bytes})
        finally:
            del self._attempts[card.name]

    async def _materialized(self, card: ModelCard) -> tuple[LoadTicket, BuiltinContents]:
        await asyncio.to_thread(check_capacity, card.resources, weights_bytes=0)
        job = BuiltinJob(
            card=card,
            models_dir=str(self._models_dir) if self._models_dir is not None else None,
            spool_dir=self._spool_dir,
            node_id=ray.get_runtime_context().get_node_id(),
        )
        refs = builtin_materialize.submit(job)
        contents: BuiltinContents = await refs.contents
        ticket = LoadTicket(
            content_id=contents.content_id, kind=ModelKind.HUGGINGFACE, refs=(refs.weights, refs.companions)
        )
        return ticket, contents


def _as_mixpeek_error(error: Exception) -> MixpeekError:
    if isinstance(error, RayTaskError) and isinstance(error.cause, MixpeekError):
        return error.cause
    if isinstance(error, MixpeekError):
        return error
    _log.error("the task that loads a built-in model failed", exc_info=error)
    return MixpeekError(
        "The workers that loaded the model failed, most likely for want of memory: try again, or give the machine "
        "more. The platform's log says what happened."
    )

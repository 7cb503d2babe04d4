"""The models that a process has at hand: loaded when first asked for, let go when nobody asks any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from mixpeek_ray.batching.observer import Observer, Unobserved
from mixpeek_ray.batching.runner import BatchRunner
from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.core.errors import OverloadedError, ValidationError
from mixpeek_ray.core.records import Principal
from mixpeek_ray.families.build import AnyFamily, build_family
from mixpeek_ray.families.weights import WeightsSource

# A load waits for the registry more than it computes: as many models may be on their way at a time.
_LOADING_THREADS = 8
# Each of those who wait for a model holds its whole request in memory.
_MAX_WAITING_FOR_LOAD = 256


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model that a caller may use."""

    # A built-in model's own name, or ``{namespace}/{model_id}``.
    name: str
    # Differs whenever what is behind the name does.
    content: str


class ModelSource(Protocol):
    """Where models come from."""

    async def find(self, principal: Principal, name: str) -> ModelRef:
        """Return which model ``principal`` means by ``name``.

        Raises ``ModelNotFoundError`` (another organisation's model looks the same as none), ``ModelNotDeployedError``
        and ``RegistryUnavailableError``.
        """

    def load(self, ref: ModelRef) -> tuple[ModelCard, WeightsSource]:
        """Return the model's card and weights; called on a thread that may wait.

        Raises ``WeightsUnavailableError``, ``RegistryUnavailableError``, and ``ModelNotFoundError`` for a model that
        went away since it was found.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyModel:
    """A model that computes."""

    name: str
    family: AnyFamily
    # Takes the items of this family, returns its results.
    runner: BatchRunner[Any, Any]
    # Its tensors: views of what the node holds once.
    shared_bytes: int


@dataclass(eq=False, kw_only=True)
class _Entry:
    ref: ModelRef
    loading: asyncio.Task[ReadyModel]
    users: int = 0
    # Another content took the name over: nobody new comes.
    retired: bool = False
    # Runs while there are no users.
    idle_timer: asyncio.TimerHandle | None = None


class ModelPool:
    """Models by name, each loaded once and shared by all who use it. Use it from one event loop."""

    def __init__(
        self, source: ModelSource, *, max_wait_s: float, idle_s: float, observer: Observer | None = None
    ) -> None:
        """``max_wait_s``: see ``BatchRunner``; ``idle_s``: how long a model that nobody uses is kept."""
        self._source = source
        self._max_wait_s = max_wait_s
        self._idle_s = idle_s
        self._observer = observer or Unobserved()
        self._entries: dict[str, _Entry] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._threads = ThreadPoolExecutor(_LOADING_THREADS, thread_name_prefix="load")

    async def find(self, principal: Principal, name: str) -> ModelRef:
        """Return which model ``principal`` means by ``name``. Raises what the source raises."""
        return await self._source.find(principal, name)

    @asynccontextmanager
    async def use(self, ref: ModelRef) -> AsyncIterator[ReadyModel]:
        """Provide a model that was found just now; it stays loaded inside the block.

        Raises what the source and ``build_family`` raise, and ``OverloadedError`` when too many wait for it to load.
        """
        entry = self._entry(ref)
        if entry.users >= _MAX_WAITING_FOR_LOAD and not entry.loading.done():
            raise OverloadedError(
                f"Model {entry.ref.name!a} is loading and {entry.users} requests wait for it already."
            )
        entry.users += 1
        if entry.idle_timer is not None:
            entry.idle_timer.cancel()
            entry.idle_timer = None
        try:
            # A caller who leaves does not end the load that others wait for.
            yield await asyncio.shield(entry.loading)
        finally:
            entry.users -= 1
            if not entry.users:
                self._rest(entry)

    async def keep(self, ref: ModelRef) -> None:
        """Load a model and keep it until ``close``. Raises what the source and ``build_family`` raise."""
        entry = self._entry(ref)
        await asyncio.shield(entry.loading)
        entry.users += 1
        if entry.idle_timer is not None:
            entry.idle_timer.cancel()

    def loaded(self) -> tuple[ModelRef, ...]:
        """Return the models that are loaded or loading."""
        return tuple(entry.ref for entry in self._entries.values())

    async def close(self) -> None:
        """Let go of every model; what still waits for a result never gets one."""
        for entry in tuple(self._entries.values()):
            self._unload(entry)
        await asyncio.gather(*self._closing)
        self._threads.shutdown(wait=False)

    def _entry(self, ref: ModelRef) -> _Entry:
        known = self._entries.get(ref.name)
        if known is not None and known.ref == ref:
            return known
        if known is not None:
            known.retired = True
            if not known.users:
                self._unload(known)
        entry = _Entry(ref=ref, loading=asyncio.get_running_loop().create_task(self._load(ref)))
        self._entries[ref.name] = entry
        entry.loading.add_done_callback(lambda _: self._loaded(entry))
        return entry

    async def _load(self, ref: ModelRef) -> ReadyModel:
        started_s = time.perf_counter()
        card, family, shared_bytes = await asyncio.get_running_loop().run_in_executor(self._threads, self._build, ref)
        runner: BatchRunner[Any, Any] = BatchRunner(
            family,
            max_batch_tokens=card.limits.max_batch_tokens,
            max_wait_s=self._max_wait_s,
            name=ref.name,
            observer=self._observer,
        )
        self._observer.loaded(ref.name, seconds=time.perf_counter() - started_s, shared_bytes=shared_bytes)
        return ReadyModel(name=ref.name, family=family, runner=runner, shared_bytes=shared_bytes)

    def _build(self, ref: ModelRef) -> tuple[ModelCard, AnyFamily, int]:
        try:
            card, weights = self._source.load(ref)
            family = build_family(card, weights)
        except ValidationError as error:
            error.details.setdefault("field", "model")
            raise
        return card, family, sum(tensor.nbytes for tensor in weights.state_dict.values())

    def _loaded(self, entry: _Entry) -> None:
        if _failed(entry.loading):
            self._forget(entry)
        elif not entry.users:
            self._rest(entry)

    def _rest(self, entry: _Entry) -> None:
        """Keep a model without users for a while; one that was replaced is not kept."""
        if entry.retired:
            self._unload(entry)
        elif self._entries.get(entry.ref.name) is entry and entry.loading.done():
            loop = asyncio.get_running_loop()
            entry.idle_timer = loop.call_later(self._idle_s, self._unload, entry)

    def _unload(self, entry: _Entry) -> None:
        self._forget(entry)
        if not entry.loading.done():
            entry.retired = True
        elif not _failed(entry.loading):
            model = entry.loading.result()
            self._observer.unloaded(model.name, shared_bytes=model.shared_bytes)
            # The runner's thread may be computing for a caller who has left, and is waited for.
            closing = asyncio.get_running_loop().run_in_executor(None, model.runner.close)
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _forget(self, entry: _Entry) -> None:
        if entry.idle_timer is not None:
            entry.idle_timer.cancel()
        if self._entries.get(entry.ref.name) is entry:
            del self._entries[entry.ref.name]


def _failed(loading: asyncio.Task[ReadyModel]) -> bool:
    return loading.cancelled() or loading.exception() is not None

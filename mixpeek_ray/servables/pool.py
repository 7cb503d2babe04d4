"""The servables that a process has open: those used last stay, as far as memory allows."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mixpeek_ray.batching.observer import Observer, Unobserved
from mixpeek_ray.core.errors import OverloadedError
from mixpeek_ray.servables.base import NamedArrays, Parameters, Servable, ServableRef, ServableSpec
from mixpeek_ray.servables.memory import private_bytes, return_freed_memory
from mixpeek_ray.servables.runner import Runner
from mixpeek_ray.servables.tensors import check_inputs

# A load waits for the registry more than it computes, and the fewer at a time, the better is known what each takes.
_LOADING_THREADS = 4
# Each of those who wait for a model holds its whole request in memory.
_MAX_WAITING_FOR_LOAD = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedServable:
    """A servable, and how many bytes its weights have: views of what the node holds once."""

    servable: Servable
    shared_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenModel:
    """A model that computes."""

    ref: ServableRef
    spec: ServableSpec
    runner: Runner
    # What opening it added to the process's own memory; loads that ran beside it count in.
    private_bytes: int
    # Its weights, which are views.
    shared_bytes: int

    async def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs. Raises ``ValidationError`` naming the input, ``OverloadedError``."""
        check_inputs(self.spec, inputs)
        return await self.runner.run(inputs, parameters)


@dataclass(eq=False, kw_only=True)
class _Entry:
    ref: ServableRef
    loading: asyncio.Task[OpenModel]
    users: int = 0
    # Undeployed, or replaced by another content: nobody new comes.
    retired: bool = False


class ServablePool:
    """Models by name, each opened once and shared by all who use it. Use it from one event loop.

    A model in use is never closed: whoever was let in is answered, even when the model is undeployed meanwhile.
    """

    def __init__(
        self,
        load: Callable[[ServableRef], LoadedServable],
        *,
        max_models: int,
        max_private_bytes: int,
        max_wait_s: float,
        measure: Callable[[], int] = private_bytes,
        observer: Observer | None = None,
    ) -> None:
        """``load`` is called on a thread that may wait; ``max_wait_s``: see ``Runner``."""
        self._load = load
        self._max_models = max_models
        self._max_private_bytes = max_private_bytes
        self._max_wait_s = max_wait_s
        self._measure = measure
        self._observer = observer or Unobserved()
        # The one used last is the last.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._closing: set[asyncio.Future[None]] = set()
        self._threads = ThreadPoolExecutor(_LOADING_THREADS, thread_name_prefix="open")

    @asynccontextmanager
    async def use(self, ref: ServableRef) -> AsyncIterator[OpenModel]:
        """Provide the model, which stays open inside the block.

        Raises what ``load`` raises, and ``OverloadedError`` when too many wait for it to open.
        """
        entry = self._entry(ref)
        if entry.users >= _MAX_WAITING_FOR_LOAD and not entry.loading.done():
            raise OverloadedError(
                f"Model {ref.name!a} is loading and {entry.users} requests wait for it already: send again later."
            )
        entry.users += 1
        try:
            # A caller who leaves does not end the load that others wait for.
            yield await asyncio.shield(entry.loading)
        finally:
            entry.users -= 1
            self._settle(entry)

    def open(self) -> tuple[ServableRef, ...]:
        """Return the models that are open or on their way, the one used last at the end."""
        return tuple(entry.ref for entry in self._entries.values())

    def retire(self, ref: ServableRef) -> None:
        """Close a model once nobody uses it; the next who asks for it opens it anew."""
        entry = self._entries.get(ref.name)
        if entry is not None and entry.ref == ref:
            self._retire(entry)

    async def close(self) -> None:
        """Let go of every model; what still waits for a result never gets one."""
        for entry in tuple(self._entries.values()):
            entry.users = 0
            self._retire(entry)
        await asyncio.gather(*self._closing)
        self._threads.shutdown(wait=False)

    def _entry(self, ref: ServableRef) -> _Entry:
        known = self._entries.get(ref.name)
        if known is not None and known.ref == ref:
            self._entries.move_to_end(ref.name)
            return known
        if known is not None:
            self._retire(known)
        entry = _Entry(ref=ref, loading=asyncio.get_running_loop().create_task(self._open(ref)))
        self._entries[ref.name] = entry
        entry.loading.add_done_callback(lambda _: self._opened(entry))
        return entry

    async def _open(self, ref: ServableRef) -> OpenModel:
        started_s = time.perf_counter()
        loaded, taken = await asyncio.get_running_loop().run_in_executor(self._threads, self._measured_load, ref)
        servable, shared_bytes = loaded.servable, loaded.shared_bytes
        runner = Runner(servable, max_wait_s=self._max_wait_s, name=ref.name, observer=self._observer)
        self._observer.loaded(ref.name, seconds=time.perf_counter() - started_s, shared_bytes=shared_bytes)
        return OpenModel(ref=ref, spec=servable.spec, runner=runner, private_bytes=taken, shared_bytes=shared_bytes)

    def _measured_load(self, ref: ServableRef) -> tuple[LoadedServable, int]:
        before = self._measure()
        loaded = self._load(ref)
        return loaded, max(0, self._measure() - before)

    def _opened(self, entry: _Entry) -> None:
        if _failed(entry.loading):
            self._forget(entry)
        else:
            self._settle(entry)
        self._make_room()

    def _make_room(self) -> None:
        """Close the models that nobody has used for the longest time until the others are within bounds."""
        idle = [entry for entry in self._entries.values() if not entry.users and entry.loading.done()]
        for entry in idle:
            # The newest is what somebody is about to use, even if it is too large alone.
            if self._is_within_bounds() or entry is next(reversed(self._entries.values())):
                return
            self._retire(entry)

    def _is_within_bounds(self) -> bool:
        opened = [entry.loading.result() for entry in self._entries.values() if entry.loading.done()]
        taken = sum(model.private_bytes for model in opened)
        return len(opened) <= self._max_models and taken <= self._max_private_bytes

    def _retire(self, entry: _Entry) -> None:
        self._forget(entry)
        entry.retired = True
        self._settle(entry)

    def _settle(self, entry: _Entry) -> None:
        """Close a model that is retired, open and unused."""
        if not entry.retired or entry.users or not entry.loading.done() or _failed(entry.loading):
            return
        model = entry.loading.result()
        self._observer.unloaded(model.ref.name, shared_bytes=model.shared_bytes)
        closing = asyncio.get_running_loop().run_in_executor(None, _close, model.runner)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _forget(self, entry: _Entry) -> None:
        if self._entries.get(entry.ref.name) is entry:
            del self._entries[entry.ref.name]


def _close(runner: Runner) -> None:
    # Its thread may be computing for a caller who has left, and is waited for.
    runner.close()
    del runner
    # Modules of torch refer to themselves.
    gc.collect()
    return_freed_memory()


def _failed(loading: asyncio.Task[OpenModel]) -> bool:
    return loading.cancelled() or loading.exception() is not None

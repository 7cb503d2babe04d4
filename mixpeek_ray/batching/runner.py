"""One model at work: a thread that computes batches, and the requests that wait for their results."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from mixpeek_ray.batching.observer import Batch, Observer, Unobserved
from mixpeek_ray.batching.queue import FairQueue, Slot, Waiting
from mixpeek_ray.core.errors import OverloadedError
from mixpeek_ray.families.base import Item, TextFamily

ItemT = TypeVar("ItemT", bound=Item)
ResultT = TypeVar("ResultT")

# A batch that takes this long keeps the processor as busy as a longer one would, and whoever comes next waits no
# longer than that for it.
_BATCH_S = 0.05
# What a batch may hold before anything was measured, and always.
_FIRST_TOKENS = 256
# What may wait before anything was measured: the requests that had waited for the model to load come all at once.
_UNMEASURED_TOKENS = 8_192
# How much the latest batch counts in the measured rate.
_RATE_WEIGHT = 0.2


@dataclass(eq=False, kw_only=True)
class _Request(Waiting, Generic[ItemT, ResultT]):
    """A request on its way; what is below its items belongs to the event loop's thread."""

    items: Sequence[ItemT]
    done: asyncio.Future[list[ResultT]]
    results: list[ResultT | None] = field(init=False)
    missing: int = field(init=False)
    arrived_s: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.results = [None] * len(self.items)
        self.missing = len(self.items)


class BatchRunner(Generic[ItemT, ResultT]):
    """Computes the items of many requests in batches, on one thread; use it from one event loop.

    Batches are as large as the model computes in about 50 ms, so that a new request starts soon; while one is
    computed, the next one gathers.
    """

    def __init__(
        self,
        family: TextFamily[ItemT, ResultT],
        *,
        max_batch_tokens: int,
        max_wait_s: float,
        name: str,
        observer: Observer | None = None,
    ) -> None:
        """Start the thread. ``max_wait_s``: longest wait for other requests' work that a new one may face."""
        self._family = family
        self._max_batch_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self._name = name
        self._observer = observer or Unobserved()
        self._queue: FairQueue[_Request[ItemT, ResultT]] = FairQueue()
        self._changed = threading.Condition()
        self._tokens_per_s = 0.0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=f"batches-{name}", daemon=True)
        self._thread.start()

    async def run(self, items: Sequence[ItemT]) -> list[ResultT]:
        """Return one result an item, in their order.

        A caller that is cancelled takes back what was not computed yet. Raises ``OverloadedError`` when the items
        would wait too long, and what the family raises.
        """
        if not items:
            return []
        request: _Request[ItemT, ResultT] = _Request(items=items, done=self._loop.create_future())
        with self._changed:
            self._admit(request.tokens_left)
            self._queue.add(request)
            self._changed.notify()
        try:
            return await request.done
        finally:
            with self._changed:
                self._queue.remove(request)

    @property
    def waiting(self) -> int:
        """How many requests have items that are in no batch yet."""
        return len(self._queue)

    def close(self) -> None:
        """End the thread after the batch that it computes; what waits is never answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _admit(self, tokens: int) -> None:
        ahead = self._queue.tokens_ahead_of(tokens)
        if not self._tokens_per_s:
            if ahead > _UNMEASURED_TOKENS:
                raise OverloadedError(
                    f"Model {self._family.card.name!a} has just been loaded and has {ahead} tokens to compute first: "
                    "send again later.",
                    retry_after_seconds=1,
                )
            return
        wait_s = ahead / self._tokens_per_s
        if wait_s > self._max_wait_s:
            raise OverloadedError(
                f"Model {self._family.card.name!a} has {wait_s:.1f} s of other requests' work to do first: "
                "send again later.",
                retry_after_seconds=math.ceil(wait_s - self._max_wait_s),
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._queue))
                if self._closed:
                    return
                batch, waiting = self._queue.take(self._batch_tokens()), len(self._queue)
            started_s = time.perf_counter()
            outcome = self._compute(batch)
            self._loop.call_soon_threadsafe(outcome)
            # The answers are on their way already.
            self._observe(batch, started_s, waiting)

    def _observe(self, batch: list[Slot[_Request[ItemT, ResultT]]], started_s: float, waiting: int) -> None:
        arrived_s = min((slot.request.arrived_s for slot in batch if slot.position == 0), default=started_s)
        self._observer.computed(
            Batch(
                model=self._name,
                items=len(batch),
                tokens=sum(slot.request.items[slot.position].length for slot in batch),
                waited_s=started_s - arrived_s,
                waiting=waiting,
            )
        )

    def _batch_tokens(self) -> int:
        return min(self._max_batch_tokens, max(_FIRST_TOKENS, int(self._tokens_per_s * _BATCH_S)))

    def _compute(self, batch: list[Slot[_Request[ItemT, ResultT]]]) -> Callable[[], None]:
        items = [slot.request.items[slot.position] for slot in batch]
        started = time.perf_counter()
        try:
            results = self._family.post(self._family.core(items), items)
        except Exception as error:  # noqa: BLE001  # handed to every request that is waiting for this batch
            failure = error
            return lambda: _fail(batch, failure)
        rate = sum(item.length for item in items) / (time.perf_counter() - started)
        self._tokens_per_s += (rate - self._tokens_per_s) * (_RATE_WEIGHT if self._tokens_per_s else 1.0)
        return lambda: _deliver(batch, results)


def _deliver(batch: list[Slot[_Request[ItemT, ResultT]]], results: Sequence[ResultT]) -> None:
    for slot, result in zip(batch, results, strict=True):
        request = slot.request
        request.results[slot.position] = result
        request.missing -= 1
        if not request.missing and not request.done.done():
            request.done.set_result(cast("list[ResultT]", request.results))


def _fail(batch: list[Slot[_Request[ItemT, ResultT]]], error: Exception) -> None:
    for slot in batch:
        request = slot.request
        if not request.done.done():
            request.done.set_exception(error)

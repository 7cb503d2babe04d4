"""One servable at work: a thread that computes, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mixpeek_ray.batching.observer import Batch, Observer, Unobserved
from mixpeek_ray.core.errors import MixpeekError, OverloadedError, ValidationError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.servables.base import NamedArrays, Parameters, Servable
from mixpeek_ray.servables.rows import Part, Work, are_close, divided, in_order, is_whole, joined

_log = get_logger(__name__)

# A batch that takes this long keeps the processor as busy as a longer one would.
_BATCH_S = 0.05
# Rows of a batch before anything was measured, and at most: padding makes longer ones no faster.
_FIRST_ROWS, _MAX_ROWS = 8, 256
# Each holds its whole body in memory.
_MAX_WAITING = 256
# How much the latest batch counts in the measured rate.
_RATE_WEIGHT = 0.2


@dataclass(eq=False, kw_only=True)
class _Request(Work):
    done: asyncio.Future[NamedArrays]
    # The outcomes of its parts, in order; belongs to the event loop's thread.
    outcomes: list[NamedArrays] = field(default_factory=list)
    arrived_s: float = field(default_factory=time.perf_counter)


class Runner:
    """Computes requests with one servable, on one thread; use it from one event loop.

    Where the servable has rows, requests with equal parameters and shapes are computed together. Rows of texts are
    also computed apart, so that a large request does not hold up a small one; those of a graph are not, and only
    joined once a first batch came out as its requests did alone: a graph may compute across rows.
    """

    def __init__(self, servable: Servable, *, max_wait_s: float, name: str, observer: Observer | None = None) -> None:
        """Start the thread. ``max_wait_s``: longest wait for others' work that a new request may face."""
        self._servable = servable
        self._spec = servable.spec
        self._max_wait_s = max_wait_s
        self._name = name
        self._observer = observer or Unobserved()
        self._queue: list[_Request] = []
        self._changed = threading.Condition()
        self._rows_per_s = 0.0
        # None: not known yet.
        self._joins: bool | None = None if self._spec.has_rows and not self._spec.takes_texts else self._spec.has_rows
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=f"serves-{name}", daemon=True)
        self._thread.start()

    async def run(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs for checked ``inputs``. A caller that is cancelled takes back what was not begun.

        Raises ``OverloadedError`` when there is too much to do before, and what the servable raises.
        """
        rows = self._spec.rows_of(inputs)
        request = _Request(inputs=inputs, parameters=parameters, rows=rows, done=self._loop.create_future())
        with self._changed:
            self._admit()
            self._queue.append(request)
            self._changed.notify()
        try:
            return await request.done
        finally:
            with self._changed:
                if request in self._queue:
                    self._queue.remove(request)

    @property
    def waiting(self) -> int:
        """How many requests have rows that are in no batch yet."""
        return len(self._queue)

    def close(self) -> None:
        """End the thread after what it computes, and close the servable; what waits is never answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._servable.close()

    def _admit(self) -> None:
        ahead = sum(request.rows - request.taken for request in self._queue)
        wait_s = ahead / self._rows_per_s if self._rows_per_s else 0.0
        if len(self._queue) >= _MAX_WAITING or wait_s > self._max_wait_s:
            raise OverloadedError(
                f"Model {self._name!a} has {len(self._queue)} other requests to compute first: send again later.",
                retry_after_seconds=max(1, math.ceil(wait_s - self._max_wait_s)),
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._queue)
                if self._closed:
                    return
                batch, waiting = self._take(), len(self._queue)
            started_s = time.perf_counter()
            outcome = self._outcome(batch)
            self._loop.call_soon_threadsafe(outcome)
            # The answers are on their way already.
            self._observe(batch, started_s, waiting)

    def _observe(self, batch: Sequence[Part[_Request]], started_s: float, waiting: int) -> None:
        arrived_s = min((part.work.arrived_s for part in batch if part.start == 0), default=started_s)
        self._observer.computed(
            Batch(
                model=self._name,
                items=sum(part.stop - part.start for part in batch),
                # Servables take arrays: how many tokens they make of a text is their own affair.
                tokens=0,
                waited_s=started_s - arrived_s,
                waiting=waiting,
            )
        )

    def _take(self) -> list[Part[_Request]]:
        """Return what is computed next: parts of the requests that fit the one whose turn it is."""
        first = self._queue[0]
        fitting = [request for request in self._queue if request.fits(first)] if self._spec.has_rows else [first]
        if self._joins is False:
            fitting = [first]
        room = min(_MAX_ROWS, max(_FIRST_ROWS, int(self._rows_per_s * _BATCH_S)))
        batch: list[Part[_Request]] = []
        for place, request in enumerate(fitting):
            left = request.rows - request.taken
            # What is left is divided evenly among those who still wait for their turn.
            rows = min(left, max(1, room // (len(fitting) - place))) if self._spec.takes_texts else left
            if batch and rows > room:
                break
            batch.append(Part(work=request, start=request.taken, stop=request.taken + rows))
            request.taken += rows
            room -= rows
        for part in batch:
            self._queue.remove(part.work)
            if part.work.taken < part.work.rows:
                self._queue.append(part.work)
        return batch

    def _outcome(self, batch: Sequence[Part[_Request]]) -> Callable[[], None]:
        started = time.perf_counter()
        results: list[NamedArrays | Exception]
        if len(batch) == 1 or self._joins is None:
            results = [self._alone(part) for part in batch]
            if len(batch) > 1:
                self._joins = self._try_joining(batch, results)
        else:
            results = self._together(batch)
        rate = sum(part.stop - part.start for part in batch) / (time.perf_counter() - started)
        self._rows_per_s += (rate - self._rows_per_s) * (_RATE_WEIGHT if self._rows_per_s else 1.0)
        return lambda: _deliver(batch, results)

    def _together(self, batch: Sequence[Part[_Request]]) -> list[NamedArrays | Exception]:
        try:
            computed = self._servable.compute(joined(batch), batch[0].work.parameters)
        except Exception:  # noqa: BLE001  # whose inputs they are shows when each is computed alone
            return [self._alone(part) for part in batch]
        return list(divided(computed, batch))

    def _alone(self, part: Part[_Request]) -> NamedArrays | Exception:
        try:
            return self._servable.compute(joined([part]), part.work.parameters)
        except MixpeekError as error:
            if isinstance(index := error.details.get("index"), int):
                error.details["index"] = part.start + index
            return error
        except Exception as error:  # noqa: BLE001  # whatever a model raises is its answer to these inputs
            # Not its words: they may repeat the inputs.
            _log.warning("a model failed on its inputs (%s)", type(error).__name__, extra={"model_id": self._name})
            return ValidationError(
                f"Model {self._name!a} fails on these inputs ({type(error).__name__}): compare them with what it was "
                "made for.",
                field="inputs",
            )

    def _try_joining(self, batch: Sequence[Part[_Request]], alone: Sequence[NamedArrays | Exception]) -> bool | None:
        """Tell whether the batch comes out as its requests did alone; None when one of them failed."""
        apart = [result for result in alone if not isinstance(result, Exception)]
        if len(apart) < len(batch):
            return None
        try:
            computed = self._servable.compute(joined(batch), batch[0].work.parameters)
        except Exception as error:  # noqa: BLE001  # a model that takes one row at a time, whatever it declares
            _log.info("requests of a model are not joined (%s)", type(error).__name__, extra={"model_id": self._name})
            return False
        return is_whole(computed, batch) and all(
            are_close(found, expected) for found, expected in zip(divided(computed, batch), apart, strict=True)
        )


def _deliver(batch: Sequence[Part[_Request]], results: Sequence[NamedArrays | Exception]) -> None:
    for part, result in zip(batch, results, strict=True):
        request = part.work
        if request.done.done():
            continue
        if isinstance(result, Exception):
            request.done.set_exception(result)
            continue
        request.outcomes.append(result)
        if part.stop == request.rows:
            request.done.set_result(in_order(request.outcomes))

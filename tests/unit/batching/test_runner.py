"""Requests through one model: order, fairness, overload, failure and cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from mixpeek_ray.batching.runner import BatchRunner
from mixpeek_ray.core.errors import OverloadedError
from mixpeek_ray.families.base import FloatArray, Item


class FakeCard:
    name = "fake"


class FakeFamily:
    """Computes the first id of each item; a test may hold it up, and sees its batches."""

    card: Any = FakeCard()

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_compute = threading.Event()
        self.may_compute.set()
        self.computing = threading.Event()

    def core(self, items: Sequence[Item]) -> FloatArray:
        first = [int(item.ids[0]) for item in items]
        self.batches.append(first)
        self.computing.set()
        self.may_compute.wait(30)
        if 666 in first:
            raise ValueError("a bad item")
        return np.array(first, np.float32)

    def post(self, raw: FloatArray, items: Sequence[Item]) -> list[float]:
        return [float(value) for value in raw]


def items(*values: int, length: int = 10) -> list[Item]:
    return [Item(ids=np.full(length, value)) for value in values]


@asynccontextmanager
async def running(family: FakeFamily, **options: Any) -> AsyncIterator[BatchRunner[Item, float]]:
    runner: BatchRunner[Item, float] = BatchRunner(
        family, **{"max_batch_tokens": 20, "max_wait_s": 1e9, "name": "test"} | options
    )
    try:
        yield runner
    finally:
        family.may_compute.set()
        runner.close()


async def held_up(family: FakeFamily, runner: BatchRunner[Item, float]) -> Awaitable[list[float]]:
    """Return a request whose batch the model is computing, and does not finish before it may."""
    family.computing.clear()
    family.may_compute.clear()
    first = asyncio.ensure_future(runner.run(items(0)))
    await asyncio.to_thread(family.computing.wait, 30)
    return first


def in_loop(test: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    run.__name__ = test.__name__
    return run


@in_loop
async def test_results_come_back_in_order() -> None:
    family = FakeFamily()
    async with running(family) as runner:
        many = await asyncio.gather(*(runner.run(items(*range(n, n + 7))) for n in range(0, 70, 7)))
        assert many == [[float(value) for value in range(n, n + 7)] for n in range(0, 70, 7)]
        assert await runner.run([]) == []
    assert all(len(batch) <= 2 for batch in family.batches)


@in_loop
async def test_a_large_request_does_not_starve_a_small_one() -> None:
    family = FakeFamily()
    async with running(family) as runner:
        first = await held_up(family, runner)
        large = asyncio.ensure_future(runner.run(items(*range(100, 200))))
        small = asyncio.ensure_future(runner.run(items(7)))
        await asyncio.sleep(0)
        family.may_compute.set()
        assert await small == [7.0]
        assert await first == [0.0]
        assert len(await large) == 100
    assert 7 in family.batches[1]


@in_loop
async def test_what_would_wait_too_long_is_refused_with_a_time_to_come_back() -> None:
    family = FakeFamily()
    async with running(family, max_wait_s=0.0) as runner:
        await runner.run(items(1))  # measures the rate
        first = await held_up(family, runner)
        queued = asyncio.ensure_future(runner.run(items(2)))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as refused:
            await runner.run(items(3))
        assert refused.value.details["retry_after_seconds"] >= 1
        family.may_compute.set()
        assert (await first, await queued) == ([0.0], [2.0])
        assert await runner.run(items(4)) == [4.0]


@in_loop
async def test_a_cancelled_request_is_not_computed() -> None:
    family = FakeFamily()
    async with running(family) as runner:
        first = await held_up(family, runner)
        cancelled = asyncio.ensure_future(runner.run(items(5, 5, 5)))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert runner.waiting == 0
        family.may_compute.set()
        await first
        assert await runner.run(items(6)) == [6.0]
    assert family.batches == [[0], [6]]


@in_loop
async def test_a_failure_reaches_those_in_the_batch_and_no_one_after() -> None:
    family = FakeFamily()
    async with running(family) as runner:
        with pytest.raises(ValueError, match="a bad item"):
            await runner.run(items(1, 2, 666, 4, 5, 6, 7))
        assert runner.waiting == 0
        assert await runner.run(items(8)) == [8.0]

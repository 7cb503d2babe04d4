"""Calls that are shared, and never with somebody who asked too late for them."""

from __future__ import annotations

import asyncio

import pytest
from waiting import until

from mixpeek_ray.api.shared_calls import SharedCalls

pytestmark = pytest.mark.anyio


class Source:
    """Answers with how often it was asked, when it is allowed to."""

    def __init__(self) -> None:
        self.calls = 0
        self.allowed = asyncio.Event()

    async def ask(self) -> int:
        self.calls += 1
        mine = self.calls
        await self.allowed.wait()
        return mine


async def test_who_asks_at_the_same_time_shares_a_call() -> None:
    shared, source = SharedCalls[str, int](), Source()
    source.allowed.set()
    assert await asyncio.gather(*(shared.get("models", source.ask) for _ in range(5))) == [1] * 5


async def test_who_asks_while_a_call_is_under_way_shares_the_next() -> None:
    shared, source = SharedCalls[str, int](), Source()
    first = asyncio.create_task(shared.get("models", source.ask))
    await until(lambda: source.calls == 1)
    later = [asyncio.create_task(shared.get("models", source.ask)) for _ in range(5)]
    await asyncio.sleep(0)
    assert source.calls == 1
    source.allowed.set()
    assert await first == 1
    assert await asyncio.gather(*later) == [2] * 5
    assert await shared.get("models", source.ask) == 3


async def test_questions_do_not_wait_for_each_other() -> None:
    shared, slow, quick = SharedCalls[str, int](), Source(), Source()
    waiting = asyncio.create_task(shared.get("slow", slow.ask))
    quick.allowed.set()
    assert await shared.get("quick", quick.ask) == 1
    slow.allowed.set()
    assert await waiting == 1


async def test_a_caller_who_leaves_takes_nothing_from_the_others() -> None:
    shared, source = SharedCalls[str, int](), Source()
    leaving = asyncio.create_task(shared.get("models", source.ask))
    staying = asyncio.create_task(shared.get("models", source.ask))
    await until(lambda: source.calls == 1)
    leaving.cancel()
    source.allowed.set()
    assert await staying == 1


async def test_an_error_is_everyones_and_the_next_call_tries_again() -> None:
    shared, source = SharedCalls[str, int](), Source()
    source.allowed.set()

    async def fail() -> int:
        raise LookupError("gone")

    found = await asyncio.gather(*(shared.get("models", fail) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [LookupError] * 3
    assert await shared.get("models", source.ask) == 1
    assert not shared._under_way
    assert not shared._next

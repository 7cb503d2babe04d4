"""What is computed for nobody: nobody hears of its end, and it ends with its replica."""

from __future__ import annotations

import asyncio

import pytest
from waiting import until

from mixpeek_ray.core.errors import OverloadedError
from mixpeek_ray.serving import shadows
from mixpeek_ray.serving.shadows import ShadowTraffic

pytestmark = pytest.mark.anyio

MODEL = "ns_acme/m_1_0_0"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Computing:
    """Computes until it is let go; ``ended`` counts those that ended."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = self.ended = 0

    async def compute(self) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
        finally:
            self.ended += 1


async def test_those_without_a_place_are_dropped_and_told():
    computing, dropped = Computing(), []
    traffic = ShadowTraffic(dropped=dropped.append)
    for _ in range(6):
        traffic.offer(MODEL, computing.compute)
    await until(lambda: computing.begun == 4)
    assert dropped == [MODEL] * 2
    computing.gate.set()
    await until(lambda: computing.ended == 4)
    traffic.offer(MODEL, computing.compute)
    await until(lambda: computing.ended == 5)
    assert dropped == [MODEL] * 2


@pytest.mark.parametrize("failure", [OverloadedError("Too much."), ZeroDivisionError("secret input")])
async def test_failures_are_nobodys(failure, caplog):
    async def fail() -> None:
        raise failure

    traffic = ShadowTraffic(dropped=lambda _: None)
    traffic.offer(MODEL, fail)
    await until(lambda: not traffic._under_way)
    # What is counted is not told besides, and nothing repeats the inputs.
    assert len(caplog.records) == isinstance(failure, ZeroDivisionError)
    assert "secret" not in caplog.text


async def test_nothing_stays_for_ever(monkeypatch):
    monkeypatch.setattr(shadows, "_TIMEOUT_S", 0.01)
    computing = Computing()
    traffic = ShadowTraffic(dropped=lambda _: None)
    traffic.offer(MODEL, computing.compute)
    await until(lambda: computing.ended == 1)


async def test_the_end_of_the_replica_ends_them():
    computing = Computing()
    traffic = ShadowTraffic(dropped=lambda _: None)
    traffic.offer(MODEL, computing.compute)
    await until(lambda: computing.begun == 1)
    await traffic.close()
    assert computing.ended == 1

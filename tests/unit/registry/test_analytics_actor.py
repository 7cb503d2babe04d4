"""The analytics actor's class without Ray: what was acknowledged is told, also by the next one over the same store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import TrafficBatch, TrafficKey
from mixpeek_ray.analytics.report import Grouping
from mixpeek_ray.core.errors import StorageUnavailableError
from mixpeek_ray.registry.analytics import Analytics

pytestmark = pytest.mark.anyio

AT = datetime.now(UTC) - timedelta(minutes=5)
START, END = AT - timedelta(hours=1), AT + timedelta(hours=1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def over(folder: Path) -> Analytics:
    actor = Analytics.__new__(Analytics)
    # As Ray does it.
    await actor.__init__(store_url=folder.as_uri(), retention_days=30)
    return actor


def batch(source: str, sequence: int = 1, requests: int = 1, *, since_s: float = 0.0) -> TrafficBatch:
    recorder = TrafficRecorder(clock=AT.timestamp)
    for _ in range(requests):
        recorder.record(TrafficKey.of("org_a", "ns_a/m_1_0_0", 200, ""), latency_s=0.2, items=1, tokens=5)
    return TrafficBatch(source=source, sequence=sequence, rows=recorder.drain(), since_s=since_s)


async def requests(actor: Analytics, organization_id: str = "org_a") -> list[int]:
    return [model.requests for model in await actor.by_model(organization_id, None, START, END)]


async def test_batches_that_come_together_are_one_file(tmp_path):
    actor = await over(tmp_path)
    await asyncio.gather(*(actor.add(batch(f"replica{number}", requests=number)) for number in range(1, 5)))
    assert await requests(actor) == [10]
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert await requests(actor, "org_b") == []


async def test_the_next_one_knows_what_the_last_one_acknowledged(tmp_path):
    await (await over(tmp_path)).add(batch("replica", requests=3))
    again = await over(tmp_path)
    await again.add(batch("replica", requests=3))
    assert await requests(again) == [3]
    told = await again.over_time("org_a", START, END, Grouping.HOUR)
    assert told.total.count == 3
    assert told.total.p50_s == pytest.approx(0.2, rel=0.02)


async def test_what_cannot_be_written_is_not_acknowledged(tmp_path):
    actor = await over(tmp_path / "store")
    (tmp_path / "store" / "analytics").mkdir(parents=True)
    blocked = tmp_path / "store" / "analytics" / "traffic"
    blocked.write_text("in the way")
    with pytest.raises(StorageUnavailableError):
        await actor.add(batch("replica"))
    blocked.unlink()
    await actor.add(batch("replica"))
    assert await requests(actor) == [1]


async def test_what_came_of_late_is_told_by_version_without_the_store(tmp_path):
    actor = await over(tmp_path)
    late_s = AT.timestamp()
    await actor.add(batch("replica", requests=2, since_s=late_s))
    # The same again, because its acknowledgement was lost.
    await actor.add(batch("replica", requests=2, since_s=late_s))
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    groups = (("m_1_0_0",), ("m_2_0_0", "m_3_0_0"))
    assert [side.requests for side in await actor.recent("ns_a", groups, late_s - 60)] == [2, 0]
    assert [side.requests for side in await actor.recent("ns_a", groups, late_s + 1)] == [0, 0]

"""What a replica counted arrives once, whatever becomes of the calls that bring it."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from mixpeek_ray.analytics.journal import TrafficJournal
from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import TrafficBatch, TrafficKey
from mixpeek_ray.core.errors import RegistryUnavailableError
from mixpeek_ray.serving.traffic import TrafficFlusher
from mixpeek_ray.store.memory_store import MemoryStore

pytestmark = pytest.mark.anyio

KEY = TrafficKey.of("org_a", "m", 200, "")


class Handle:
    """Stands for the actor's handle: a call is lost on its way there, or on its way back."""

    def __init__(self) -> None:
        self.journal = TrafficJournal(MemoryStore(), retention=timedelta(days=30))
        self.lost: list[str] = []

    @property
    def add(self) -> Handle:
        return self

    async def remote(self, batch: TrafficBatch) -> None:
        way = self.lost.pop(0) if self.lost else None
        if way != "there":
            self.journal.append([batch])
        if way is not None:
            raise RegistryUnavailableError("It does not answer.")

    @property
    def requests(self) -> int:
        return sum(row.requests for row in self.journal.rows("org_a", start_s=0, end_s=2**40))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("lost", [[], ["there"], ["back"], ["back", "there", "back"]])
async def test_each_request_is_counted_once(lost):
    recorder, handle = TrafficRecorder(), Handle()
    exports: list[int] = []
    flusher = TrafficFlusher(recorder, handle, period_s=1e9, before=lambda: exports.append(1))
    handle.lost = list(lost)
    for _ in range(len(lost) + 1):
        recorder.record(KEY, latency_s=0.1, items=1, tokens=1)
        await flusher.flush()
    assert handle.requests == len(lost) + 1 == len(exports)


async def test_replicas_are_told_apart():
    handle = Handle()
    for _ in range(3):
        recorder = TrafficRecorder()
        recorder.record(KEY, latency_s=0.1, items=1, tokens=1)
        await TrafficFlusher(recorder, handle, period_s=1e9, before=lambda: None).flush()
    assert handle.requests == 3


async def test_a_batch_says_since_when_it_counts():
    recorder, handle = TrafficRecorder(), Handle()
    sent: list[TrafficBatch] = []
    handle.journal.append = sent.extend
    began_s = time.time()
    flusher = TrafficFlusher(recorder, handle, period_s=1e9, before=lambda: None)
    moments = []
    for _ in range(2):
        # A period without a request ends as any other does.
        await flusher.flush()
        moments.append(time.time())
        recorder.record(KEY, latency_s=0.1, items=1, tokens=1)
        await flusher.flush()
    assert [batch.sequence for batch in sent] == [1, 2]
    assert began_s <= sent[0].since_s <= moments[0] <= sent[1].since_s <= moments[1]

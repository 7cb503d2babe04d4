"""Whose items go into a batch, and how many."""

from __future__ import annotations

import numpy as np

from mixpeek_ray.batching.queue import FairQueue, Waiting
from mixpeek_ray.families.base import Item


def request(*lengths: int) -> Waiting:
    return Waiting(items=[Item(ids=np.zeros(length, np.int64)) for length in lengths])


def test_requests_take_turns() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    large, small = request(*[10] * 100), request(10, 10)
    queue.add(large)
    queue.add(small)
    batch = queue.take(50)
    assert [(slot.request is small, slot.position) for slot in batch] == [
        (False, 0),
        (True, 0),
        (False, 1),
        (True, 1),
        (False, 2),
    ]
    assert len(queue) == 1
    assert [slot.position for slot in queue.take(20)] == [3, 4]


def test_a_batch_holds_what_fits_and_at_least_one() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    queue.add(request(8_000, 5, 6, 90))
    assert [slot.position for slot in queue.take(100)] == [0]
    assert [slot.position for slot in queue.take(100)] == [1, 2]
    assert [slot.position for slot in queue.take(100)] == [3]
    assert queue.take(100) == []


def test_a_removed_request_has_no_more_turns() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    gone, stays = request(1, 1, 1), request(1)
    for each in (gone, stays):
        queue.add(each)
    queue.take(1)
    queue.remove(gone)
    queue.remove(gone)
    assert [slot.request for slot in queue.take(100)] == [stays]


def test_only_work_that_comes_first_counts_as_ahead() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    queue.add(request(*[10] * 1_000))
    queue.add(request(10, 10))
    assert queue.tokens_ahead_of(10) == 20
    assert queue.tokens_ahead_of(1_000) == 1_020
    queue.take(30)
    assert queue.tokens_ahead_of(1_000) == 1_010

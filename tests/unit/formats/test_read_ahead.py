"""Iterating ahead of the reader, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mixpeek_ray.formats.read_ahead import ReadAhead

WAIT_S = 30
DEPTH = 3


def test_items_keep_their_order_and_their_end() -> None:
    ahead = ReadAhead(iter(range(100)), depth=DEPTH)
    assert list(ahead) == list(range(100))
    assert list(ahead) == []
    ahead.close()


def test_an_error_comes_after_the_items_before_it_and_again() -> None:
    def failing() -> Iterator[int]:
        yield from range(2)
        raise OSError("lost")

    ahead = ReadAhead(failing(), depth=DEPTH)
    assert [next(ahead), next(ahead)] == [0, 1]
    for _ in range(2):
        with pytest.raises(OSError, match="lost"):
            next(ahead)
    ahead.close()


def test_items_are_made_before_they_are_asked_for() -> None:
    made = threading.Semaphore(0)

    def counted() -> Iterator[int]:
        for item in range(100):
            made.release()
            yield item

    ahead = ReadAhead(counted(), depth=DEPTH)
    assert all(made.acquire(timeout=WAIT_S) for _ in range(DEPTH))
    ahead.close()


def test_never_more_items_ahead_than_the_depth() -> None:
    asked = 0
    lead: list[int] = []

    def measured() -> Iterator[int]:
        for item in range(1_000):
            lead.append(item + 1 - asked)
            yield item

    ahead = ReadAhead(measured(), depth=DEPTH)
    for _ in range(1_000):
        asked += 1
        next(ahead)
    ahead.close()
    assert max(lead) <= DEPTH


def test_closing_ends_the_thread_wherever_it_is() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(threading.get_ident())
            yield 0

    before = threading.active_count()
    ahead = ReadAhead(endless(), depth=DEPTH)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
    assert set(made) != {threading.get_ident()}
    assert len(made) <= DEPTH + 1

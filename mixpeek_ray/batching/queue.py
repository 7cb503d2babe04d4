"""Who is next: items of many requests, taken in turn, so that a large request does not starve a small one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from mixpeek_ray.families.base import Item


@dataclass(eq=False, kw_only=True)
class Waiting:
    """A request's items, and how many of them went into batches."""

    items: Sequence[Item]
    taken: int = 0
    # Tokens of the items that were not taken yet.
    tokens_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens_left = sum(item.length for item in self.items)


RequestT = TypeVar("RequestT", bound=Waiting)


class Slot(NamedTuple, Generic[RequestT]):
    """One item of a batch: whose it is, and which of theirs."""

    request: RequestT
    position: int


class FairQueue(Generic[RequestT]):
    """Requests that wait for their turns. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._turns: deque[RequestT] = deque()

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, request: RequestT) -> None:
        """Let a request with at least one item wait."""
        self._turns.append(request)

    def remove(self, request: RequestT) -> None:
        """Forget what is left of a request; one that does not wait any more is no error."""
        if request in self._turns:
            self._turns.remove(request)

    def take(self, max_tokens: int) -> list[Slot[RequestT]]:
        """Return the next batch: one item of each request in turn, up to ``max_tokens``, but at least one item."""
        batch: list[Slot[RequestT]] = []
        tokens = 0
        while self._turns:
            request = self._turns[0]
            length = request.items[request.taken].length
            if batch and tokens + length > max_tokens:
                break
            batch.append(Slot(request, request.taken))
            tokens += length
            request.taken += 1
            request.tokens_left -= length
            self._turns.popleft()
            if request.taken < len(request.items):
                self._turns.append(request)
        return batch

    def tokens_ahead_of(self, tokens: int) -> int:
        """Return how many tokens would be computed before a new request of ``tokens`` has had all its turns."""
        return sum(min(request.tokens_left, tokens) for request in self._turns)

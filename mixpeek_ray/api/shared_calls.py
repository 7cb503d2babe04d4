"""One call for all who ask the same at the same time, none of whom hears what was true before they asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

QuestionT = TypeVar("QuestionT", bound=Hashable)
AnswerT = TypeVar("AnswerT")


class SharedCalls(Generic[QuestionT, AnswerT]):
    """At most one call at a time for each question; who asks meanwhile shares the next. Use it from one event loop.

    So many callers cost two calls at a time, and whoever has changed something sees it in the next answer.
    """

    def __init__(self) -> None:
        self._under_way: dict[QuestionT, asyncio.Task[AnswerT]] = {}
        # Those that wait for the one under way.
        self._next: dict[QuestionT, asyncio.Task[AnswerT]] = {}

    async def get(self, question: QuestionT, ask: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        """Return what ``ask`` returns, called after this was. Raises what it raises."""
        task = self._next.get(question)
        if task is None:
            task = self._next[question] = asyncio.ensure_future(self._call(question, ask))
            task.add_done_callback(_retrieve)
        # A caller who leaves does not end what others wait for.
        return await asyncio.shield(task)

    async def _call(self, question: QuestionT, ask: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        if (before := self._under_way.get(question)) is not None:
            await asyncio.wait({before})
        task = self._under_way[question] = self._next.pop(question)
        try:
            return await ask()
        finally:
            if self._under_way.get(question) is task:
                del self._under_way[question]


def _retrieve(task: asyncio.Task[AnswerT]) -> None:
    # Everyone may have left: asyncio reports an error that nobody has looked at.
    if not task.cancelled():
        task.exception()

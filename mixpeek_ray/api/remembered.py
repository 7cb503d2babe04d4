"""What the registry said, believed for a while: without it, what was answered a moment ago still is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mixpeek_ray.core.errors import MixpeekError, RegistryUnavailableError

QuestionT = TypeVar("QuestionT", bound=Hashable)
AnswerT = TypeVar("AnswerT")

# What is remembered; the oldest go first.
_MAX_REMEMBERED = 10_000
# How long a question waits for a registry that answers in milliseconds, when there is an answer to go on with.
_PATIENCE_S = 0.25


@dataclass(frozen=True, kw_only=True)
class _Answer(Generic[AnswerT]):
    value: AnswerT
    given_at: float


@dataclass(frozen=True, kw_only=True)
class _Asking(Generic[AnswerT]):
    task: asyncio.Task[AnswerT]
    since: float


class RememberedAnswers(Generic[QuestionT, AnswerT]):
    """Answers by question; each question is asked once at a time, whoever waits for it. Use it from one event loop."""

    def __init__(self, *, trust_s: float) -> None:
        """``trust_s``: how long an answer is believed."""
        self._trust_s = trust_s
        self._answers: dict[QuestionT, _Answer[AnswerT]] = {}
        self._asking: dict[QuestionT, _Asking[AnswerT]] = {}

    def last(self, question: QuestionT) -> AnswerT | None:
        """Return what was answered last, however long ago; None where nothing was, or the last answer was an error."""
        known = self._answers.get(question)
        return None if known is None else known.value

    def items(self) -> list[tuple[QuestionT, AnswerT]]:
        """Return every question with its last answer."""
        return [(question, answer.value) for question, answer in self._answers.items()]

    async def get(self, question: QuestionT, ask: Callable[[], Awaitable[AnswerT]], *, afresh: bool = False) -> AnswerT:
        """Return the answer to ``question``, with ``ask`` unless it is known; ``afresh``: whatever is known.

        While the registry is away the last answer stands. Raises what ``ask`` raises.
        """
        known = self._answers.get(question)
        if known is not None and not afresh and time.monotonic() - known.given_at < self._trust_s:
            return known.value
        asking = self._asking.get(question) or self._ask(question, ask)
        if known is not None:
            left_s = asking.since + _PATIENCE_S - time.monotonic()
            if not (await asyncio.wait({asking.task}, timeout=max(left_s, 0)))[0]:
                return known.value
        try:
            # A caller who leaves does not end what others wait for.
            return await asyncio.shield(asking.task)
        except RegistryUnavailableError:
            if known is None:
                raise
            return known.value

    def _ask(self, question: QuestionT, ask: Callable[[], Awaitable[AnswerT]]) -> _Asking[AnswerT]:
        task = asyncio.ensure_future(self._answered(question, ask))
        asking = self._asking[question] = _Asking(task=task, since=time.monotonic())
        task.add_done_callback(_retrieve)
        return asking

    async def _answered(self, question: QuestionT, ask: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        try:
            value = await ask()
        except RegistryUnavailableError:
            raise
        except MixpeekError:
            self._answers.pop(question, None)
            raise
        finally:
            del self._asking[question]
        self._answers.pop(question, None)
        self._answers[question] = _Answer(value=value, given_at=time.monotonic())
        if len(self._answers) > _MAX_REMEMBERED:
            del self._answers[next(iter(self._answers))]
        return value


def _retrieve(task: asyncio.Task[AnswerT]) -> None:
    # Everyone may have gone on with the last answer: asyncio reports an error that nobody has looked at.
    if not task.cancelled():
        task.exception()

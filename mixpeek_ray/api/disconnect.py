"""What nobody waits for any more is not computed."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import Receive

# Most answers are there sooner, even of a replica at its limit, and are spared the task that watches (30-50 us).
_WATCH_AFTER_S = 0.5


class WhileConnected:
    """Cancels what runs in its block when the client leaves; ``ClientDisconnect`` then comes out of it.

    The request's body must have been read to its end.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        """Begin to watch, in the task that is to be cancelled."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in one
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._start)

    async def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._has_left and kind is asyncio.CancelledError and not self._task.uncancel():
            raise ClientDisconnect from None

    def _start(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._until_the_client_leaves())

    async def _until_the_client_leaves(self) -> None:
        # After a body's end servers send nothing but this message.
        if (await self._receive())["type"] == "http.disconnect":
            self._has_left = True
            self._task.cancel()

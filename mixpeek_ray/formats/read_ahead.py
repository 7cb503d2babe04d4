"""An iterator that works ahead of its reader, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class _End:
    """The last thing in the queue: how the iteration ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ReadAhead(Generic[_Item]):
    """The items of ``source``, which a thread takes from it up to ``depth`` items before they are asked for.

    Order is kept, errors included: what ``source`` raised is raised after its last item, and again by later calls.
    Worth a thread where making an item releases Python's lock for long (hashing, inflating, reading). For one reader,
    which has to call ``close``.
    """

    def __init__(self, source: Iterator[_Item], *, depth: int) -> None:
        self._source = source
        self._ready: SimpleQueue[_Item | _End] = SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._closed = False
        self._end: _End | None = None
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[_Item]:
        return self

    def __next__(self) -> _Item:
        if self._end is None:
            item = self._ready.get()
            if not isinstance(item, _End):
                self._room.release()
                return item
            self._end = item
        if self._end.error is not None:
            raise self._end.error
        raise StopIteration

    def close(self) -> None:
        """End the thread, once the item that it is making is made; ``source`` is not used from then on."""
        self._closed = True
        self._room.release()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while not self._closed:
                self._room.acquire()
                if self._closed:
                    break
                self._ready.put(next(self._source))
        except StopIteration:
            pass
        except BaseException as raised:  # noqa: BLE001  # the reader's to handle, in its own thread
            error = raised
        self._ready.put(_End(error))

"""Traffic on the store: immutable Parquet files, each of which says by its name what it makes superfluous.

::

    analytics/traffic/2026-11-23T19-piece-{number}.parquet    what one flush brought
    analytics/traffic/2026-11-23T19-hour-{number}.parquet     every file of that hour up to that number, merged
    analytics/traffic/2026-11-23-day-{number}.parquet         every file of that day up to that number, by the hour

Periods are those in which the rows were written. A larger file is written whole before the smaller ones go, and hides
them from then on: so whenever the writer dies, each row is there once.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from mixpeek_ray.analytics import parquet
from mixpeek_ray.analytics.merging import merged
from mixpeek_ray.analytics.recorder import MINUTE_S
from mixpeek_ray.analytics.records import TrafficBatch, TrafficRow
from mixpeek_ray.store.base import BlobStore
from mixpeek_ray.store.layout import TRAFFIC

_HOUR_S, _DAY_S = 3_600, 86_400
# A query reads every file: so many of the hour under way are merged before it is over.
_MAX_PIECES = 60
_KEY = re.compile(re.escape(TRAFFIC) + r"(\d{4}-\d\d-\d\d(?:T\d\d)?)-(piece|hour|day)-(\d{12})\.parquet", re.ASCII)
_LEVELS = ("piece", "hour", "day")


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file's name, taken apart."""

    # Seconds since 1970; of the hour in which its pieces were written, or the day.
    period_s: int
    # Index in ``_LEVELS``.
    level: int
    number: int

    @classmethod
    def parse(cls, key: str) -> Self | None:
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        text = match[1] if "T" in match[1] else f"{match[1]}T00"
        began = datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)
        return cls(period_s=int(began.timestamp()), level=_LEVELS.index(match[2]), number=int(match[3]))

    @property
    def key(self) -> str:
        began = datetime.fromtimestamp(self.period_s, UTC)
        text = began.strftime("%Y-%m-%d" if _LEVELS[self.level] == "day" else "%Y-%m-%dT%H")
        return f"{TRAFFIC}{text}-{_LEVELS[self.level]}-{self.number:012d}.parquet"

    @property
    def end_s(self) -> int:
        return self.period_s + (_DAY_S if _LEVELS[self.level] == "day" else _HOUR_S)

    def hides(self, other: _File) -> bool:
        """Tell whether this file has all that ``other`` has."""
        return (
            self.level > 0
            and self.period_s <= other.period_s < self.end_s
            and self.number >= other.number
            and (self.level, self.number) > (other.level, other.number)
            and self.level >= other.level
        )


class TrafficJournal:
    """Appends, merges, forgets and reads traffic; its only writer. Any thread may use it; every call blocks."""

    def __init__(self, store: BlobStore, *, retention: timedelta, clock: Callable[[], float] = time.time) -> None:
        """``clock``: seconds since 1970."""
        self._store = store
        self._retention = retention
        self._clock = clock
        self._lock = threading.Lock()
        self._last_number: int | None = None
        # The last batch of each source that is on the store.
        self._sources: dict[str, int] = {}

    def append(self, batches: Sequence[TrafficBatch]) -> None:
        """Put batches on the store, those that are not there yet; none of them is when it raises.

        Raises ``StorageUnavailableError`` and ``DiskFullError``; then the same batches may come again.
        """
        with self._lock:
            number = self._next_number()
            new = [batch for batch in batches if batch.sequence > self._sources.get(batch.source, 0)]
            if not new:
                return
            sources = _latest((batch.source, batch.sequence) for batch in new)
            rows = merged((row for batch in new for row in batch.rows), period_s=MINUTE_S)
            now_s = int(self._clock())
            piece = _File(period_s=now_s - now_s % _HOUR_S, level=_LEVELS.index("piece"), number=number)
            self._store.put(piece.key, parquet.encode(rows, sources))
            self._last_number = number
            self._sources |= sources

    def tidy(self) -> None:
        """Merge what is over, and remove what is older than the retention. Raises ``StorageUnavailableError``."""
        with self._lock:
            now_s = int(self._clock())
            oldest_s = now_s - int(self._retention.total_seconds())
            files = self._files()
            for file in files:
                if file.end_s <= oldest_s or any(other.hides(file) for other in files):
                    self._store.delete(file.key)
            visible = [file for file in _visible(files) if file.end_s > oldest_s]
            for hour_s in sorted({file.period_s for file in visible if file.level == 0}):
                pieces = [file for file in visible if file.level < 2 and file.period_s == hour_s]
                if hour_s + _HOUR_S <= now_s or len(pieces) > _MAX_PIECES:
                    self._merge(pieces, level=1, period_s=hour_s, row_period_s=MINUTE_S)
            visible = _visible(self._files())
            for day_s in sorted({file.period_s - file.period_s % _DAY_S for file in visible if file.level < 2}):
                # The day before stays by the minute, and its hours remember their sources.
                if day_s + 2 * _DAY_S <= now_s:
                    parts = [file for file in visible if day_s <= file.period_s < day_s + _DAY_S]
                    self._merge(parts, level=2, period_s=day_s, row_period_s=_HOUR_S)

    def rows(self, organization_id: str, *, start_s: int, end_s: int) -> list[TrafficRow]:
        """Return an organisation's rows that began from ``start_s`` up to before ``end_s`` (seconds since 1970).

        Raises ``StorageUnavailableError``.
        """
        with self._lock:
            # A row is written after it began, perhaps much later: no file is too new.
            return [
                row
                for file in _visible(self._files())
                if file.end_s > start_s
                for row in parquet.decode(
                    self._store.read(file.key), organization_id=organization_id, start_s=start_s, end_s=end_s
                )
            ]

    def _merge(self, files: Sequence[_File], *, level: int, period_s: int, row_period_s: int) -> None:
        contents = [self._store.read(file.key) for file in files]
        whole = _File(period_s=period_s, level=level, number=max(file.number for file in files))
        rows = merged((row for data in contents for row in parquet.decode(data)), period_s=row_period_s)
        sources = _latest(item for data in contents for item in parquet.sources_of(data).items())
        self._store.put(whole.key, parquet.encode(rows, sources))
        for file in files:
            if file != whole:
                self._store.delete(file.key)

    def _next_number(self) -> int:
        if self._last_number is None:
            files = self._files()
            # What a replica sends again was sent a moment ago: days are too old to have it.
            contents = (self._store.read(file.key) for file in _visible(files) if file.level < 2)
            self._sources = _latest(item for data in contents for item in parquet.sources_of(data).items())
            self._last_number = max((file.number for file in files), default=0)
        return self._last_number + 1

    def _files(self) -> list[_File]:
        parsed = (_File.parse(blob.key) for blob in self._store.list(TRAFFIC))
        return [file for file in parsed if file is not None]


def _visible(files: Sequence[_File]) -> list[_File]:
    return [file for file in files if not any(other.hides(file) for other in files)]


def _latest(items: Iterable[tuple[str, int]]) -> dict[str, int]:
    latest: dict[str, int] = {}
    for source, sequence in items:
        latest[source] = max(sequence, latest.get(source, 0))
    return latest

"""Traffic on the store: each row once, whenever the writer dies, and no longer than it shall stay."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from datetime import timedelta

import pyarrow.parquet as pq
import pytest

from mixpeek_ray.analytics import merging, parquet
from mixpeek_ray.analytics.journal import TrafficJournal
from mixpeek_ray.analytics.records import OTHER, TrafficBatch, TrafficKey, TrafficRow
from mixpeek_ray.core.errors import StorageUnavailableError
from mixpeek_ray.store.memory_store import MemoryStore

DAY_S, HOUR_S = 86_400, 3_600
START_S = 20_000 * DAY_S
ALWAYS = {"start_s": 0, "end_s": 2**40}


class Clock:
    def __init__(self) -> None:
        self.now_s = float(START_S)

    def __call__(self) -> float:
        return self.now_s


class DyingStore(MemoryStore):
    """A store whose process dies at one of its changes: nothing is changed from then on."""

    changes_left: int | None = None

    def _change(self) -> None:
        if self.changes_left is not None:
            if not self.changes_left:
                raise StorageUnavailableError("The writer is dead.")
            self.changes_left -= 1

    def put(self, key: str, data: bytes) -> None:
        self._change()
        super().put(key, data)

    def delete(self, key: str) -> None:
        self._change()
        super().delete(key)


def row(began_s: int, *, organization: str = "org_a", model: str = "m", requests: int = 1) -> TrafficRow:
    return TrafficRow(
        began_s=began_s,
        key=TrafficKey.of(organization, model, 200, ""),
        requests=requests,
        items=2 * requests,
        tokens=3 * requests,
        latency_s=0.5 * requests,
        max_latency_s=0.5,
        latencies=((600, requests),),
    )


def batch(*rows: TrafficRow, source: str = "replica", sequence: int = 1) -> TrafficBatch:
    return TrafficBatch(source=source, sequence=sequence, rows=rows)


def journal_over(store: MemoryStore, clock: Clock, days: int = 30) -> TrafficJournal:
    return TrafficJournal(store, retention=timedelta(days=days), clock=clock)


def requests(journal: TrafficJournal, organization: str = "org_a") -> int:
    return sum(found.requests for found in journal.rows(organization, **ALWAYS))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def kept(store: MemoryStore, kind: str) -> int:
    return sum(f"-{kind}-" in blob.key for blob in store.list("analytics/"))


def test_rows_come_back_as_they_were_to_their_organisation_only(clock):
    journal = journal_over(MemoryStore(), clock)
    mine = row(START_S, requests=3)
    journal.append([batch(mine, row(START_S, organization="org_b"))])
    assert journal.rows("org_a", **ALWAYS) == [mine]
    assert journal.rows("org_a", start_s=START_S, end_s=START_S + 60) == [mine]
    assert journal.rows("org_a", start_s=START_S + 60, end_s=2**40) == []
    assert journal.rows("org_a", start_s=0, end_s=START_S) == []


def test_a_batch_that_comes_again_is_counted_once_also_after_a_restart_and_a_merge(clock):
    store = MemoryStore()
    first = batch(row(START_S))
    journal_over(store, clock).append([first])
    restarted = journal_over(store, clock)
    restarted.append([first, batch(row(START_S), source="another")])
    assert requests(restarted) == 2
    clock.now_s += HOUR_S
    restarted.tidy()
    assert (kept(store, "piece"), kept(store, "hour")) == (0, 1)
    again = journal_over(store, clock)
    again.append([first])
    again.append([batch(row(START_S), sequence=2)])
    assert requests(again) == 3


def test_hours_and_days_are_merged_and_say_the_same(clock):
    store = MemoryStore()
    journal = journal_over(store, clock)
    sequence = 0
    for _ in range(3 * 24):
        for _ in range(2):
            sequence += 1
            journal.append([batch(row(int(clock.now_s)), sequence=sequence)])
        clock.now_s += HOUR_S
        journal.tidy()
    assert requests(journal) == 144
    assert (kept(store, "piece"), kept(store, "hour"), kept(store, "day")) == (0, 24, 2)
    (first, *_) = sorted(journal.rows("org_a", **ALWAYS), key=lambda found: found.began_s)
    assert (first.began_s, first.requests, first.items, first.tokens) == (START_S, 2, 4, 6)
    assert (first.latency_s, first.max_latency_s, first.latencies) == (1.0, 0.5, ((600, 2),))


def test_the_hour_under_way_is_merged_when_it_has_many_pieces(clock):
    store = MemoryStore()
    journal = journal_over(store, clock)
    for sequence in range(1, 200):
        journal.append([batch(row(START_S), sequence=sequence)])
        journal.tidy()
        assert kept(store, "piece") <= 60
    assert requests(journal) == 199


@pytest.mark.parametrize("survived", range(12))
def test_a_writer_that_dies_while_it_merges_loses_and_doubles_nothing(clock, survived):
    store = DyingStore()
    journal = journal_over(store, clock)
    for sequence in range(1, 5):
        journal.append([batch(row(int(clock.now_s)), sequence=sequence)])
        clock.now_s += HOUR_S / 2
    clock.now_s += 2 * DAY_S
    store.changes_left = survived
    with contextlib.suppress(StorageUnavailableError):
        journal.tidy()
    store.changes_left = None
    restarted = journal_over(store, clock)
    assert requests(restarted) == 4
    restarted.append([batch(row(int(clock.now_s)), sequence=5)])
    restarted.tidy()
    assert requests(restarted) == 5
    assert (kept(store, "hour"), kept(store, "day")) == (0, 1)


def test_a_failed_append_leaves_nothing_and_may_be_made_again(clock):
    store = DyingStore()
    journal = journal_over(store, clock)
    store.changes_left = 0
    with pytest.raises(StorageUnavailableError):
        journal.append([batch(row(START_S))])
    store.changes_left = None
    assert requests(journal) == 0
    journal.append([batch(row(START_S))])
    assert requests(journal) == 1


def test_what_is_too_old_goes(clock):
    store = MemoryStore()
    journal = journal_over(store, clock, days=3)
    journal.append([batch(row(START_S))])
    clock.now_s += 3 * DAY_S
    journal.tidy()
    assert requests(journal) == 1
    clock.now_s += 2 * DAY_S
    journal.tidy()
    assert list(store.list("analytics/")) == []


def test_the_rarest_models_of_a_namespace_become_one(clock, monkeypatch):
    monkeypatch.setattr(merging, "MAX_MODELS", 2)
    journal = journal_over(MemoryStore(), clock)
    rows = [row(START_S, model=f"m{number}", requests=number) for number in (3, 1, 4, 2)]
    journal.append([batch(*rows, row(START_S, organization="org_b", model="m1"))])
    found = {one.key.model_name: one.requests for one in journal.rows("org_a", **ALWAYS)}
    assert found == {"m4": 4, "m3": 3, OTHER: 3}
    assert requests(journal, "org_b") == 1


def test_files_of_others_are_left_alone(clock):
    store = MemoryStore()
    store.put("analytics/traffic/notes.txt", b"hands off")
    journal = journal_over(store, clock, days=1)
    journal.append([batch(row(START_S))])
    clock.now_s += 9 * DAY_S
    journal.tidy()
    assert [blob.key for blob in store.list("analytics/")] == ["analytics/traffic/notes.txt"]


def test_shadow_requests_stay_apart_on_the_store_and_in_merged_files(clock):
    journal = journal_over(MemoryStore(), clock)
    shadow = row(START_S)
    shadow = replace(shadow, key=replace(shadow.key, is_shadow=True))
    journal.append([batch(row(START_S), shadow, shadow)])
    clock.now_s += 3 * DAY_S
    journal.tidy()
    found = {one.key.is_shadow: one.requests for one in journal.rows("org_a", **ALWAYS)}
    assert found == {False: 1, True: 2}


def test_files_from_before_there_were_shadow_requests_are_read():
    written = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(parquet.encode([row(START_S)], {}))).drop_columns("shadow"), written)
    assert parquet.decode(written.getvalue()) == [row(START_S)]

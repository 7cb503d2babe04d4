"""What stays open, what is closed, and that nobody in the middle of a request notices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from servable_cases import ref
from waiting import until

from mixpeek_ray.batching.observer import Batch, Unobserved
from mixpeek_ray.core.errors import InvalidWeightsError, ValidationError
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.servables.base import Parameters, Servable, ServableRef
from mixpeek_ray.servables.pool import LoadedServable, ServablePool

GIVEN = {"given": np.ones((2, 3), dtype=np.float32)}


class Notes(Unobserved):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.shared: list[tuple[str, str, int]] = []

    def computed(self, batch: Batch) -> None:
        self.batches.append(batch)

    def loaded(self, model: str, *, seconds: float, shared_bytes: int) -> None:
        assert seconds > 0
        self.shared.append(("loaded", model, shared_bytes))

    def unloaded(self, model: str, *, shared_bytes: int) -> None:
        self.shared.append(("unloaded", model, shared_bytes))


class Loads:
    """Loads the same graph for everyone, a megabyte each, and counts."""

    def __init__(self, servable: Servable) -> None:
        self._servable = servable
        self.names: list[str] = []
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.notes = Notes()
        self._bytes = 0

    def load(self, wanted: ServableRef) -> LoadedServable:
        self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        self.names.append(wanted.model_id)
        self._bytes += 1_000_000
        return LoadedServable(servable=self._servable, shared_bytes=12)

    def measure(self) -> int:
        return self._bytes

    def pool(self, *, max_models: int = 100, max_private_bytes: int = 10**9) -> ServablePool:
        return ServablePool(
            self.load,
            max_models=max_models,
            max_private_bytes=max_private_bytes,
            max_wait_s=1e9,
            measure=self.measure,
            observer=self.notes,
        )


@pytest.fixture
def loads(graph: Callable[..., Servable]) -> Loads:
    return Loads(graph())


def model(number: int) -> ServableRef:
    return ref(ModelKind.ONNX, name=f"m{number}")


async def ask(pool: ServablePool, wanted: ServableRef) -> None:
    async with pool.use(wanted) as opened:
        found = await opened.compute(GIVEN, Parameters())
    np.testing.assert_array_equal(found["result"], GIVEN["given"] * 2)


@pytest.mark.parametrize("bounds", [{"max_models": 2}, {"max_private_bytes": 2_000_000}], ids=["count", "bytes"])
def test_what_was_used_last_stays(loads: Loads, bounds: dict[str, int]) -> None:
    async def check() -> None:
        pool = loads.pool(**bounds)
        for number in (1, 2, 1, 3, 1):
            await ask(pool, model(number))
        assert {found.model_id for found in pool.open()} == {"m1_1_0_0", "m3_1_0_0"}
        await pool.close()

    asyncio.run(check())
    assert loads.names == ["m1_1_0_0", "m2_1_0_0", "m3_1_0_0"]


def test_a_model_in_use_is_not_closed_for_another(loads: Loads) -> None:
    async def check() -> None:
        pool = loads.pool(max_models=1)
        async with pool.use(model(1)) as opened:
            await ask(pool, model(2))
            await ask(pool, model(1))
            await opened.compute(GIVEN, Parameters())
        await pool.close()

    asyncio.run(check())
    assert loads.names == ["m1_1_0_0", "m2_1_0_0"]


def test_a_retired_model_answers_whom_it_let_in_and_is_opened_anew_for_the_next(loads: Loads) -> None:
    async def check() -> None:
        pool = loads.pool()
        async with pool.use(model(1)) as opened:
            pool.retire(model(1))
            assert not pool.open()
            await ask(pool, model(1))
            await opened.compute(GIVEN, Parameters())
        await pool.close()

    asyncio.run(check())
    assert loads.names == ["m1_1_0_0", "m1_1_0_0"]


def test_other_contents_take_the_name_over(loads: Loads) -> None:
    async def check() -> None:
        pool = loads.pool()
        await ask(pool, model(1))
        other = replace(model(1), content="1" * 64)
        await ask(pool, other)
        assert pool.open() == (other,)
        pool.retire(model(1))
        assert pool.open() == (other,)
        await pool.close()

    asyncio.run(check())


def test_callers_of_one_model_share_one_load(loads: Loads) -> None:
    async def check() -> None:
        pool = loads.pool()
        loads.gate.clear()
        tasks = [asyncio.create_task(ask(pool, model(1))) for _ in range(5)]
        await until(lambda: len(pool.open()) == 1)
        tasks[0].cancel()
        loads.gate.set()
        assert await asyncio.gather(*tasks[1:]) == [None] * 4
        await pool.close()

    asyncio.run(check())
    assert len(loads.names) == 1


def test_a_failed_load_is_tried_again(loads: Loads) -> None:
    async def check() -> None:
        pool = loads.pool()
        loads.failure = InvalidWeightsError("no")
        with pytest.raises(InvalidWeightsError):
            await ask(pool, model(1))
        loads.failure = None
        await ask(pool, model(1))
        await pool.close()

    asyncio.run(check())


def test_batches_loads_and_ends_are_told(loads: Loads) -> None:
    async def check() -> None:
        pool = loads.pool(max_models=1)
        for number in (1, 2, 2):
            await ask(pool, model(number))
        await until(lambda: len(loads.notes.batches) == 3)
        assert sorted(loads.notes.shared) == [
            ("loaded", "ns_acme/m1_1_0_0", 12),
            ("loaded", "ns_acme/m2_1_0_0", 12),
            ("unloaded", "ns_acme/m1_1_0_0", 12),
        ]
        loads.failure = InvalidWeightsError("no")
        with pytest.raises(InvalidWeightsError):
            await ask(pool, model(3))
        await pool.close()

    asyncio.run(check())
    assert [batch.model for batch in loads.notes.batches] == ["ns_acme/m1_1_0_0", *["ns_acme/m2_1_0_0"] * 2]
    assert all((batch.items, batch.waiting) == (2, 0) and batch.waited_s >= 0 for batch in loads.notes.batches)
    assert loads.notes.shared[-1] == ("unloaded", "ns_acme/m2_1_0_0", 12)
    assert len(loads.notes.shared) == 4


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "missing"),
        ({**GIVEN, "more": GIVEN["given"]}, "none of the model's inputs"),
        ({"given": GIVEN["given"].astype(np.float64)}, "dtype"),
        ({"given": GIVEN["given"][0]}, "axes"),
        ({"given": GIVEN["given"][:, :2]}, "shape"),
        ({"given": GIVEN["given"][:0]}, "empty"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(loads: Loads, given: dict[str, np.ndarray], problem: str) -> None:
    async def check() -> None:
        pool = loads.pool()
        async with pool.use(model(1)) as opened:
            await opened.compute(given, Parameters())
        await pool.close()

    with pytest.raises(ValidationError, match=problem) as refusal:
        asyncio.run(check())
    assert refusal.value.details["field"].startswith("inputs.")

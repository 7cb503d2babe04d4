"""Requests of one model: joined where that changes nothing, each with its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from waiting import until

from mixpeek_ray.core.errors import InputTooLongError, OverloadedError, ValidationError
from mixpeek_ray.core.records import TensorSignature
from mixpeek_ray.families.base import Role
from mixpeek_ray.servables.base import InProcess, NamedArrays, Parameters, Servable, ServableSpec, Task
from mixpeek_ray.servables.runner import Runner

PARAMETERS = Parameters()


class Held(InProcess):
    """Returns each row's number, after ``open``; remembers what it was given."""

    def __init__(self, task: Task, inner: Servable | None = None) -> None:
        signature = (TensorSignature(name="given", dtype="float32", shape=("batch", None)),)
        self.spec = inner.spec if inner else ServableSpec(task=task, inputs=signature, outputs=signature)
        self._inner = inner
        self.gate = threading.Event()
        self.begun = False
        self.batches: list[np.ndarray] = []

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        self.begun = True
        self.gate.wait(30)
        self.batches.append(inputs["given"])
        if (inputs["given"] < 0).any():
            row = int(np.argmax((inputs["given"] < 0).any(axis=1)))
            raise InputTooLongError("Too long.", index=row)
        return self._inner.compute(inputs, parameters) if self._inner else {"given": inputs["given"] + 1}


def rows(*numbers: float, width: int = 3) -> NamedArrays:
    return {"given": np.repeat(np.array(numbers, dtype=np.float32)[:, None], width, axis=1)}


def run(servable: Held, asked: Callable[[Runner], Awaitable[Any]], *, max_wait_s: float = 1e9) -> Any:
    async def running() -> Any:
        runner = Runner(servable, max_wait_s=max_wait_s, name="tiny")
        try:
            return await asked(runner)
        finally:
            servable.gate.set()
            await asyncio.to_thread(runner.close)

    return asyncio.run(running())


async def behind_one(runner: Runner, servable: Held, *requests: tuple[NamedArrays, Parameters]) -> list[Any]:
    """Return the outcomes of requests that waited together while another was computed."""
    first = asyncio.create_task(runner.run(rows(100.0), PARAMETERS))
    await until(lambda: servable.begun)
    tasks = [asyncio.create_task(runner.run(*request)) for request in requests]
    await until(lambda: runner.waiting == len(tasks))
    servable.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_waiting_requests_of_texts_are_computed_together_and_told_apart() -> None:
    servable = Held(Task.EMBEDDING)
    given = [(rows(1, 2), PARAMETERS), (rows(3), PARAMETERS), (rows(4, 5, 6), PARAMETERS)]
    found = run(servable, lambda runner: behind_one(runner, servable, *given))
    for (inputs, _), outcome in zip(given, found, strict=True):
        np.testing.assert_array_equal(outcome["given"], inputs["given"] + 1)
    assert [len(batch) for batch in servable.batches] == [1, 6]


@pytest.mark.parametrize(
    "other", [(rows(3), Parameters(role=Role.QUERY)), (rows(3, width=2), PARAMETERS)], ids=["parameters", "shape"]
)
def test_what_does_not_fit_is_computed_apart(other: tuple[NamedArrays, Parameters]) -> None:
    servable = Held(Task.EMBEDDING)
    found = run(servable, lambda runner: behind_one(runner, servable, (rows(1), PARAMETERS), other))
    assert len(servable.batches) == 3
    np.testing.assert_array_equal(found[1]["given"], other[0]["given"] + 1)


def test_a_large_request_does_not_hold_up_a_small_one() -> None:
    servable = Held(Task.EMBEDDING)
    large = rows(*range(50))
    found = run(servable, lambda runner: behind_one(runner, servable, (large, PARAMETERS), (rows(7), PARAMETERS)))
    np.testing.assert_array_equal(found[0]["given"], large["given"] + 1)
    together = next(batch for batch in servable.batches if 7.0 in batch and len(batch) > 1)
    assert len(together) < 50


def test_one_callers_fault_is_not_the_others() -> None:
    servable = Held(Task.EMBEDDING)
    given = [(rows(1, 2), PARAMETERS), (rows(1, 1, -1), PARAMETERS)]
    good, bad = run(servable, lambda runner: behind_one(runner, servable, *given))
    np.testing.assert_array_equal(good["given"], rows(2, 3)["given"])
    assert isinstance(bad, InputTooLongError)
    assert bad.details["index"] == 2


def test_an_index_counts_from_the_requests_first_row_whatever_was_computed_before() -> None:
    servable = Held(Task.EMBEDDING)
    bad = rows(*[1] * 40, -1)
    _, found = run(servable, lambda runner: behind_one(runner, servable, (rows(7), PARAMETERS), (bad, PARAMETERS)))
    assert isinstance(found, InputTooLongError)
    assert found.details["index"] == 40


def test_rows_of_a_graph_are_joined_once_that_was_seen_to_change_nothing(graph: Callable[..., Servable]) -> None:
    servable = Held(Task.TENSORS, graph())
    given = [(rows(1, 2), PARAMETERS), (rows(3), PARAMETERS)]

    async def twice(runner: Runner) -> list[Any]:
        first = await behind_one(runner, servable, *given)
        servable.batches.clear()
        servable.gate.clear()
        servable.begun = False
        return [first, await behind_one(runner, servable, *given)]

    for found in run(servable, twice):
        for (inputs, _), outcome in zip(given, found, strict=True):
            np.testing.assert_array_equal(outcome["result"], inputs["given"] * 2)
    assert [len(batch) for batch in servable.batches] == [1, 3]


def test_a_graph_that_computes_across_rows_is_never_joined(graph: Callable[..., Servable]) -> None:
    servable = Held(Task.TENSORS, graph(across_rows=True))
    given = [(rows(1, 2), PARAMETERS), (rows(3), PARAMETERS)]

    async def twice(runner: Runner) -> list[Any]:
        first = await behind_one(runner, servable, *given)
        servable.gate.clear()
        servable.begun = False
        return [first, await behind_one(runner, servable, *given)]

    for pair, single in run(servable, twice):
        np.testing.assert_array_equal(pair["result"], rows(-0.5, 0.5)["given"])
        np.testing.assert_array_equal(single["result"], rows(0)["given"])


def test_a_graph_of_fixed_size_is_computed_one_request_at_a_time(graph: Callable[..., Servable]) -> None:
    servable = Held(Task.TENSORS, graph(axes=(1, 3)))
    given = [(rows(1), PARAMETERS), (rows(2), PARAMETERS)]
    found = run(servable, lambda runner: behind_one(runner, servable, *given))
    np.testing.assert_array_equal(found[1]["result"], rows(4)["given"])
    assert [len(batch) for batch in servable.batches] == [1, 1, 1]


def test_what_a_graph_fails_on_is_the_callers_to_correct(graph: Callable[..., Servable]) -> None:
    servable = Held(Task.TENSORS, graph())
    servable.gate.set()
    with pytest.raises(ValidationError, match="fails on these inputs"):
        run(servable, lambda runner: runner.run(rows(1, width=2), PARAMETERS))


def test_a_long_queue_refuses_more() -> None:
    servable = Held(Task.EMBEDDING)

    async def crowded(runner: Runner) -> list[Any]:
        tasks = [asyncio.create_task(runner.run(rows(1), PARAMETERS))]
        await until(lambda: servable.begun)
        tasks += [asyncio.create_task(runner.run(rows(2), PARAMETERS)) for _ in range(300)]
        await until(lambda: sum(task.done() for task in tasks) >= 300 - 256)
        servable.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    refused = [outcome for outcome in run(servable, crowded) if isinstance(outcome, OverloadedError)]
    assert len(refused) == 300 - 256
    assert refused[0].details["retry_after_seconds"] >= 1


def test_a_caller_who_left_is_not_computed_for() -> None:
    servable = Held(Task.EMBEDDING)

    async def leaving(runner: Runner) -> None:
        first = asyncio.create_task(runner.run(rows(1), PARAMETERS))
        await until(lambda: servable.begun)
        second = asyncio.create_task(runner.run(rows(2), PARAMETERS))
        await until(lambda: runner.waiting == 1)
        second.cancel()
        await until(lambda: runner.waiting == 0)
        servable.gate.set()
        await first

    run(servable, leaving)
    assert not any(2.0 in batch for batch in servable.batches)

"""Calling a model's own application: what is waited for, for how long, and what comes out when that is in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from waiting import until

from mixpeek_ray.core.errors import (
    InputTooLongError,
    MixpeekError,
    OverloadedError,
    UnavailableError,
    ValidationError,
)
from mixpeek_ray.core.records import ModelKind, ResourceRequest, TensorSignature
from mixpeek_ray.servables.base import OwnApplication, Parameters, ServableRef, ServableSpec, Task
from mixpeek_ray.serving import dedicated_models
from mixpeek_ray.serving.dedicated_models import RemoteModels
from mixpeek_ray.serving.replica_standing import Standing

OWN = OwnApplication(name="model-one", resources=ResourceRequest(num_cpus=2.0))
REF = ServableRef(
    namespace_id="ns_acme", model_id="one_1_0_0", version="1.0.0", kind=ModelKind.ONNX, content="0" * 64, own=OWN
)
SPEC = ServableSpec(
    task=Task.TENSORS,
    inputs=(TensorSignature(name="given", dtype="float32", shape=("batch", 2)),),
    outputs=(TensorSignature(name="result", dtype="float32", shape=("batch", 2)),),
)
GIVEN = {"given": np.ones((1, 2), dtype=np.float32)}


class FakeResponse:
    """A call's response as Serve's: awaited once, cancelled from outside."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome
        self._ended = asyncio.Event()
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def __await__(self) -> Iterator[Any]:
        if self._outcome is None:
            yield from self._ended.wait().__await__()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class FakeHandle:
    """An application that answers what it is told to; None: nothing yet."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Any] = {"describe": SPEC, "compute": {"result": GIVEN["given"]}}
        self.responses: list[FakeResponse] = []
        self.calls: list[str] = []
        self.is_closed = False

    async def shutdown_async(self) -> None:
        self.is_closed = True

    def outcome(self, method: str) -> Any:
        return self.outcomes[method]

    def __getattr__(self, method: str) -> Any:
        handle = self

        class Method:
            def remote(self, *_: Any) -> FakeResponse:
                handle.calls.append(method)
                handle.responses.append(FakeResponse(handle.outcome(method)))
                return handle.responses[-1]

        return Method()


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> FakeHandle:
    found = FakeHandle()
    monkeypatch.setattr(dedicated_models.serve, "get_app_handle", lambda name: found)
    monkeypatch.setattr(dedicated_models, "_LOOK_S", 0.01)
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that says what Serve and Ray answer about the application."""

    def say(standing: Standing, missing: str | None = None) -> None:
        async def answer(self: Any, application: str) -> Standing:
            assert application == OWN.name
            return standing

        monkeypatch.setattr(dedicated_models.Standings, "of", answer)
        monkeypatch.setattr(dedicated_models, "missing_now", lambda resources: missing)

    return say


async def compute(models: RemoteModels) -> Any:
    async with models.use(REF, OWN) as model:
        return await model.compute(GIVEN, Parameters())


@pytest.fixture
def models() -> RemoteModels:
    return RemoteModels(wait_s=0.05)


async def failure(models: RemoteModels) -> MixpeekError:
    with pytest.raises(MixpeekError) as caught:
        await compute(models)
    return caught.value


def test_what_it_takes_is_asked_once(handle: FakeHandle, models: RemoteModels) -> None:
    async def run() -> None:
        await asyncio.gather(*(compute(models) for _ in range(5)))
        await compute(models)
        assert sorted(handle.calls) == ["compute"] * 6 + ["describe"]

    asyncio.run(run())


def test_a_model_that_is_forgotten_leaves_nothing_behind(handle: FakeHandle, models: RemoteModels) -> None:
    async def run() -> None:
        await compute(models)
        assert models.known() == (REF,)
        models.forget(REF)
        assert models.known() == ()
        await until(lambda: handle.is_closed)
        # It may come back.
        await compute(models)

    asyncio.run(run())


def test_inputs_that_do_not_fit_go_nowhere(handle: FakeHandle, models: RemoteModels) -> None:
    async def run() -> None:
        async with models.use(REF, OWN) as model:
            with pytest.raises(ValidationError, match="given"):
                await model.compute({"given": np.ones((1, 3), dtype=np.float32)}, Parameters())

    asyncio.run(run())
    assert handle.calls == ["describe"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RayTaskError("compute", "trace", InputTooLongError("Too long.", index=3)), InputTooLongError("Too long.")),
        (ActorUnavailableError("killed", b"0" * 16), UnavailableError("")),
        (BackPressureError(256, 256), OverloadedError("")),
        (RayServeException("gone"), UnavailableError("")),
    ],
)
def test_errors_come_out_as_the_platforms_own(
    handle: FakeHandle, models: RemoteModels, raised: Exception, expected: MixpeekError
) -> None:
    handle.outcomes["compute"] = raised
    found = asyncio.run(failure(models))
    assert type(found) is type(expected)
    if isinstance(found, InputTooLongError):
        assert (found.message, found.details) == ("Too long.", {"index": 3})


def test_whoever_waits_in_vain_is_told_what_is_missing(
    handle: FakeHandle, models: RemoteModels, cluster: Callable[..., None]
) -> None:
    handle.outcomes["describe"] = None
    cluster(Standing.WAITING, "CPU: 2 needed, 0.4 free")
    found = asyncio.run(failure(models))
    assert (found.code, found.status) == ("service_unavailable", 503)
    assert "CPU: 2 needed, 0.4 free" in found.message
    assert found.details["retry_after_seconds"] > 0
    assert handle.responses[0].is_cancelled


@pytest.mark.parametrize(
    ("standing", "words"),
    [(Standing.STARTING, "still starting"), (Standing.WAITING, "still starting"), (Standing.ABSENT, "lost its")],
)
def test_nobody_waits_for_ever(
    handle: FakeHandle, models: RemoteModels, cluster: Callable[..., None], standing: Standing, words: str
) -> None:
    handle.outcomes["describe"] = None
    cluster(standing)
    assert words in asyncio.run(failure(models)).message


def test_a_replica_that_computes_is_waited_for(
    handle: FakeHandle, models: RemoteModels, cluster: Callable[..., None]
) -> None:
    """However long that takes, beyond what a start may take; a caller who leaves takes the request back."""
    cluster(Standing.RUNNING)

    async def run() -> None:
        await compute(models)
        handle.outcomes["compute"] = None
        asking = asyncio.create_task(compute(models))
        done, _ = await asyncio.wait({asking}, timeout=0.2)
        assert not done
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(run())
    assert handle.responses[-1].is_cancelled


def test_only_so_many_wait_for_a_first_replica(
    handle: FakeHandle, models: RemoteModels, cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedicated_models, "_MAX_WAITING", 2)
    handle.outcomes["describe"] = None
    cluster(Standing.RUNNING)

    async def run() -> None:
        waiting = [asyncio.create_task(compute(models)) for _ in range(2)]
        await until(lambda: handle.calls)
        with pytest.raises(OverloadedError):
            await compute(models)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())


def test_an_application_that_comes_back_answers_who_met_its_end(
    handle: FakeHandle, models: RemoteModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedicated_models, "_PAUSE_S", 0.001)
    gone = DeploymentUnavailableError(DeploymentID(name="model", app_name=OWN.name))
    found: list[Any] = [gone, gone, {"result": GIVEN["given"]}]
    monkeypatch.setattr(FakeHandle, "outcome", lambda self, method: SPEC if method == "describe" else found.pop(0))
    asyncio.run(compute(models))
    assert handle.calls == ["describe", "compute", "compute", "compute"]
    monkeypatch.setattr(dedicated_models, "_SWAP_S", 0.0)
    found[:] = [gone]
    assert isinstance(asyncio.run(failure(RemoteModels(wait_s=0.05))), UnavailableError)


def test_an_application_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch, models: RemoteModels) -> None:
    found = FakeHandle()
    refreshed: list[int] = []

    def get_app_handle(name: str) -> FakeHandle:
        if len(refreshed) < 2:
            raise RayServeException(f"no {name}")
        return found

    async def refresh(self: Any) -> None:
        refreshed.append(1)

    monkeypatch.setattr(dedicated_models.serve, "get_app_handle", get_app_handle)
    monkeypatch.setattr(dedicated_models, "_PAUSE_S", 0.001)
    monkeypatch.setattr(dedicated_models.ControlClient, "refresh", refresh)
    asyncio.run(compute(RemoteModels(wait_s=30.0)))
    assert len(refreshed) == 2

"""A dedicated replica: its model opens when it starts, and what goes wrong there is told to whoever asks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.core.records import ModelKind, ResourceRequest, TensorSignature
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.servables.base import (
    InProcess,
    NamedArrays,
    OwnApplication,
    Parameters,
    ServableRef,
    ServableSpec,
    Task,
)
from mixpeek_ray.servables.pool import LoadedServable
from mixpeek_ray.serving import dedicated_replica
from mixpeek_ray.serving.counting import ReplicaCounts
from mixpeek_ray.serving.dedicated_replica import DedicatedReplica
from mixpeek_ray.serving.opening import ServableOpener

OWN = OwnApplication(name="model-one", resources=ResourceRequest(num_cpus=2.0))
REF = ServableRef(
    namespace_id="ns_acme", model_id="one_1_0_0", version="1.0.0", kind=ModelKind.ONNX, content="0" * 64, own=OWN
)
SIGNATURE = (TensorSignature(name="given", dtype="int64", shape=("batch",)),)


class Doubling(InProcess):
    spec = ServableSpec(task=Task.TENSORS, inputs=SIGNATURE, outputs=SIGNATURE)

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        return {"given": inputs["given"] * 2}


class Sink:
    """The analytics actor's handle; nothing is counted long enough to reach it."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What opening the model gives, one after the other, the last for ever."""
    outcomes: list[Any] = [Doubling()]

    def open_model(_: ServableOpener, ref: ServableRef) -> LoadedServable:
        assert ref == REF
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return LoadedServable(servable=outcome, shared_bytes=8)

    async def connect(cls: type[ReplicaCounts], settings: Settings, *, application: str) -> ReplicaCounts:
        return ReplicaCounts(settings, Sink(), application=application)

    monkeypatch.setattr(ServableOpener, "open", open_model)
    monkeypatch.setattr(ReplicaCounts, "connect", classmethod(connect))
    monkeypatch.setattr(dedicated_replica, "ensure_registry", lambda settings: Sink())
    return outcomes


async def doubled(replica: DedicatedReplica) -> list[int]:
    found = await replica.compute({"given": np.array([1, 2])}, Parameters())
    return [int(each) for each in found["given"]]


def test_it_computes(opened: list[Any], tmp_path: Path) -> None:
    async def run() -> None:
        replica = await DedicatedReplica.open(REF, OWN, Settings(analytics_flush_s=1e9, spool_dir=tmp_path))
        assert (await replica.describe()).inputs == SIGNATURE
        assert await doubled(replica) == [2, 4]

    asyncio.run(run())


def test_a_model_that_does_not_open_is_told_and_tried_again(opened: list[Any], tmp_path: Path) -> None:
    broken = InvalidWeightsError("It cannot be opened.")
    opened[:] = [broken, broken, Doubling()]

    async def run() -> None:
        replica = await DedicatedReplica.open(REF, OWN, Settings(analytics_flush_s=1e9, spool_dir=tmp_path))
        with pytest.raises(InvalidWeightsError, match="cannot be opened"):
            await replica.describe()
        assert await doubled(replica) == [2, 4]

    asyncio.run(run())

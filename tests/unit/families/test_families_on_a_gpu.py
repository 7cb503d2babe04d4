"""Families compute on the device that their weights are on, whatever makes the batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixpeek_ray.catalog.cards import Backend, Compute, Precision
from mixpeek_ray.families.base import Item, Role, Truncate
from mixpeek_ray.families.build import build_family
from mixpeek_ray.families.networks.base import build_batch
from mixpeek_ray.families.weights import DirectoryWeights

TEXTS = ["the quick brown fox", "", "the lazy dog is over the fox"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@dataclass(frozen=True)
class Placed:
    """A weights source whose tensors are on a device."""

    path: Path
    state_dict: dict[str, torch.Tensor]


def test_a_batch_moves_as_a_whole_and_only_if_it_must() -> None:
    types = np.zeros(3, dtype=np.int64)
    batch = build_batch([Item(ids=np.arange(3), type_ids=types), Item(ids=np.arange(2))])
    assert batch.on(torch.device("cpu")) is batch
    moved = batch.on(torch.device("meta"))
    assert moved.type_ids is not None
    assert {tensor.device.type for tensor in (moved.ids, moved.positions, moved.type_ids)} == {"meta"}
    assert (moved.lengths, moved.order) == (batch.lengths, batch.order)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", list(Backend))
def test_vectors_are_those_of_the_cpu(tiny_model: Callable[..., Path], card: Any, backend: Backend) -> None:
    folder = tiny_model("bert")
    compute = Compute(backend=backend, precision=Precision.FLOAT32)
    described = replace(card("dense", dimensions=32, pooling="mean"), compute=compute)

    def embedded(device: str) -> np.ndarray:
        weights = DirectoryWeights(path=folder).state_dict
        family: Any = build_family(
            described, Placed(path=folder, state_dict={name: tensor.to(device) for name, tensor in weights.items()})
        )
        items = family.pre(TEXTS, role=Role.DOCUMENT, truncate=Truncate.END)
        return np.stack(family.post(family.core(items), items))

    np.testing.assert_allclose(embedded("cuda"), embedded("cpu"), atol=1e-4)

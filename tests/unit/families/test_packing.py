"""Copies of busy models' matrices, within a budget and by a clock of the test's own."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import pytest
import torch

from mixpeek_ray.families.networks.layers import has_one_dnn
from mixpeek_ray.families.networks.packing import CALLS_BEFORE_PACKING, BusyMatrices, PackedCopies

pytestmark = pytest.mark.skipif(not has_one_dnn(), reason="this build of torch has no oneDNN")

_WIDTH = 16
_BYTES = 4 * _WIDTH * _WIDTH


@dataclass(kw_only=True)
class Clock:
    """Seconds that pass when told."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def matrices(copies: PackedCopies) -> BusyMatrices:
    return BusyMatrices([torch.randn(_WIDTH, _WIDTH)], copies)


def work(*models: BusyMatrices) -> None:
    for _ in range(CALLS_BEFORE_PACKING):
        for model in models:
            model.used()


def test_a_model_gets_a_copy_once_it_is_busy():
    given = torch.randn(48, 32)
    model = BusyMatrices([given], PackedCopies())
    for _ in range(CALLS_BEFORE_PACKING - 1):
        assert model.used()[0] is given
    (packed,) = model.used()
    assert model.are_packed
    rows = torch.randn(3, 32)
    found = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
    assert torch.allclose(found, rows @ given.T, atol=1e-5)


def test_the_copies_of_a_process_stay_within_the_budget():
    copies = PackedCopies(2 * _BYTES + 1)
    models = [matrices(copies) for _ in range(4)]
    work(*models)
    assert sum(model.are_packed for model in models) == 2
    assert models[2].used()[0] is models[2]._shared[0]


def test_who_rests_makes_room_the_longest_first():
    clock = Clock()
    copies = PackedCopies(2 * _BYTES, clock=clock)
    first, second, third = (matrices(copies) for _ in range(3))
    work(first)
    clock.seconds = 1.0
    work(second)
    clock.seconds = 10.5
    work(third)
    assert [model.are_packed for model in (first, second, third)] == [False, True, True]
    # It asks again when it is busy again, and nobody rests.
    work(first)
    assert not first.are_packed
    clock.seconds = 30.0
    work(first)
    assert first.are_packed


def test_nobody_loses_a_copy_for_a_model_that_stays_too_large():
    clock = Clock()
    copies = PackedCopies(2 * _BYTES, clock=clock)
    small = matrices(copies)
    work(small)
    clock.seconds = 60.0
    large = BusyMatrices([torch.randn(_WIDTH, _WIDTH) for _ in range(3)], copies)
    work(large)
    assert small.are_packed
    assert not large.are_packed


def test_a_closed_model_gives_its_room_back():
    copies = PackedCopies(_BYTES)
    closed, other = matrices(copies), matrices(copies)
    work(closed)
    del closed
    gc.collect()
    work(other)
    assert other.are_packed

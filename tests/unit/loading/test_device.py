"""Weights copied to a device: equal bytes, shared storages shared, whatever the dtypes and strides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mixpeek_ray.formats.packed import DTYPE_NAMES, dtype_table, pack
from mixpeek_ray.loading import device as device_module
from mixpeek_ray.loading.device import copy_to_device

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")],
    ),
]


def every_kind_of_tensor() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(7)
    raw = torch.randint(0, 2, (16 * 12,), dtype=torch.uint8, generator=random)
    weights = {f"dtype.{name}": raw.view(dtype_table()[name]).clone() for name in DTYPE_NAMES}
    base = torch.randn(50, 40, generator=random)
    weights |= {"whole": base, "tied": base, "transposed": base.t(), "part": base[3:7, ::2]}
    weights |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    return weights


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_arrive_as_they_were(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several pieces, the last one not full.
    monkeypatch.setattr(device_module, "STAGING_BYTES", 4096)
    weights = every_kind_of_tensor()
    index = pack(weights, tmp_path / "packed")
    data = np.fromfile(tmp_path / "packed", np.uint8)
    assert len(data) % 4096

    arrived = copy_to_device(index, data, torch.device(device))

    assert list(arrived) == list(weights)
    for name, tensor in weights.items():
        assert arrived[name].device.type == device
        assert arrived[name].dtype == tensor.dtype
        assert arrived[name].shape == tensor.shape
        assert arrived[name].stride() == tensor.stride()
        same = arrived[name].cpu().contiguous().view(-1).view(torch.uint8)
        assert torch.equal(same, tensor.contiguous().view(-1).view(torch.uint8)), name
    arrived["tied"][3, 0] = 42.0
    assert arrived["whole"][3, 0] == arrived["part"][0, 0] == 42.0


@pytest.mark.parametrize("device", DEVICES)
def test_a_module_adopts_them(device: str, tmp_path: Path) -> None:
    source = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)).eval()
    index = pack(source.state_dict(), tmp_path / "packed")
    weights = copy_to_device(index, np.fromfile(tmp_path / "packed", np.uint8), torch.device(device))
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)).eval()
    module.load_state_dict(weights)
    assert module[0].weight.data_ptr() == weights["0.weight"].data_ptr()
    given = torch.randn(3, 6)
    assert torch.allclose(module(given.to(device)).cpu(), source(given), atol=1e-6)

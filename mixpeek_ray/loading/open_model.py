"""From a deployed model's packed weights to what its user works with."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.formats.packed import view
from mixpeek_ray.loading.private_view import private_view

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from mixpeek_ray.formats.base import Companion
    from mixpeek_ray.formats.packed import WeightIndex


@dataclass(frozen=True, kw_only=True)
class DeployedModel:
    """A model as the object store holds it, in this process."""

    # The archive's hash: equal hashes mean equal bytes.
    content_id: str
    kind: ModelKind
    index: WeightIndex
    # uint8, one-dimensional, shared with every worker of the node.
    data: NDArray[np.uint8]
    companions: tuple[Companion, ...]


def open_model(model: DeployedModel, device: str | torch.device | None = None) -> Any:
    """Return what ``load_namespace_model`` promises for the model's kind. Raises what the kind's opener raises."""
    match model.kind:
        case ModelKind.STATE_DICT:
            return _weights(model, device)
        case ModelKind.HUGGINGFACE:
            from mixpeek_ray.loading.huggingface import open_huggingface

            return open_huggingface(_weights(model, device), model.companions, model.content_id)
        case ModelKind.TORCHSCRIPT:
            from mixpeek_ray.loading.torchscript import open_torchscript

            module = open_torchscript(view(model.index, private_view(model.data)), model.companions)
            return module if device is None else module.to(device)
        case ModelKind.ONNX:
            from mixpeek_ray.loading.onnx_session import open_onnx

            if device is not None:
                raise ValidationError(
                    "An ONNX model takes no device: set MIXPEEK_ONNX_PROVIDERS to where it shall run.", field="device"
                )
            return open_onnx(model.index, model.data.data, model.companions, model.content_id)


def _weights(model: DeployedModel, device: str | torch.device | None) -> OrderedDict[str, torch.Tensor]:
    if device is None or str(device) == "cpu":
        return view(model.index, private_view(model.data))
    import torch

    from mixpeek_ray.loading.device import copy_to_device

    return copy_to_device(model.index, model.data, torch.device(device))

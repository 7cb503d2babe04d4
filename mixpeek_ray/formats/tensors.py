"""The rules that every tensor of an upload must meet, whatever file it came from."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from mixpeek_ray.core.errors import FormatMismatchError, InvalidWeightsError
from mixpeek_ray.formats.packed import dtype_table

if TYPE_CHECKING:
    import torch

# Models that fit an archive have a few thousand tensors; torch.load takes about 0.1 ms for each.
MAX_TENSORS = 32_768
# torch itself stops at 64 in most kernels.
MAX_RANK = 64
_MAX_NAME_BYTES = 1_024


def check_state_dict(value: Any) -> OrderedDict[str, torch.Tensor]:
    """Return ``value`` if it is a state_dict of plain tensors.

    Raises ``FormatMismatchError`` when it is something else, and ``InvalidWeightsError`` when a tensor is not dense
    CPU memory of a supported dtype or reaches outside its storage.
    """
    if not isinstance(value, dict):
        raise FormatMismatchError(
            f"The file holds a {type(value).__name__}, not a state_dict: save model.state_dict() instead."
        )
    if not value:
        raise InvalidWeightsError("The file holds no tensor: save model.state_dict() of a model with parameters.")
    if len(value) > MAX_TENSORS:
        raise InvalidWeightsError(f"The file holds {len(value)} tensors, more than the {MAX_TENSORS} allowed.")
    for name, tensor in value.items():
        _check_entry(name, tensor)
    if isinstance(value, OrderedDict):
        return value
    return OrderedDict(value)


def _check_entry(name: object, tensor: object) -> None:
    import torch

    if not isinstance(name, str) or len(name) > _MAX_NAME_BYTES:
        raise FormatMismatchError(
            f"The key {shown(name)} is not a parameter name: save model.state_dict(), whose keys are strings."
        )
    # Exact types: a subclass may compute its values instead of holding them.
    if not isinstance(tensor, torch.Tensor) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise FormatMismatchError(
            f"The key {shown(name)} holds a {type(tensor).__name__}, not a tensor: "
            "save model.state_dict() alone, without optimizer state, epoch or configuration."
        )
    check_tensor(name, tensor)


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Return if ``tensor`` is dense CPU memory within its storage; raise ``InvalidWeightsError`` otherwise."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise InvalidWeightsError(f"The tensor {shown(name)} is sparse, quantized or nested: save it as a dense one.")
    if tensor.device.type != "cpu":
        raise InvalidWeightsError(f"The tensor {shown(name)} has no data: save the model once it is initialised.")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in dtype_table():
        raise InvalidWeightsError(f"The tensor {shown(name)} has the dtype {dtype}, which is not supported.")
    if tensor.dim() > MAX_RANK:
        raise InvalidWeightsError(f"The tensor {shown(name)} has {tensor.dim()} dimensions, more than {MAX_RANK}.")
    needed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    # Holds for every tensor whose elements are its own. A stride of 0 makes a few bytes look like gigabytes, which
    # the first copy of it would then take.
    if needed > held:
        raise InvalidWeightsError(
            f"The tensor {shown(name)} spans {needed} bytes over a storage of {held}: save it with .contiguous()."
        )


def shown(name: object) -> str:
    """Return a key as an error message may show it: ASCII, at most 80 characters."""
    text = name if isinstance(name, str) else repr(name)[:200]
    return ascii(text if len(text) <= 80 else text[:77] + "...")

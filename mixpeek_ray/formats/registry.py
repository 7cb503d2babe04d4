"""The weight formats that this release reads."""

from __future__ import annotations

from mixpeek_ray.core.errors import UnsupportedFormatError
from mixpeek_ray.core.records import ModelFormat
from mixpeek_ray.formats.base import WeightFormat
from mixpeek_ray.formats.pytorch import PyTorchFormat
from mixpeek_ray.formats.safetensors import SafetensorsFormat

_FORMATS: dict[ModelFormat, WeightFormat] = {
    weight_format.model_format: weight_format for weight_format in (PyTorchFormat(), SafetensorsFormat())
}


def get_format(model_format: ModelFormat) -> WeightFormat:
    """Return the reader of ``model_format``; raise ``UnsupportedFormatError`` when this release has none."""
    try:
        return _FORMATS[model_format]
    except KeyError:
        readable = " or ".join(sorted(_FORMATS))
        raise UnsupportedFormatError(
            f"model_format={model_format} is not supported yet: upload the weights as {readable} (a state_dict).",
            field="model_format",
        ) from None

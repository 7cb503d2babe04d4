"""The weight formats, by name."""

from __future__ import annotations

from mixpeek_ray.core.records import ModelFormat
from mixpeek_ray.formats.base import WeightFormat
from mixpeek_ray.formats.huggingface import HuggingFaceFormat
from mixpeek_ray.formats.onnx_model import OnnxFormat
from mixpeek_ray.formats.pytorch import PyTorchFormat
from mixpeek_ray.formats.safetensors import SafetensorsFormat

_FORMATS: dict[ModelFormat, WeightFormat] = {
    weight_format.model_format: weight_format
    for weight_format in (PyTorchFormat(), SafetensorsFormat(), OnnxFormat(), HuggingFaceFormat())
}


def get_format(model_format: ModelFormat) -> WeightFormat:
    """Return the reader of ``model_format``."""
    return _FORMATS[model_format]

"""Where a family finds a model's tensors and small files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mixpeek_ray.core.errors import InvalidWeightsError

if TYPE_CHECKING:
    import torch

_SHARD_INDEX = "model.safetensors.index.json"


class WeightsSource(Protocol):
    """A loaded Hugging Face model: its folder of small files, and its tensors wherever they lie."""

    @property
    def path(self) -> Path:
        """Folder with ``config.json`` and the tokenizer's files."""

    @property
    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Tensors by name; a family keeps views of them and never writes."""


@dataclass(frozen=True, kw_only=True)
class DirectoryWeights:
    """The weights of a Hugging Face directory that is trusted, mapped from its own files."""

    path: Path

    @cached_property
    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Tensors by name, mapped from disk. Raises ``InvalidWeightsError`` when the directory holds none."""
        import torch
        from safetensors.torch import load_file

        if (single := self.path / "model.safetensors").is_file():
            return load_file(single)
        if (index := self.path / _SHARD_INDEX).is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return {key: tensor for name in names for key, tensor in load_file(self.path / Path(name).name).items()}
        if (pickled := self.path / "pytorch_model.bin").is_file():
            loaded: dict[str, torch.Tensor] = torch.load(pickled, map_location="cpu", weights_only=True, mmap=True)
            return loaded
        raise InvalidWeightsError(
            "The model's directory holds no weights: put model.safetensors or pytorch_model.bin there."
        )


def read_config(source: WeightsSource) -> dict[str, Any]:
    """Return the model's ``config.json``. Raises ``InvalidWeightsError`` when it is absent or no JSON object."""
    try:
        config = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidWeightsError(
            f"The model's config.json cannot be read ({type(error).__name__}): save the model with save_pretrained."
        ) from None
    if not isinstance(config, dict):
        raise InvalidWeightsError("The model's config.json is no JSON object: save the model with save_pretrained.")
    return config

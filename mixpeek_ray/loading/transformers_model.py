"""A transformers model from weights in memory, which it takes as they are."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpeek_ray.core.errors import InvalidWeightsError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# Given to whatever transformers loads: nothing from the network, no code from a directory.
LOCAL = {"local_files_only": True, "trust_remote_code": False}
# What a checkpoint may lack: heads that training starts from, and tables that are computed.
_MAX_LACKING_SHARE = 1
_MAX_LACKING_ELEMENTS = 64 * 1024**2
# from_pretrained changes torch's default dtype for the time that it builds a model in: one at a time.
loading_lock = threading.RLock()


def build_model(
    folder: Path,
    config: PreTrainedConfig,
    weights: Mapping[str, torch.Tensor],
    model_class: type[Any],
    options: Mapping[str, Any],
) -> PreTrainedModel:
    """Return what ``model_class.from_pretrained(folder)`` would, made of ``weights`` instead of the folder's.

    The model is on the CPU: weights on a GPU take a detour, for transformers places models by way of accelerate alone.
    folder: where the settings for generating lie. options: keyword arguments of ``from_pretrained``. Raises
    ``InvalidWeightsError`` when the config describes a model that the weights are far too small for.
    """
    with loading_lock:
        # An Auto class cannot load without a path; the class that it stands for can.
        concrete = check_fit(config, weights, model_class)
        is_own = concrete.config_class is None or isinstance(config, concrete.config_class)
        model: PreTrainedModel = concrete.from_pretrained(
            None,
            config=config if is_own else config.get_text_config(),
            state_dict=dict(weights),
            local_files_only=True,
            **options,
        )
    model.config.name_or_path = str(folder)
    if model.can_generate():
        # from_pretrained leaves it out without a path: which tokens begin and end a text, and which are kept out.
        location = dict.fromkeys(("cache_dir", "proxies", "token", "revision"))
        adjust: Any = model.adjust_generation_fn
        adjust(None, None, None, str(folder), force_download=False, subfolder="", **location, **LOCAL)
    return model


def check_fit(
    config: PreTrainedConfig, weights: Mapping[str, torch.Tensor], model_class: type[Any]
) -> type[PreTrainedModel]:
    """Return the class that ``model_class`` is or stands for; takes no memory for tensors.

    Raises ``InvalidWeightsError`` when a model of that class and config is far larger than the weights. What a
    checkpoint lacks, ``from_pretrained`` allocates and fills with random numbers, so a config could ask for any size.
    """
    import torch

    make = model_class.from_config if hasattr(model_class, "from_config") else model_class._from_config
    with torch.device("meta"):
        skeleton: PreTrainedModel = make(copy.deepcopy(config))
    needed = sum(tensor.numel() for tensor in [*skeleton.parameters(), *skeleton.buffers()])
    held = sum(tensor.numel() for tensor in weights.values())
    if needed - held > _MAX_LACKING_SHARE * held + _MAX_LACKING_ELEMENTS:
        raise InvalidWeightsError(
            f"The config describes a {type(skeleton).__name__} of {needed} numbers, but the weights hold {held}: "
            "upload the config that the weights were saved with."
        )
    return type(skeleton)


def named_class(config: PreTrainedConfig) -> type[Any]:
    """Return the model class that the config names, and ``AutoModel`` where transformers has no such class."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    # A class of the authors' own around an architecture of transformers, such as ColBERT's HF_ColBERT.
    return transformers.AutoModel


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the transformers configuration in ``folder``."""
    from transformers import AutoConfig

    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **LOCAL)
    return config

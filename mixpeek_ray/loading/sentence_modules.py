"""sentence-transformers models from a folder without weights: each module takes its tensors from views instead."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.formats.huggingface_modules import ModelModule
from mixpeek_ray.loading.transformers_model import build_model, check_fit, loading_lock

if TYPE_CHECKING:
    import torch

    WeightsOf = Callable[[str], Mapping[str, torch.Tensor]]

# What sentence-transformers adds to the arguments of from_pretrained to say where a model's files lie.
_LOCATION = frozenset({"subfolder", "token", "cache_dir", "revision", "local_files_only", "trust_remote_code"})
_MODEL_CLASSES = ("CrossEncoder", "MultiVectorEncoder", "SentenceTransformer", "SparseEncoder")


def load_sentence_model(
    path: Path, modules: Sequence[ModelModule], weights_of: WeightsOf, dtype: torch.dtype | None
) -> Any:
    """Return the sentence-transformers model that was saved in ``path``, in eval mode, its weights as views.

    weights_of: the tensors of a module, by its folder. Raises ``InvalidWeightsError`` for a model of an unknown kind,
    and what sentence-transformers raises.
    """
    import sentence_transformers

    settings = path / "config_sentence_transformers.json"
    # Versions before 5 name no type: there was one.
    default = "SentenceTransformer"
    name = json.loads(settings.read_bytes()).get("model_type", default) if settings.exists() else default
    if name not in _MODEL_CLASSES:
        raise InvalidWeightsError(f"The directory holds a {name!a}: use one of {', '.join(_MODEL_CLASSES)}.")
    class_names = {module.class_name for module in modules if module.class_name is not None}
    with loading_lock:
        model = getattr(sentence_transformers, name)._load_with_module_classes(
            str(path),
            {class_name: _viewing(class_name, weights_of) for class_name in class_names},
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs=None if dtype is None else {"dtype": dtype},
        )
    for module in model.modules():
        # The difference matters while a module loads, and would be in the way of save() and pickle.
        module.__class__ = getattr(module, "_library_class", type(module))
    return model.eval()


def _viewing(class_name: str, weights_of: WeightsOf) -> type[Any]:
    """Return a subclass of a library's module that takes its weights from ``weights_of``, not from files."""
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.util import import_from_string

    library_class = import_from_string(class_name)
    if issubclass(library_class, Router):
        # It has no weights, and gives the modules that it holds these classes.
        return library_class
    overrides = (
        _of_transformer(weights_of) if issubclass(library_class, Transformer) else _of_other(library_class, weights_of)
    )
    return type(library_class.__name__, (library_class,), {"_library_class": library_class, **overrides})


def _of_transformer(weights_of: WeightsOf) -> dict[str, Any]:
    from sentence_transformers.base.modules import transformer as library

    def load_model(self: Any, path: str, task: str, config: Any, _backend: str, _is_peft: bool, **options: Any) -> Any:
        folder = options.get("subfolder", "").removesuffix("/")
        weights = weights_of(folder)
        options = {name: value for name, value in options.items() if name not in _LOCATION}
        if task == "feature-extraction":
            from transformers import AutoModel

            check_fit(config, weights, AutoModel)
            # Of a model with encoder and decoder, the encoder alone; None for any other.
            encoder = self._load_encoder_only_model(None, config, state_dict=dict(weights), **options)
            if encoder is not None:
                return encoder
        auto_classes: dict[Any, Any] = {**library.TRANSFORMER_TASK_TO_AUTO_MODEL}
        model_class = auto_classes.get(task) or library._resolve_retrieval_model_class(config)
        return build_model(Path(path, folder), config, weights, model_class, options)

    return {"_load_model": load_model}


def _of_other(library_class: type[Any], weights_of: WeightsOf) -> dict[str, Any]:
    import torch

    @functools.wraps(library_class.load.__func__)
    def load(cls: type[Any], *args: Any, **options: Any) -> Any:
        # Without memory at first: its settings could name any size.
        with torch.device("meta"):
            module = library_class.load.__func__(cls, *args, **options)
        if any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers())):
            # One that fills its tensors itself, from its settings or with a copy, as WordWeights and WordEmbeddings do.
            module = library_class.load.__func__(cls, *args, **options)
            weights = weights_of(options["subfolder"].removesuffix("/"))
            module.load_state_dict(weights, strict=bool(weights), assign=True)
        return module

    def load_torch_weights(*_path: str, subfolder: str = "", model: Any = None, **_location: Any) -> Any:
        weights = weights_of(subfolder.removesuffix("/"))
        if not weights:
            raise InvalidWeightsError(f"The module {subfolder!a} has no weights: save the model again.")
        if model is None:
            return weights
        model.load_state_dict(weights, strict=True, assign=True)
        return model

    return {"load": classmethod(load), "load_torch_weights": staticmethod(load_torch_weights)}

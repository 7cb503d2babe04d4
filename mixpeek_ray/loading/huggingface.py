"""Model directories in a worker: transformers and sentence-transformers models whose weights are views.

Nothing here reaches the network or runs code from the directory, which the format has checked before it came here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpeek_ray.formats.base import Companion
from mixpeek_ray.formats.huggingface_files import CONFIG, ModelDirectory
from mixpeek_ray.formats.huggingface_modules import ModelModule, inside, list_modules
from mixpeek_ray.formats.member_paths import parse_path
from mixpeek_ray.loading.node_files import NodeFolder, node_folder
from mixpeek_ray.loading.sentence_modules import load_sentence_model
from mixpeek_ray.loading.transformers_model import LOCAL, build_model, named_class, read_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# One of them is there wherever a tokenizer, processor or feature extractor was saved.
_PREPROCESSING_FILES = (
    "tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip


class HuggingFaceModel:
    """A model directory: its weights as private views of the node's copy, its small files on this node's disk."""

    def __init__(self, state_dict: OrderedDict[str, torch.Tensor], folder: NodeFolder) -> None:
        # Tensors by name; those of a module in a folder of its own begin with it: ``2_Dense/linear.weight``.
        self.state_dict = state_dict
        # Settings and vocabularies without the weights, as from_pretrained of tokenizers and processors reads them.
        # All workers of the node read the same files, which stay for as long as this object lives.
        self.path = folder.path
        self._folder = folder

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The transformers configuration: the directory's own, or that of the first module that has one."""
        return read_config(self.path / self._transformer_folder)

    def load(self, *, dtype: torch.dtype | None = None) -> Any:
        """Return what the directory was saved from, in eval mode, its weights as views and on their device.

        With a modules.json: the ``SentenceTransformer``, ``CrossEncoder``, ``SparseEncoder`` or ``MultiVectorEncoder``
        that was saved. Without: a pair of ``model()`` and ``processor()``. ``dtype``: as for ``model``.
        """
        if self._modules[0].class_name is None:
            return self.model(dtype=dtype), self.processor()
        return load_sentence_model(self.path, self._modules, self.weights_of, dtype).to(self._device)

    def model(
        self,
        model_class: type[Any] | None = None,
        *,
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> PreTrainedModel:
        """Return the transformers model in eval mode on its weights' device, made of views where none needs conversion.

        model_class: a model class of transformers or one of its ``AutoModel…`` classes; default: the class that the
        config names, else ``AutoModel``. dtype: a dtype that is not the checkpoint's makes a private copy; default:
        the config's, else the checkpoint's, as ``from_pretrained`` does. Raises ``InvalidWeightsError`` when the config
        describes a model that the weights are far too small for, and what ``from_pretrained`` raises.
        """
        folder = self._transformer_folder
        options = {"dtype": dtype, "attn_implementation": attn_implementation}
        model: Any = build_model(
            self.path / folder,
            self.config,
            self.weights_of(folder),
            model_class or named_class(self.config),
            {name: value for name, value in options.items() if value is not None},
        )
        placed: PreTrainedModel = model.to(self._device)
        return placed

    def tokenizer(self, **options: Any) -> Any:
        """Return the tokenizer that ``AutoTokenizer`` finds in the directory; ``options`` are handed on to it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path / self._transformer_folder, **{**options, **LOCAL})

    def processor(self, **options: Any) -> Any:
        """Return the processor, tokenizer or feature extractor that ``AutoProcessor`` finds, or None if none was saved.

        ``options`` are handed on to it.
        """
        from transformers import AutoProcessor

        folder = self.path / self._transformer_folder
        if not any((folder / name).exists() for name in _PREPROCESSING_FILES):
            return None
        return AutoProcessor.from_pretrained(folder, **{**options, **LOCAL})  # type: ignore[no-untyped-call]

    def weights_of(self, folder: str) -> OrderedDict[str, torch.Tensor]:
        """Return the views of one module's weights by the names that the files in its folder give them.

        folder: relative to ``path``; "" for the directory itself.
        """
        if self._modules[0].class_name is None:
            return self.state_dict
        split = ((name.rpartition("/"), tensor) for name, tensor in self.state_dict.items())
        return OrderedDict((name, tensor) for (parent, _, name), tensor in split if parent == folder)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.state_dict.values())).device

    @cached_property
    def _directory(self) -> ModelDirectory:
        files = (path for path in self.path.rglob("*") if path.is_file())
        sizes = {path.relative_to(self.path).as_posix(): path.stat().st_size for path in files}
        return ModelDirectory(folder=self.path, sizes=sizes)

    @cached_property
    def _modules(self) -> list[ModelModule]:
        return list_modules(self._directory)

    @cached_property
    def _transformer_folder(self) -> str:
        configs = (inside(folder, CONFIG) for folder in ["", *(module.folder for module in self._modules)])
        for path in configs:
            # Pooling and Dense have a config.json too, which is not one of transformers.
            if path in self._directory and "model_type" in self._directory.read_object(path):
                return path.removesuffix(CONFIG).removesuffix("/")
        return ""


def open_huggingface(
    weights: OrderedDict[str, torch.Tensor], companions: Sequence[Companion], key: str
) -> HuggingFaceModel:
    """Return the model directory with these weights, its ``companions`` written once for all workers of this node.

    key: the hash of the directory's content. Raises ``UnsafePathError`` for a companion that would lie elsewhere.
    """

    def write(folder: Path) -> None:
        for companion in companions:
            path = folder.joinpath(*parse_path(companion.path.encode()))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(companion.content)
            # No worker may change by mistake what the others read.
            path.chmod(0o400)

    return HuggingFaceModel(weights, node_folder(f"{key}-huggingface", write))

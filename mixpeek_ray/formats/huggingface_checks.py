"""What a model directory may not hold or ask for: code, pickles that run code, and files or models from elsewhere.

transformers and sentence-transformers refuse most of it when told to; here it is refused before they see it, with the
file and the setting named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mixpeek_ray.core.errors import (
    FormatMismatchError,
    InvalidWeightsError,
    RemoteCodeNotAllowedError,
    UnsafePathError,
    UnsafePickleError,
)
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.formats.huggingface_files import is_hidden, named
from mixpeek_ray.formats.pickle_scan import scan
from mixpeek_ray.formats.tensors import shown
from mixpeek_ray.formats.zip_check import MAX_PICKLE_BYTES, read_records

_CODE = frozenset({".py", ".pyc", ".pyd", ".pyw", ".pyx", ".so", ".dll", ".dylib"})
_PICKLES = frozenset({".pkl", ".pickle", ".dill", ".joblib"})
# Endings that PyTorch's pickles have, and other files too.
_MAYBE_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt"})
# What a trainer leaves beside the model: pickles all, which nothing here or in a worker opens.
_TRAINING = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin)|rng_state(_\d+)?\.pth|random_states_\d+\.pkl"
)
# One for a bare pickle, five in a file from before PyTorch 1.6.
_PICKLES_A_FILE = 5

# Settings that fetch or run code when set. Quantization is among them because its kernels come from the Hub.
_CODE_SETTINGS = frozenset({
    "auto_map", "custom_pipelines", "custom_generate", "code_revision", "trust_remote_code", "use_kernels",
    "kernel_config", "allow_all_kernels", "quantization_config", "compression_config",
})  # fmt: skip
# Settings that name another model, whose files would be fetched.
_OTHER_MODELS = frozenset({"tokenizer_name_or_path", "base_model_name_or_path", "use_pretrained_backbone"})
_IMPLEMENTATION = re.compile(r".*(attn|experts)_implementation(_internal)?")
# The ones that are part of transformers and torch: any other is, or may become, a kernel from the Hub.
_IMPLEMENTATIONS = frozenset({"eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm"})
_PATH = re.compile(r"(.*_)?(files?|path|dir|folder|filename)")
# Written by save_pretrained with the paths of the machine that saved; transformers 5 records and never opens them.
_RECORDED = frozenset({"name_or_path", "_name_or_path", "special_tokens_map_file"})
_ACTIVATION = re.compile(r"(.*_)?activation_(fn|function)")
_OWN_ACTIVATION = re.compile(r"\w+|torch\.nn(\.\w+)+", re.ASCII)
_CLASS = re.compile(r"\w+|sentence_transformers(\.\w+)+", re.ASCII)
# What sentence-transformers hands on to from_pretrained, and what of it would lead elsewhere.
_ARGUMENTS = re.compile(r"(model|tokenizer|processor|config)_(args|kwargs)")
_OWN_ARGUMENTS = frozenset({
    "adapter_kwargs", "cache_dir", "device_map", "gguf_file", "key_mapping", "offload_folder", "proxies", "revision",
    "state_dict", "subfolder", "token", "tokenizer_type", "variant", "weights_only",
})  # fmt: skip
# Each layer, head or expert is a Python object before the first tensor is looked at; the deepest models have 1,000.
_COUNT = re.compile(r"(.*_)?(layers?|depths?|blocks|stages|experts|heads?)")
_MAX_COUNT = 4_096
# transformers makes a dictionary of that many names; the largest known has 21,841.
_LABEL_COUNT = re.compile(r"(num|n)_(labels|classes)")
_MAX_LABELS = 1_048_576
# Below these, names are the user's own.
_FREE_NAMES = frozenset({"id2label", "label2id", "vocab", "added_tokens_decoder"})
_WEIGHT_NAMES = ("model.safetensors", "model.safetensors.index.json")


def refuse_code_files(folder: Path, files: Sequence[FileInfo]) -> None:
    """Raise if any of ``files`` is code or a pickle that would run code, whether something would read it or not.

    Raises ``RemoteCodeNotAllowedError`` or ``UnsafePickleError``, naming what was found.
    """
    paths = [file.path for file in files if not PurePosixPath(file.path).name.startswith("._")]
    code = [path for path in paths if _suffix(path) in _CODE]
    if code:
        raise RemoteCodeNotAllowedError(
            f"The archive holds code ({named(code)}), which is never run: remove it, and use an architecture that "
            "transformers has built in."
        )
    unknown = [path for path in paths if not _TRAINING.fullmatch(PurePosixPath(path).name)]
    pickles = [path for path in unknown if _suffix(path) in _PICKLES]
    if pickles:
        raise UnsafePickleError(f"The archive holds pickles ({named(pickles)}), which can run code: remove them.")
    for path in unknown:
        if _suffix(path) in _MAYBE_PICKLES and not is_hidden(path):
            _refuse_unsafe_pickle(folder / path)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _refuse_unsafe_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                file.seek(0)
                scan(file.read(MAX_PICKLE_BYTES), pickles=_PICKLES_A_FILE)
                return
            for record in read_records(path).values():
                if record.name.endswith(".pkl"):
                    file.seek(record.start)
                    scan(file.read(min(record.size, MAX_PICKLE_BYTES)))
    except InvalidWeightsError:
        # No pickle, or none that can be read: what is read as weights is checked again, to the last byte.
        return


def check_settings(path: str, content: Any) -> None:
    """Raise if the settings file at ``path`` asks for code, another model or a file from elsewhere.

    Raises ``RemoteCodeNotAllowedError``, ``UnsafePathError``, ``InvalidWeightsError`` for counts beyond any model's,
    and ``FormatMismatchError`` for weights under another name.
    """
    for key, value in _entries(content):
        if key in _CODE_SETTINGS and value:
            _refuse_code(path, key, "asks for code that is not part of transformers")
        if _ARGUMENTS.fullmatch(key) and isinstance(value, dict):
            for name in _OWN_ARGUMENTS & value.keys():
                _refuse_elsewhere(path, name)
        if key in _OTHER_MODELS and value:
            _refuse_elsewhere(path, key)
        if isinstance(value, str):
            _check_text(path, key, value)
        elif type(value) is int:
            _check_number(path, key, value)


def _check_text(path: str, key: str, value: str) -> None:
    if _IMPLEMENTATION.fullmatch(key) and value not in _IMPLEMENTATIONS:
        _refuse_code(path, key, f"is {shown(value)}: use one of {', '.join(sorted(_IMPLEMENTATIONS))}")
    if _ACTIVATION.fullmatch(key) and not _OWN_ACTIVATION.fullmatch(value):
        _refuse_code(path, key, f"is {shown(value)}, which is not part of torch.nn")
    if key in ("tokenizer_class", "processor_class") and not _CLASS.fullmatch(value):
        _refuse_code(path, key, f"is {shown(value)}, which is not part of transformers")
    if key == "transformers_weights" and value not in _WEIGHT_NAMES:
        raise FormatMismatchError(f"The weights must be named {_WEIGHT_NAMES[0]}, not {shown(value)}: rename the file.")
    # A model's own config names no file to open, but collects whatever the training program wrote into it.
    is_model_config = PurePosixPath(path).name == "config.json" and key != "path"
    if _PATH.fullmatch(key) and key not in _RECORDED and not is_model_config and not is_plain_path(value):
        raise UnsafePathError(f"In {shown(path)}, {shown(key)} leads out of the archive: remove it.")


def _check_number(path: str, key: str, value: int) -> None:
    limit = _MAX_LABELS if _LABEL_COUNT.fullmatch(key) else _MAX_COUNT if _COUNT.fullmatch(key) else None
    if limit is not None and value > limit:
        raise InvalidWeightsError(f"In {shown(path)}, {shown(key)} is {shown(value)} (limit {limit}).")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value at any depth; the items of a list under the key that holds the list."""
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, dict) and key not in _FREE_NAMES:
            # An attention implementation may be chosen for each part of a model: {"text_config": "sdpa"}.
            inherits = _IMPLEMENTATION.fullmatch(key) is not None
            waiting += [(key if inherits else name, item) for name, item in value.items()]


def is_plain_path(path: str) -> bool:
    """Tell whether ``path`` stays in the folder that it is taken from; empty is that folder itself."""
    return (
        not path.startswith(("/", "~")) and not {".", ".."} & set(path.split("/")) and not set(path) & {"\\", ":", "\0"}
    )


def _refuse_code(path: str, key: str, what: str) -> None:
    raise RemoteCodeNotAllowedError(f"In {shown(path)}, {shown(key)} {what}; code from elsewhere is never run.")


def _refuse_elsewhere(path: str, key: str) -> None:
    raise UnsafePathError(
        f"In {shown(path)}, {shown(key)} leads to another model or folder, which is never fetched: pack all files that "
        "the model needs, and remove the setting."
    )

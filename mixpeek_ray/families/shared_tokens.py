"""One tokenizer for all models of a process whose files are equal, as those of fine-tunes of one model are.

Reading one takes as long as everything else of opening a small model, and 10 MB of memory.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from weakref import WeakValueDictionary

from mixpeek_ray.families.tokens import TextTokenizer
from mixpeek_ray.families.weights import WeightsSource

# Weights, which no tokenizer is read from; of everything else it may be.
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".onnx", ".h5", ".msgpack"})

_lock = threading.Lock()
# By what they were read from; gone with the last model that uses them.
_made: WeakValueDictionary[bytes, TextTokenizer] = WeakValueDictionary()


def shared_tokenizer(source: WeightsSource) -> TextTokenizer:
    """Return the tokenizer beside the weights. Raises ``InvalidWeightsError`` when there is none that fits them."""
    key = _digest(source.path)
    with _lock:
        known = _made.get(key)
    if known is not None:
        return known
    # Not under the lock: others need not wait. Of two that are made at a time one is used.
    made = TextTokenizer(source)
    with _lock:
        return _made.setdefault(key, made)


def _digest(folder: Path) -> bytes:
    """Return a hash of the names and contents of the folder's files that are no weights."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix not in _WEIGHTS and path.is_file()):
        with path.open("rb") as file:
            whole.update(hashlib.sha256(path.name.encode()).digest())
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.digest()

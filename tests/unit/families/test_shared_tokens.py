"""Models with equal tokenizers share one."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from weakref import ref

import pytest

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.families.shared_tokens import shared_tokenizer
from mixpeek_ray.families.weights import DirectoryWeights


@pytest.fixture
def copies(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes another directory of the same model."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_model("bert"), tmp_path / name))

    return copy


def test_models_with_equal_files_share_a_tokenizer(copies: Callable[[str], Path]) -> None:
    folder = copies("fine-tune")
    # Its weights are its own.
    (folder / "model.safetensors").write_bytes(b"others")
    first = shared_tokenizer(DirectoryWeights(path=copies("first")))
    assert shared_tokenizer(DirectoryWeights(path=folder)) is first


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_any_file_that_may_matter_tells_models_apart(copies: Callable[[str], Path], name: str) -> None:
    first = shared_tokenizer(DirectoryWeights(path=copies("first")))
    folder = copies("other")
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert shared_tokenizer(DirectoryWeights(path=folder)) is not first


def test_a_tokenizer_that_does_not_fit_is_refused_every_time(copies: Callable[[str], Path]) -> None:
    folder = copies("small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 3}))
    for _ in range(2):
        with pytest.raises(InvalidWeightsError, match="do not belong together"):
            shared_tokenizer(DirectoryWeights(path=folder))


def test_a_tokenizer_goes_with_its_last_model(copies: Callable[[str], Path]) -> None:
    tokenizer = shared_tokenizer(DirectoryWeights(path=copies("first")))
    gone = ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None

"""Tiny tokenizers, and directories on their way from an archive to a worker."""

from __future__ import annotations

import mmap
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.formats.huggingface import HuggingFaceFormat
from mixpeek_ray.formats.packed import pack, view
from mixpeek_ray.loading.huggingface import HuggingFaceModel, open_huggingface

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["hello", "world", "yes", "no", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MIXPEEK_SPOOL_DIR", str(tmp_path / "spool"))
    get_settings.cache_clear()
    yield tmp_path / "spool"
    get_settings.cache_clear()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Deployed:
    """A directory after its way through the format and the packed buffer, as a worker loads it."""

    def __init__(self, folder: Path, work_dir: Path) -> None:
        files = [
            FileInfo(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size)
            for path in folder.rglob("*")
            if path.is_file()
        ]
        opened = HuggingFaceFormat().open(folder, files)
        data = work_dir / f"packed-{uuid.uuid4().hex}"
        index = pack(opened.tensors, data)
        with data.open("rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.opened = opened
        self.model: HuggingFaceModel = open_huggingface(view(index, self.memory), opened.companions, uuid.uuid4().hex)

    def is_view(self, tensor: torch.Tensor) -> bool:
        start = np.frombuffer(self.memory, np.uint8).ctypes.data
        return start <= tensor.data_ptr() < start + len(self.memory)

    def copied(self, module: torch.nn.Module) -> list[str]:
        return [name for name, tensor in module.named_parameters() if not self.is_view(tensor)]


@pytest.fixture
def deploy(tmp_path: Path) -> Callable[[Path], Deployed]:
    """Return the function that takes a directory all the way."""
    return lambda folder: Deployed(folder, tmp_path)


def wordpiece() -> Any:
    vocab = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrapped(tokenizer)


def bpe() -> Any:
    vocab = {token: number for number, token in enumerate([*SPECIAL, *LETTERS, "he", "hel", "Ġ"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("h", "e"), ("he", "l")], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    return wrapped(tokenizer)


def unigram() -> Any:
    scores = [(token, 0.0) for token in SPECIAL] + [(f"▁{w}" if len(w) > 1 else w, -2.0) for w in WORDS[:30]]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer) -> Any:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **dict(zip(names, SPECIAL, strict=True))
    )


@pytest.fixture
def tokenizers() -> dict[str, Callable[[], Any]]:
    """Return builders of tokenizers with a handful of tokens, by kind."""
    return {"wordpiece": wordpiece, "bpe": bpe, "unigram": unigram}


@pytest.fixture
def randomized() -> Callable[[Any], Any]:
    """Return a function that makes every parameter differ from what a fresh model has.

    Weights that are lost on the way must show in the outputs.
    """

    def fill(model: Any) -> Any:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return model.eval()

    return fill

"""Servables over models that the reference libraries saved."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tiny_models import MAX_TOKENS, TOKENIZERS
from transformers import BartConfig, BartForConditionalGeneration, BertConfig

from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.loading.huggingface import HuggingFaceModel
from mixpeek_ray.loading.node_files import NodeFolder
from mixpeek_ray.servables.base import Servable, ServableRef
from mixpeek_ray.servables.build import build_servable

LABELS = {0: "O", 1: "animal", 2: "colour"}


def ref(kind: ModelKind, *, name: str = "tiny", task_type: str | None = None, content: str = "0" * 64) -> ServableRef:
    return ServableRef(
        namespace_id="ns_acme", model_id=f"{name}_1_0_0", version="1.0.0", kind=kind, content=content,
        task_type=task_type,
    )  # fmt: skip


def served(folder: Path, task_type: str | None = None) -> Servable:
    """Return the servable of a Hugging Face directory."""
    opened = HuggingFaceModel(
        OrderedDict(load_file(folder / "model.safetensors")), NodeFolder(folder, os.open(folder, os.O_RDONLY))
    )
    return build_servable(opened, ref(ModelKind.HUGGINGFACE, task_type=task_type))


def texts(*given: str) -> np.ndarray:
    array = np.empty(len(given), dtype=object)
    array[:] = given
    return array


def saved(folder: Path, model_class: type[Any], **config: Any) -> Path:
    """Save a tiny BERT of this class, with its tokenizer."""
    tokenizer = TOKENIZERS["bert"]()
    tokenizer.model_max_length = MAX_TOKENS
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
    made = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, **sizes, **config)
    model = model_class(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def saved_bart(folder: Path) -> Path:
    """Save a tiny BART, with a tokenizer."""
    tokenizer = TOKENIZERS["xlm-roberta"]()
    tokenizer.model_max_length = MAX_TOKENS
    torch.manual_seed(3)
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "forced_eos_token_id": None}
    config = BartConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes, **heads, **special)
    saving = BartForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in saving.parameters():
            parameter.mul_(30.0)
    saving.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

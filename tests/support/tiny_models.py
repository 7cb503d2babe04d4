"""Tiny models of the true architectures, with random weights, as the reference libraries save them."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.catalog.catalog import parse_catalog

# Letters of several scripts, so that no test text is unknown tokens alone.
LETTERS = string.ascii_lowercase + string.digits + "éïßñאבגדשלוםעمرحباлопкдю日本語🎉🚀"
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "what",
    "is",
    "query",
    "instruct",
    "##ing",
    "##s",
]
MAX_TOKENS = 64
HIDDEN, HEADS, LAYERS = 32, 4, 2


def _wordpiece() -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *WORDS, *string.punctuation, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))})


def _unigram() -> PreTrainedTokenizerBase:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, *LETTERS.upper(), *string.punctuation]
    pieces += [f"▁{word}" for word in WORDS] + ["<mask>"]
    scores = [(piece, -float(len(LETTERS)) / (1 + len(piece))) for piece in dict.fromkeys(pieces)]
    return XLMRobertaTokenizer(vocab=scores)


def _byte_level() -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


TOKENIZERS = {"bert": _wordpiece, "xlm-roberta": _unigram, "modernbert": _byte_level}
CLASSES: dict[tuple[str, str], type[PreTrainedModel]] = {
    ("bert", "encoder"): BertModel,
    ("bert", "masked_lm"): BertForMaskedLM,
    ("bert", "classifier"): BertForSequenceClassification,
    ("xlm-roberta", "encoder"): XLMRobertaModel,
    ("xlm-roberta", "masked_lm"): XLMRobertaForMaskedLM,
    ("xlm-roberta", "classifier"): XLMRobertaForSequenceClassification,
    ("modernbert", "encoder"): ModernBertModel,
    ("modernbert", "masked_lm"): ModernBertForMaskedLM,
    ("modernbert", "classifier"): ModernBertForSequenceClassification,
}


def _config(architecture: str, vocabulary: int):
    shared = {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 48,
        "num_labels": 1,
    }
    if architecture == "bert":
        return BertConfig(**shared, max_position_embeddings=MAX_TOKENS)
    if architecture == "xlm-roberta":
        return XLMRobertaConfig(
            **shared, max_position_embeddings=MAX_TOKENS + 2, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
        )
    return ModernBertConfig(
        **shared,
        max_position_embeddings=MAX_TOKENS,
        global_attn_every_n_layers=2,
        local_attention=16,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
        classifier_pooling="cls",
    )


def _save(folder: Path, architecture: str, head: str, seed: int) -> None:
    tokenizer = TOKENIZERS[architecture]()
    tokenizer.model_max_length = MAX_TOKENS
    torch.manual_seed(seed)
    model = CLASSES[architecture, head](_config(architecture, len(tokenizer))).eval()
    with torch.no_grad():
        # As initialised, every bias is 0 and every norm 1: a forward pass that forgets one would pass.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif parameter.dim() == 1:
                parameter.normal_(1.0, 0.2)
            else:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that makes (once a session) the folder of a tiny model."""
    made: dict[tuple[str, str], Path] = {}

    def make(architecture: str, head: str = "encoder") -> Path:
        key = (architecture, head)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{architecture}-{head}")
            _save(made[key], architecture, head, seed=len(made))
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_colbert(tiny_model, tmp_path_factory) -> Path:
    """Return the folder of a tiny ColBERT, with the tensors' names of its published checkpoint."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("colbert")
    shutil.copytree(tiny_model("bert"), folder, dirs_exist_ok=True)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(16, HIDDEN, generator=torch.Generator().manual_seed(7))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def card() -> Callable[..., ModelCard]:
    """Return a function that makes a card, through the catalog's own parser."""
    import json

    def make(family: str, **fields) -> ModelCard:
        entry = {
            "name": "tiny",
            "family": family,
            "source": {"path": "unused"},
            "licence": "MIT",
            "description": "A tiny model.",
            "max_tokens": MAX_TOKENS,
            "precision": "float32",
            **fields,
        }
        return parse_catalog(json.dumps({"models": [entry]}), file_name="test.yaml")["tiny"]

    return make

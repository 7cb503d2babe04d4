"""One suite for every family: its reference library's numbers, whatever the batch, the order and the text."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from mixpeek_ray.core.errors import InputTooLongError, ValidationError
from mixpeek_ray.families.base import Item, Role, SparseVector, Truncate
from mixpeek_ray.families.build import build_family
from mixpeek_ray.families.weights import DirectoryWeights

MAX_TOKENS = 64
TOLERANCE = 1e-5
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "",
    " ",
    "What IS the query?",
    "naïve café, straße: été!",
    "🎉🚀 the 🎉",
    "שלום the מה",
    "مرحبا",
    "日本語 words",
    "\u202eover\u202c \x00 \t\n the",
    "over-long " * (10 * MAX_TOKENS // 2),
    "".join(string.punctuation),
    "[MASK] [SEP] <s> </s>",
    "x" * 300,
]
QUERY = "what is the quick query"
SIZES = (1, 2, 3, 7, 16, 33, 64)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A family under test beside the library that it is held to."""

    family: Any
    # Tokenizes texts, whatever else the family's own `pre` takes.
    pre: Callable[[Sequence[str], Truncate], Sequence[Item]]
    # One array a text.
    reference: Callable[[Sequence[str]], Sequence[np.ndarray]]

    def results(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return one array a text."""
        items = self.pre(texts, Truncate.END)
        return [as_array(result) for result in self.family.post(self.family.core(items), items)]


def as_array(result: Any) -> np.ndarray:
    if isinstance(result, SparseVector):
        assert (result.values > 0).all()
        assert (np.diff(result.indices) > 0).all()
        row = np.zeros(10_000, dtype=np.float32)
        row[result.indices] = result.values
        return row
    return np.asarray(result)


def _dense(pooling: str, architecture: str) -> Callable[..., Subject]:
    def make(tiny_model, tiny_colbert, card) -> Subject:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Normalize, Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        folder = tiny_model(architecture)
        normalize = pooling != "last"
        last = "lasttoken" if pooling == "last" else pooling
        modules = [Transformer(str(folder), max_seq_length=MAX_TOKENS), Pooling(32, pooling_mode=last)]
        reference = SentenceTransformer(modules=[*modules, *([Normalize()] if normalize else [])], device="cpu")
        described = card("dense", dimensions=32, pooling=pooling, normalize=normalize)
        family = build_family(described, DirectoryWeights(path=folder))
        return Subject(
            family=family,
            pre=lambda texts, truncate: family.pre(texts, role=Role.DOCUMENT, truncate=truncate),
            reference=lambda texts: list(reference.encode(list(texts), batch_size=5)),
        )

    return make


def _sparse(architecture: str) -> Callable[..., Subject]:
    def make(tiny_model, tiny_colbert, card) -> Subject:
        from sentence_transformers import SparseEncoder
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sparse_encoder.modules import SpladePooling

        folder = tiny_model(architecture, "masked_lm")
        transformer = Transformer(str(folder), transformer_task="fill-mask", max_seq_length=MAX_TOKENS)
        reference = SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu")
        described = card("sparse", dimensions=transformer.model.config.vocab_size)
        family = build_family(described, DirectoryWeights(path=folder))

        def rows(texts: Sequence[str]) -> list[np.ndarray]:
            found = reference.encode(list(texts), batch_size=5, convert_to_sparse_tensor=False)
            return [np.pad(row.numpy(), (0, 10_000 - len(row))) for row in found]

        return Subject(family=family, pre=lambda texts, cut: family.pre(texts, truncate=cut), reference=rows)

    return make


def _rerank(architecture: str, activation: str) -> Callable[..., Subject]:
    def make(tiny_model, tiny_colbert, card) -> Subject:
        from sentence_transformers import CrossEncoder

        folder = tiny_model(architecture, "classifier")
        function = torch.nn.Sigmoid() if activation == "sigmoid" else torch.nn.Identity()
        reference = CrossEncoder(str(folder), max_length=MAX_TOKENS, activation_fn=function, device="cpu")
        family = build_family(card("rerank", activation=activation), DirectoryWeights(path=folder))
        return Subject(
            family=family,
            pre=lambda texts, truncate: family.pre(QUERY, texts, truncate=truncate),
            reference=lambda texts: list(reference.predict([(QUERY, text) for text in texts], batch_size=5)),
        )

    return make


def _late_interaction(role: Role) -> Callable[..., Subject]:
    def make(tiny_model, tiny_colbert, card) -> Subject:
        described = card("late_interaction", dimensions=16, query_tokens=12, document_tokens=40)
        family = build_family(described, DirectoryWeights(path=tiny_colbert))
        return Subject(
            family=family,
            pre=lambda texts, truncate: family.pre(texts, role=role, truncate=truncate),
            reference=lambda texts: [published_colbert(tiny_colbert, text, role) for text in texts],
        )

    return make


def published_colbert(folder, text: str, role: Role) -> np.ndarray:
    """Return what the published code computes for one text, padding and all, written from its description."""
    from safetensors.torch import load_file
    from transformers import BertModel, BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    query = role is Role.QUERY
    length = 12 if query else 40
    marker = tokenizer.convert_tokens_to_ids("[unused0]" if query else "[unused1]")
    padding = "max_length" if query else False
    encoded = tokenizer(". " + text, padding=padding, truncation=True, max_length=length, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    ids[0, 1] = marker
    if query:
        ids[ids == tokenizer.pad_token_id] = tokenizer.mask_token_id
    with torch.no_grad():
        hidden = model(ids, attention_mask=mask).last_hidden_state
        vectors = functional.normalize(hidden @ load_file(folder / "model.safetensors")["linear.weight"].T, dim=2)[0]
    skipped = {tokenizer.convert_tokens_to_ids(mark) for mark in string.punctuation}
    kept = [query or token not in skipped for token in ids[0].tolist()]
    return vectors[kept].numpy()


SUBJECTS = {
    "dense-mean-bert": _dense("mean", "bert"),
    "dense-mean-xlm-roberta": _dense("mean", "xlm-roberta"),
    "dense-last-xlm-roberta": _dense("last", "xlm-roberta"),
    "dense-cls-modernbert": _dense("cls", "modernbert"),
    "sparse-bert": _sparse("bert"),
    "sparse-xlm-roberta": _sparse("xlm-roberta"),
    "sparse-modernbert": _sparse("modernbert"),
    "rerank-raw-bert": _rerank("bert", "none"),
    "rerank-sigmoid-xlm-roberta": _rerank("xlm-roberta", "sigmoid"),
    "rerank-raw-modernbert": _rerank("modernbert", "none"),
    "late-interaction-query": _late_interaction(Role.QUERY),
    "late-interaction-document": _late_interaction(Role.DOCUMENT),
}


@pytest.fixture(scope="module", params=SUBJECTS, ids=str)
def subject(request, tiny_model, tiny_colbert, card) -> Subject:
    return SUBJECTS[request.param](tiny_model, tiny_colbert, card)


@pytest.fixture(scope="module")
def expected(subject) -> dict[str, np.ndarray]:
    """The reference's result of every text."""
    return dict(zip(TEXTS, subject.reference(TEXTS), strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_reference_in_any_batch_and_order(subject, expected, size):
    texts = random.Random(size).choices(TEXTS, k=size)
    results = subject.results(texts)
    assert len(results) == size
    for text, result in zip(texts, results, strict=True):
        assert result.shape == expected[text].shape
        assert np.abs(result - expected[text]).max(initial=0.0) <= TOLERANCE, ascii(text[:40])


def test_texts_differ_in_their_results(expected):
    # A family that returned one thing for everything would agree with a reference that did.
    distinct = {expected[text].tobytes() for text in TEXTS}
    assert len(distinct) > len(TEXTS) // 2


def test_batch_composition_does_not_change_a_result(subject):
    alone = [subject.results([text])[0] for text in TEXTS]
    together = subject.results(list(reversed(TEXTS)))[::-1]
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max(initial=0.0) <= TOLERANCE


def test_too_long_is_refused_with_its_index_and_tokens(subject):
    with pytest.raises(InputTooLongError) as refusal:
        subject.pre(["fox", "dog", "over-long " * 1_000], Truncate.NONE)
    assert refusal.value.details["index"] == 2
    assert refusal.value.details["tokens"] > refusal.value.details["limit"]
    assert str(refusal.value.details["tokens"]) in refusal.value.message


def test_what_fits_is_not_refused(subject):
    short = subject.pre(["the fox"], Truncate.NONE)[0]
    assert (short.ids == subject.pre(["the fox"], Truncate.END)[0].ids).all()


def test_the_longest_input_that_fits_is_the_limit_itself(subject):
    counts = [subject.pre(["dog " * words], Truncate.END)[0].token_count for words in range(1, 80)]
    limit = max(counts)
    allowed = [len(subject.pre(["dog " * words], Truncate.NONE)) for words in range(1, 80) if counts[words - 1] < limit]
    assert allowed
    with pytest.raises(InputTooLongError) as refusal:
        subject.pre(["dog " * 80], Truncate.NONE)
    assert refusal.value.details["limit"] == limit


def test_truncation_drops_the_start_or_the_end(subject):
    text = "fox " * 200 + "dog"
    start, end = (subject.pre([text], truncate)[0] for truncate in (Truncate.START, Truncate.END))
    dog = subject.pre(["dog"], Truncate.NONE)[0].ids
    fox = subject.pre(["fox"], Truncate.NONE)[0].ids
    # The tokens that tell the two one-word texts apart.
    only_dog = set(dog.tolist()) - set(fox.tolist())
    assert only_dog <= set(start.ids.tolist())
    assert not only_dog <= set(end.ids.tolist())
    assert start.length == end.length


def test_usage_counts_what_the_input_has(subject):
    few, many = subject.pre(["dog", "dog dog dog"], Truncate.NONE)
    assert 0 < few.token_count < many.token_count <= many.length


def test_half_a_surrogate_pair_is_refused_by_its_index(subject):
    with pytest.raises(ValidationError, match="Input 1") as refusal:
        subject.pre(["fox", "dog \ud800"], Truncate.END)
    assert refusal.value.details["index"] == 1


def test_results_are_float32(subject):
    items = subject.pre(["fox"], Truncate.NONE)
    assert subject.family.core(items).dtype == np.float32

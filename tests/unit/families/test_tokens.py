"""Token ids of texts and pairs, held to the tokenizer's own truncation and special tokens."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from mixpeek_ray.core.errors import InputTooLongError
from mixpeek_ray.families.base import Truncate
from mixpeek_ray.families.tokens import TextTokenizer
from mixpeek_ray.families.weights import DirectoryWeights

LENGTHS = (0, 1, 2, 5, 6, 7, 8, 12, 13, 14, 30)


@pytest.fixture(scope="module", params=["bert", "xlm-roberta", "modernbert"])
def both(request, tiny_model):
    """Return the tokenizer under test and the library's."""
    folder = tiny_model(request.param)
    return TextTokenizer(DirectoryWeights(path=folder)), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("limit", [16, 17])
def test_pairs_are_cut_as_the_library_cuts_them(both, limit):
    mine, library = both
    for first in LENGTHS:
        for second in LENGTHS:
            texts = ("dog " * first).strip(), ("fox " * second).strip()
            contents = mine.encode(texts)
            ids, type_ids = mine.pair(*contents, index=0, limit=limit, truncate=Truncate.END)
            expected = library([texts], truncation="longest_first", max_length=limit)
            assert ids.tolist() == expected["input_ids"][0], (first, second)
            if type_ids is not None:
                assert type_ids.tolist() == expected["token_type_ids"][0]


@pytest.mark.parametrize("length", LENGTHS)
def test_texts_are_cut_as_the_library_cuts_them(both, length):
    mine, library = both
    text = ("dog fox " * length).strip()
    ids, type_ids = mine.single(mine.encode([text])[0], index=0, limit=16, truncate=Truncate.END)
    assert ids.tolist() == library(text, truncation=True, max_length=16)["input_ids"]
    assert type_ids is None


def test_only_bert_tells_the_texts_of_a_pair_apart(both):
    mine, library = both
    contents = mine.encode(["dog", "fox"])
    _, type_ids = mine.pair(*contents, index=0, limit=16, truncate=Truncate.END)
    expected = library("dog", "fox").get("token_type_ids", [])
    assert ([] if type_ids is None else type_ids.tolist()) == (expected if any(expected) else [])


def test_a_pair_that_is_too_long_is_refused_with_its_tokens(both):
    mine, _ = both
    first, second = mine.encode(["dog " * 10, "fox " * 10])
    with pytest.raises(InputTooLongError) as refusal:
        mine.pair(first, second, index=4, limit=16, truncate=Truncate.NONE)
    details = refusal.value.details
    assert details["index"] == 4
    assert details["tokens"] - len(first) - len(second) in (3, 4)


def test_the_start_of_a_pair_is_dropped_on_request(both):
    mine, _ = both
    first, second = mine.encode(["dog " * 10 + "what", "fox " * 10 + "query"])
    ids, _ = mine.pair(first, second, index=0, limit=16, truncate=Truncate.START)
    assert len(ids) == 16
    assert {first[-1], second[-1]} <= set(ids.tolist())

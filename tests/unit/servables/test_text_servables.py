"""Text models compute what transformers' own pipelines and sentence-transformers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servable_cases import LABELS, saved, saved_bart, served, texts
from tiny_models import MAX_TOKENS
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForTokenClassification,
    pipeline,
)

from mixpeek_ray.core.errors import InputTooLongError, NotServableError, ValidationError
from mixpeek_ray.families.base import Role, Truncate
from mixpeek_ray.servables.base import Parameters, Servable, Task

TEXTS = ["the quick brown fox", "", "🎉 naïve שלום 日本語 ~ unknown §", "over-long " * 300, "what is the query?"]
PARAMETERS = Parameters()


def outputs(servable: Servable, name: str, given: list[str] = TEXTS, parameters: Parameters = PARAMETERS) -> Any:
    return servable.compute({"text": texts(*given)}, parameters)[name]


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": LABELS},
        {"id2label": LABELS, "problem_type": "multi_label_classification"},
        {"id2label": LABELS, "problem_type": "regression"},
    ],
    ids=["softmax", "sigmoid", "as-it-is"],
)
def test_classification_is_the_pipelines(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = saved(tmp_path, BertForSequenceClassification, **config)
    servable = served(folder)
    assert servable.spec.task is Task.CLASSIFICATION
    assert servable.spec.labels == tuple(LABELS.values())
    found = outputs(servable, "score")
    reference = pipeline("text-classification", model=str(folder), top_k=None, truncation=True)
    for row, expected in zip(found, reference(TEXTS), strict=True):
        scores = {entry["label"]: entry["score"] for entry in expected}
        np.testing.assert_allclose(row, [scores[label] for label in servable.spec.labels], atol=1e-5)


def test_token_classification_is_the_pipelines(tmp_path: Path) -> None:
    folder = saved(tmp_path, BertForTokenClassification, id2label=LABELS)
    servable = served(folder)
    assert servable.spec.task is Task.TOKEN_CLASSIFICATION
    reference = pipeline("token-classification", model=str(folder))
    for row, expected in zip(outputs(servable, "entities"), reference(TEXTS), strict=True):
        entities = json.loads(row)
        assert [{**entity, "score": 0} for entity in entities] == [{**entity, "score": 0} for entity in expected]
        scores = [float(entity["score"]) for entity in expected]
        np.testing.assert_allclose([entity["score"] for entity in entities], scores, atol=1e-5)
    assert any(json.loads(row) for row in outputs(servable, "entities"))


def test_generation_is_the_models_own(tmp_path: Path) -> None:
    saved_bart(tmp_path)
    servable = served(tmp_path)
    assert servable.spec.task is Task.GENERATION
    found = outputs(servable, "generated_text", parameters=Parameters(max_new_tokens=12))
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    reader = AutoTokenizer.from_pretrained(tmp_path)
    for text, written in zip(TEXTS, found, strict=True):
        given = reader([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        made = model.generate(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=12)
        assert written == reader.decode(made[0], skip_special_tokens=True)
    assert any(found)


def test_embeddings_and_scores_are_those_of_sentence_transformers(tiny_model: Callable[..., Path]) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    encoder = served(tiny_model("bert"))
    assert encoder.spec.task is Task.EMBEDDING
    reference = SentenceTransformer(str(tiny_model("bert")), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(outputs(encoder, "embedding"), reference, atol=1e-5)
    reranker = served(tiny_model("bert", "classifier"))
    assert reranker.spec.task is Task.RERANKING
    # Of two requests in one batch.
    queries = texts(*["quick"] * 3, *["lazy dog"] * 2)
    found = reranker.compute({"query": queries, "document": texts(*TEXTS)}, PARAMETERS)["score"]
    expected = CrossEncoder(str(tiny_model("bert", "classifier")), device="cpu").predict(
        list(zip(queries, TEXTS, strict=True))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ragged_embeddings_are_json(tiny_model: Callable[..., Path]) -> None:
    from mixpeek_ray.families.build import build_family
    from mixpeek_ray.families.describe import describe
    from mixpeek_ray.families.weights import DirectoryWeights

    folder = tiny_model("bert", "masked_lm")
    servable = served(folder)
    assert servable.spec.task is Task.SPARSE_EMBEDDING
    source = DirectoryWeights(path=folder)
    family: Any = build_family(describe(source, "same"), source)
    items = family.pre(TEXTS, truncate=Truncate.END)
    for row, expected in zip(outputs(servable, "embedding"), family.post(family.core(items), items), strict=True):
        vector = json.loads(row)
        assert vector["indices"] == expected.indices.tolist()
        np.testing.assert_allclose(vector["values"], expected.values, atol=1e-5)


def test_the_uploaders_word_makes_a_classifier_of_one_label(tiny_model: Callable[..., Path]) -> None:
    assert served(tiny_model("bert", "classifier"), "classification").spec.task is Task.CLASSIFICATION


def test_a_head_that_no_route_knows_is_not_servable(tmp_path: Path) -> None:
    with pytest.raises(NotServableError, match="plugin"):
        served(saved(tmp_path, BertForNextSentencePrediction))


def test_a_masked_language_model_is_no_text_to_text_model(tmp_path: Path) -> None:
    assert served(saved(tmp_path, BertForMaskedLM)).spec.task is Task.SPARSE_EMBEDDING


def test_long_texts_are_refused_on_demand(tmp_path: Path) -> None:
    servable = served(saved(tmp_path, BertForSequenceClassification, id2label=LABELS))
    with pytest.raises(InputTooLongError) as refusal:
        outputs(servable, "score", parameters=Parameters(truncate=Truncate.NONE))
    assert refusal.value.details["index"] == 3
    with pytest.raises(ValidationError):
        outputs(servable, "score", parameters=Parameters(truncate=Truncate.START))


def test_a_model_without_prompts_takes_either_role(tiny_model: Callable[..., Path]) -> None:
    encoder = served(tiny_model("bert"))
    asked, stored = (outputs(encoder, "embedding", parameters=Parameters(role=role)) for role in Role)
    np.testing.assert_array_equal(asked, stored)

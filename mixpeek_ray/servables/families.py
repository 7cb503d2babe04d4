"""The text families as servables: embeddings and reranking of custom models, computed as the text routes do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from mixpeek_ray.core.records import TensorSignature
from mixpeek_ray.families.base import FloatArray, SparseVector
from mixpeek_ray.families.build import AnyFamily
from mixpeek_ray.families.dense import DenseFamily
from mixpeek_ray.families.late_interaction import LateInteractionFamily
from mixpeek_ray.families.rerank import RerankFamily
from mixpeek_ray.families.sparse import SparseFamily
from mixpeek_ray.servables.base import (
    DOCUMENTS,
    EMBEDDINGS,
    QUERIES,
    SCORES,
    TEXT,
    TEXTS,
    InProcess,
    NamedArrays,
    Parameters,
    Servable,
    ServableSpec,
    Task,
)

BATCH = "batch"


def texts_in(*names: str) -> tuple[TensorSignature, ...]:
    """Return the signatures of inputs that are texts, one a row."""
    return tuple(TensorSignature(name=name, dtype=TEXT, shape=(BATCH,)) for name in names)


def json_rows(results: Sequence[object]) -> Any:
    """Return an object array of each result's JSON, as text."""
    rows = np.empty(len(results), dtype=object)
    rows[:] = [orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY).decode() for result in results]
    return rows


def family_servable(family: AnyFamily) -> Servable:
    """Return the servable that computes with ``family``."""
    match family:
        case DenseFamily():
            return DenseServable(family)
        case SparseFamily():
            return SparseServable(family)
        case LateInteractionFamily():
            return LateInteractionServable(family)
        case RerankFamily():
            return RerankServable(family)


class DenseServable(InProcess):
    """One vector a text."""

    def __init__(self, family: DenseFamily) -> None:
        self._family = family
        self.spec = ServableSpec(
            task=Task.EMBEDDING,
            inputs=texts_in(TEXTS),
            # The width is the request's to choose, for models that were trained for shorter vectors.
            outputs=(TensorSignature(name=EMBEDDINGS, dtype="float32", shape=(BATCH, None)),),
        )

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return float32 [texts, dimensions]. Raises as ``DenseFamily.pre``."""
        items = self._family.pre(
            inputs[TEXTS].tolist(),
            role=parameters.role,
            truncate=parameters.truncate,
            instruction=parameters.instruction,
            dimensions=parameters.dimensions,
        )
        return {EMBEDDINGS: np.stack(self._family.post(self._family.core(items), items))}


class SparseServable(InProcess):
    """Weights of a vocabulary's words for each text, as JSON: ``{"indices": [...], "values": [...]}``."""

    def __init__(self, family: SparseFamily) -> None:
        self._family = family
        self.spec = ServableSpec(task=Task.SPARSE_EMBEDDING, inputs=texts_in(TEXTS), outputs=texts_in(EMBEDDINGS))

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return JSON [texts]. Raises as ``SparseFamily.pre``."""
        items = self._family.pre(inputs[TEXTS].tolist(), truncate=parameters.truncate)
        return {
            EMBEDDINGS: json_rows([_pairs(vector) for vector in self._family.post(self._family.core(items), items)]),
        }


class LateInteractionServable(InProcess):
    """One vector a token, as JSON: a list of vectors for each text."""

    def __init__(self, family: LateInteractionFamily) -> None:
        self._family = family
        self.spec = ServableSpec(task=Task.MULTI_VECTOR_EMBEDDING, inputs=texts_in(TEXTS), outputs=texts_in(EMBEDDINGS))

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return JSON [texts]. Raises as ``LateInteractionFamily.pre``."""
        family = self._family
        items = family.pre(inputs[TEXTS].tolist(), role=parameters.role, truncate=parameters.truncate)
        return {
            EMBEDDINGS: json_rows([np.ascontiguousarray(matrix) for matrix in family.post(family.core(items), items)])
        }


class RerankServable(InProcess):
    """One score a pair of a query and a document."""

    def __init__(self, family: RerankFamily) -> None:
        self._family = family
        self.spec = ServableSpec(
            task=Task.RERANKING,
            inputs=texts_in(QUERIES, DOCUMENTS),
            outputs=(TensorSignature(name=SCORES, dtype="float32", shape=(BATCH,)),),
        )

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return float32 [pairs]. Raises as ``RerankFamily.pre``."""
        queries, documents = inputs[QUERIES].tolist(), inputs[DOCUMENTS].tolist()
        items = []
        start = 0
        # Rows of one request share their query, so that it is tokenized once.
        for end in range(1, len(queries) + 1):
            if end == len(queries) or queries[end] != queries[start]:
                items += self._family.pre(queries[start], documents[start:end], truncate=parameters.truncate)
                start = end
        scores: FloatArray = np.array(self._family.post(self._family.core(items), items), dtype=np.float32)
        return {SCORES: scores}


def _pairs(vector: SparseVector) -> dict[str, object]:
    return {"indices": vector.indices, "values": vector.values}

"""From a custom model's outputs to the JSON of its task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from starlette.responses import Response

from mixpeek_ray.api.inference_presenters import json_answer, ranked
from mixpeek_ray.api.predict_body import Asked
from mixpeek_ray.api.predict_ports import ServedModel
from mixpeek_ray.servables.base import EMBEDDINGS, ENTITIES, GENERATED, SCORES, NamedArrays, Task


def present_prediction(model: ServedModel, asked: Asked, outputs: NamedArrays) -> Response:
    """Return what the model made of a request; numbers that are none (NaN, infinities) are null."""
    return json_answer({"outputs": _presented(model, asked, outputs), "model": model.ref.name})


def _presented(model: ServedModel, asked: Asked, outputs: NamedArrays) -> object:
    match model.spec.task:
        case Task.TENSORS:
            return {name: _writable(array) for name, array in outputs.items()}
        case Task.RERANKING:
            return ranked(outputs[SCORES].tolist(), asked.documents, asked.ranking)
        case Task.CLASSIFICATION:
            results: Sequence[object] = [_labelled(model.spec.labels, row, asked.top_k) for row in outputs[SCORES]]
        case Task.GENERATION:
            results = [{GENERATED: text} for text in outputs[GENERATED]]
        case Task.EMBEDDING:
            results = [np.ascontiguousarray(row) for row in outputs[EMBEDDINGS]]
        case Task.SPARSE_EMBEDDING | Task.MULTI_VECTOR_EMBEDDING:
            results = [orjson.Fragment(row) for row in outputs[EMBEDDINGS]]
        case Task.TOKEN_CLASSIFICATION:
            results = [orjson.Fragment(row) for row in outputs[ENTITIES]]
    return results[0] if asked.is_single else results


def _labelled(labels: Sequence[str], scores: npt.NDArray[np.float32], top_k: int | None) -> list[dict[str, object]]:
    # Stable, so that equal scores keep the labels' order.
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[index], "score": float(scores[index])} for index in order]


def _writable(array: npt.NDArray[Any]) -> object:
    return array.tolist() if array.dtype == object else np.ascontiguousarray(array)

"""From what loading returns for a deployed model to what answers its requests."""

from __future__ import annotations

from typing import Any

from mixpeek_ray.core.errors import InvalidWeightsError, NotServableError, ValidationError
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.families.build import build_family
from mixpeek_ray.families.describe import describe
from mixpeek_ray.servables.base import Servable, ServableRef
from mixpeek_ray.servables.families import family_servable
from mixpeek_ray.servables.kinds import USE_A_PLUGIN, check_servable
from mixpeek_ray.servables.onnx import OnnxServable
from mixpeek_ray.servables.transformer import (
    ClassificationServable,
    GenerationServable,
    TokenClassificationServable,
    TransformerSource,
)

# A classifier of one label is a reranker, unless its uploader says otherwise.
_CLASSIFICATION = frozenset({"classification", "text-classification", "sequence-classification"})


def build_servable(opened: Any, ref: ServableRef) -> Servable:
    """Return the servable over ``opened``, which is what ``load_namespace_model`` returned for a model of ``ref.kind``.

    For ONNX and Hugging Face models: TorchScript programs share no process with others.

    Raises ``NotServableError`` where the archive alone is not enough, ``InvalidWeightsError`` where its files
    contradict each other.
    """
    check_servable(ref.kind, ref.name)
    if ref.kind is ModelKind.ONNX:
        return OnnxServable(opened, name=ref.name)
    return _build_text_model(opened, ref.name, ref.task_type)


def _build_text_model(source: TransformerSource, name: str, task_type: str | None) -> Servable:
    from transformers import AutoModelForSeq2SeqLM

    architectures = [str(found) for found in source.config.architectures or ()]
    architecture = architectures[0] if architectures else ""
    try:
        if architecture.endswith("ForTokenClassification"):
            return TokenClassificationServable(source, name=name)
        if architecture.endswith("ForSequenceClassification") and (
            source.config.num_labels != 1 or task_type in _CLASSIFICATION
        ):
            return ClassificationServable(source, name=name)
        if type(source.config) in AutoModelForSeq2SeqLM._model_mapping and not architecture.endswith("Model"):
            return GenerationServable(source, name=name)
    except (OSError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise InvalidWeightsError(
            f"Model {name!a} cannot be opened ({type(error).__name__}): save it again with save_pretrained."
        ) from None
    try:
        card = describe(source, name)
    except InvalidWeightsError:
        raise
    except ValidationError as error:
        raise NotServableError(f"{error.message} No endpoint computes it: {USE_A_PLUGIN}.") from None
    return family_servable(build_family(card, source))

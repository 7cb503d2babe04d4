"""transformers models with a head for a task: labels of texts, labels of tokens, texts from texts.

Each computes what the ``transformers`` pipeline of its task does with its defaults, for a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from mixpeek_ray.core.errors import InputTooLongError, InvalidWeightsError, ValidationError
from mixpeek_ray.core.records import TensorSignature
from mixpeek_ray.families.base import Truncate
from mixpeek_ray.families.weights import WeightsSource
from mixpeek_ray.servables.base import (
    ENTITIES,
    GENERATED,
    MAX_NEW_TOKENS,
    SCORES,
    TEXTS,
    InProcess,
    NamedArrays,
    Parameters,
    ServableSpec,
    Task,
)
from mixpeek_ray.servables.families import BATCH, json_rows, texts_in

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What a tokenizer says that knows no limit; transformers' own is 10^30.
_NO_LIMIT = 10**6
# Read where neither the tokenizer nor the config has a limit.
_DEFAULT_TOKENS = 512
# Written where neither the request nor the model says how many; transformers' own default, 20, ends mid-sentence.
DEFAULT_NEW_TOKENS = 128
# The label of tokens that are no entity, which the pipeline leaves out.
_OUTSIDE = "O"


class TransformerSource(WeightsSource, Protocol):
    """A deployed model directory: what ``load_namespace_model`` returns for ``huggingface``."""

    @property
    def config(self) -> PreTrainedConfig:
        """The transformers configuration."""

    def model(self, model_class: type[Any] | None = None) -> PreTrainedModel:
        """Return the model in eval mode, made of views."""

    def tokenizer(self) -> Any:
        """Return the tokenizer beside it."""


class _TextModel:
    """A model and its tokenizer."""

    def __init__(self, source: TransformerSource, model_class: type[Any], name: str) -> None:
        self.name = name
        self.model = source.model(model_class)
        try:
            self.tokenizer = source.tokenizer()
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise InvalidWeightsError(
                f"The tokenizer of {name!a} cannot be read ({type(error).__name__}): save it beside the weights."
            ) from None
        self.limit = self._limit()

    @property
    def labels(self) -> tuple[str, ...]:
        """The config's labels in the order of its scores."""
        config: Any = self.model.config
        return tuple(str(config.id2label.get(index, f"LABEL_{index}")) for index in range(config.num_labels))

    def tokens(self, texts: Sequence[str], truncate: Truncate, **options: Any) -> Any:
        """Return the texts as a padded batch of the model's own inputs. Raises ``InputTooLongError``."""
        if truncate is Truncate.START:
            raise ValidationError(
                f"Model {self.name!a} drops the end of what is too long, not its start: use truncate end or none.",
                field="parameters.truncate",
            )
        if truncate is Truncate.NONE:
            self._check_lengths(texts)
        found = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt", **options
        )
        return found.to(self.model.device)

    def _check_lengths(self, texts: Sequence[str]) -> None:
        for index, ids in enumerate(self.tokenizer(list(texts), verbose=False)["input_ids"]):
            if len(ids) > self.limit:
                raise InputTooLongError(
                    f"Text {index} has {len(ids)} tokens, and {self.name!a} reads {self.limit}: shorten it, or let it "
                    "be truncated.",
                    index=index,
                    limit_tokens=self.limit,
                )

    def _limit(self) -> int:
        stated = (self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None))
        known = [limit for limit in stated if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
        return min(known, default=_DEFAULT_TOKENS)


class ClassificationServable(InProcess):
    """One score a label for each text: ``…ForSequenceClassification``."""

    def __init__(self, source: TransformerSource, *, name: str) -> None:
        """Raises ``InvalidWeightsError``, and what ``from_pretrained`` raises."""
        from transformers import AutoModelForSequenceClassification

        self._text = _TextModel(source, AutoModelForSequenceClassification, name)
        labels = self._text.labels
        self.spec = ServableSpec(
            task=Task.CLASSIFICATION,
            inputs=texts_in(TEXTS),
            outputs=(TensorSignature(name=SCORES, dtype="float32", shape=(BATCH, len(labels))),),
            labels=labels,
        )

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return float32 [texts, labels]: a softmax, or a sigmoid where each label stands for itself."""
        with torch.inference_mode():
            logits = self._text.model(**self._text.tokens(inputs[TEXTS].tolist(), parameters.truncate)).logits.float()
            return {SCORES: self._scores(logits).cpu().numpy()}

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        config = self._text.model.config
        if config.problem_type == "regression":
            return logits
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return logits.sigmoid()
        return logits.softmax(dim=-1)


class TokenClassificationServable(InProcess):
    """The entities of each text, as JSON: ``…ForTokenClassification``."""

    def __init__(self, source: TransformerSource, *, name: str) -> None:
        """Raises ``InvalidWeightsError``, and what ``from_pretrained`` raises."""
        from transformers import AutoModelForTokenClassification

        self._text = _TextModel(source, AutoModelForTokenClassification, name)
        if not self._text.tokenizer.is_fast:
            raise InvalidWeightsError(f"The tokenizer of {name!a} does not tell where a token lies: save a fast one.")
        self.spec = ServableSpec(
            task=Task.TOKEN_CLASSIFICATION,
            inputs=texts_in(TEXTS),
            outputs=texts_in(ENTITIES),
            labels=self._text.labels,
        )

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return JSON [texts]: a list of entity, score, index, word, start and end for each."""
        texts = inputs[TEXTS].tolist()
        extra = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        tokens = self._text.tokens(texts, parameters.truncate, **extra)
        offsets = tokens.pop("offset_mapping").tolist()
        special = tokens.pop("special_tokens_mask").tolist()
        with torch.inference_mode():
            scores = self._text.model(**tokens).logits.float().softmax(dim=-1).cpu().numpy()
        found = []
        for row, text in enumerate(texts):
            ids = tokens["input_ids"][row].tolist()
            found.append(self._entities(text, ids, scores[row], offsets[row], special[row]))
        return {ENTITIES: json_rows(found)}

    def _entities(
        self, text: str, ids: list[int], scores: Any, offsets: list[list[int]], special: list[int]
    ) -> list[dict[str, object]]:
        entities: list[dict[str, object]] = []
        best = scores.argmax(axis=-1)
        for index, token in enumerate(ids):
            label = self.spec.labels[best[index]]
            if special[index] or label == _OUTSIDE:
                continue
            start, end = offsets[index]
            word = self._text.tokenizer.convert_ids_to_tokens(token)
            if token == self._text.tokenizer.unk_token_id:
                word = text[start:end]
            score = float(scores[index, best[index]])
            entities.append({"entity": label, "score": score, "index": index, "word": word, "start": start, "end": end})
        return entities


class GenerationServable(InProcess):
    """A text from each text, by encoder and decoder: T5, BART, Marian and their like."""

    def __init__(self, source: TransformerSource, *, name: str) -> None:
        """Raises ``InvalidWeightsError``, and what ``from_pretrained`` raises."""
        from transformers import AutoModelForSeq2SeqLM

        self._text = _TextModel(source, AutoModelForSeq2SeqLM, name)
        self.spec = ServableSpec(task=Task.GENERATION, inputs=texts_in(TEXTS), outputs=texts_in(GENERATED))

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return texts [texts], as the model's own generation settings want them."""
        tokens = self._text.tokens(inputs[TEXTS].tolist(), parameters.truncate)
        given = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            made = self._text.model.generate(**given, **self._length(parameters))  # type: ignore[operator]
        texts = np.empty(len(made), dtype=object)
        texts[:] = self._text.tokenizer.batch_decode(made, skip_special_tokens=True)
        return {GENERATED: texts}

    def _length(self, parameters: Parameters) -> dict[str, int]:
        own = self._text.model.generation_config
        if parameters.max_new_tokens is not None:
            return {"max_new_tokens": parameters.max_new_tokens}
        # Both None: the author did not say.
        if own is not None and (own.max_new_tokens is not None or own.max_length is not None):
            stated = own.max_new_tokens or own.max_length
            return {"max_new_tokens": min(stated, MAX_NEW_TOKENS)}
        return {"max_new_tokens": DEFAULT_NEW_TOKENS}

"""Any architecture that transformers computes, for models that the platform's own forward does not cover."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch.nn import functional

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.families.networks.base import TokenBatch
from mixpeek_ray.families.weights import WeightsSource


class Head(enum.Enum):
    """What a model of transformers ends in."""

    # Last hidden states.
    NONE = "MODEL_MAPPING"
    # Logits over the vocabulary for every token.
    MASKED_LANGUAGE_MODEL = "MODEL_FOR_MASKED_LM_MAPPING"
    # Logits of each text.
    CLASSIFIER = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"


class TransformersNetwork:
    """A model of transformers; batches are padded for it, and what padding yields is dropped."""

    def __init__(self, source: WeightsSource, head: Head, dtype: torch.dtype) -> None:
        """Build over the tensors of ``source``, which stay views unless ``dtype`` is not theirs.

        Raises ``InvalidWeightsError`` when transformers has no such model, or tensors are missing.
        """
        import transformers
        from huggingface_hub.errors import StrictDataclassError

        try:
            config = transformers.AutoConfig.from_pretrained(
                str(source.path), local_files_only=True, trust_remote_code=False
            )
            model_class = getattr(transformers, head.value)[type(config)]
            model, report = model_class.from_pretrained(
                None, config=config, state_dict=dict(source.state_dict), dtype=dtype, output_loading_info=True
            )
        except (OSError, KeyError, ValueError, RuntimeError, StrictDataclassError) as error:
            raise InvalidWeightsError(
                f"transformers cannot build the model from its files ({type(error).__name__}): save it with "
                "save_pretrained."
            ) from None
        # A pooler that nothing here reads may be absent.
        if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
            raise InvalidWeightsError(f"The weights hold no tensor {missing[0]!r}: they do not match config.json.")
        # Buffers that no checkpoint holds are made on the CPU.
        self._device = next(iter(source.state_dict.values())).device
        self._model: Any = model.eval().to(self._device)
        self._per_token = head is not Head.CLASSIFIER
        self._output = "last_hidden_state" if head is Head.NONE else "logits"
        self.max_tokens: int | None = getattr(config, "max_position_embeddings", None)
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):
            self.max_tokens = config.max_position_embeddings - config.pad_token_id - 1

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Return float32 [tokens, width]; a classifier's: [texts, labels]."""
        longest = batch.lengths[-1]
        lengths = torch.tensor(batch.lengths).unsqueeze(1)
        kept = torch.arange(longest) < lengths
        inputs = {
            "input_ids": _padded(batch.ids, batch.lengths, longest),
            "attention_mask": (torch.arange(longest) < torch.tensor(batch.visible).unsqueeze(1)).long(),
        }
        if batch.type_ids is not None:
            inputs["token_type_ids"] = _padded(batch.type_ids, batch.lengths, longest)
        placed = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        found: torch.Tensor = self._model(**placed)[self._output]
        return (found[kept.to(self._device)] if self._per_token else found).float()


def _padded(flat: torch.Tensor, lengths: tuple[int, ...], longest: int) -> torch.Tensor:
    # What stands in the padding is masked everywhere; 0 is an id of every vocabulary.
    rows = [functional.pad(row, (0, longest - len(row))) for row in torch.split(flat, list(lengths))]
    return torch.stack(rows)

"""A custom model's own settings, as its files hold them: whoever uploaded them wrote them, so no type is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from mixpeek_ray.core.errors import InvalidWeightsError, ValidationError
from mixpeek_ray.families.networks.bert import computes
from mixpeek_ray.families.networks.transformers import Head
from mixpeek_ray.families.weights import WeightsSource
from mixpeek_ray.formats.huggingface_files import CONFIG, ModelDirectory
from mixpeek_ray.formats.huggingface_modules import ModelModule, inside, list_modules
from mixpeek_ray.formats.tensors import shown

# What a text may have where neither tokenizer nor weights say: what nearly every encoder was trained on.
_DEFAULT_TOKENS = 512
# No encoder reads more; a tokenizer without a limit says 10^30.
_MOST_TOKENS = 131_072
# Below this nothing is left of a text beside the special tokens.
_LEAST_TOKENS = 8
# Model types whose positions count from behind the padding id, as RoBERTa's do.
_BEHIND_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
# Where sentence-transformers keeps its Transformer module's settings; the others are what versions before 2 wrote.
_TRANSFORMER_SETTINGS = ("sentence_bert_config.json", *(
    f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
))  # fmt: skip


_KINDS = (
    "the embedding and rerank routes answer for what sentence-transformers saves (a Transformer with Pooling by mean, "
    "cls or lasttoken, SpladePooling, a ColBERT projection, or a cross-encoder with one label), and for an encoder, "
    "masked language model or classifier with one label of transformers"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One settings file; reading a value of another type than expected raises ``InvalidWeightsError``."""

    path: str
    values: Mapping[str, object]

    def text(self, name: str) -> str | None:
        """Return a text, or None where there is none."""
        value = self.values.get(name)
        if value is None or isinstance(value, str):
            return value
        self._refuse(name, "text")

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self.values.get(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self._refuse(name, "true or false")

    def whole(self, name: str) -> int | None:
        """Return a whole number above 0, or None where there is none."""
        value = self.values.get(name)
        # Tokenizers write 1e30 for no limit.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            return value
        self._refuse(name, "a whole number above 0")

    def texts(self, name: str) -> list[str]:
        """Return a list of texts; empty where there is none."""
        value = self.values.get(name) or []
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        self._refuse(name, "a list of text")

    def inner(self, name: str) -> Settings:
        """Return an object in this one; empty where there is none."""
        value = self.values.get(name) or {}
        if isinstance(value, dict):
            return Settings(path=self.path, values=value)
        self._refuse(name, "an object")

    def _refuse(self, name: str, expected: str) -> NoReturn:
        raise InvalidWeightsError(f"In {shown(self.path)}, {shown(name)} must be {expected}.")


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A model's directory, its settings read on demand."""

    # What its users call it.
    name: str
    source: WeightsSource

    def unsupported(self, what: str) -> ValidationError:
        """Return the error for a model that is none of the kinds that can be served: ``what`` says why."""
        return ValidationError(f"Model {self.name!a} cannot be used here: {what}; {_KINDS}.", field="model")

    @cached_property
    def directory(self) -> ModelDirectory:
        """The files beside the weights."""
        folder = self.source.path
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }
        return ModelDirectory(folder=folder, sizes=sizes)

    @cached_property
    def modules(self) -> list[ModelModule]:
        """The parts that modules.json lists; empty for a directory without one. Raises as ``list_modules`` does."""
        return [module for module in list_modules(self.directory) if module.class_name is not None]

    @cached_property
    def config(self) -> Any:
        """The configuration of transformers, defaults filled in. Raises ``InvalidWeightsError``."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        if CONFIG not in self.directory:
            raise InvalidWeightsError(
                f"The model has no {CONFIG} beside its weights: save it with save_pretrained of a current release."
            )
        # Held to the rules of JSON before transformers reads it.
        self.settings(CONFIG)
        try:
            config = AutoConfig.from_pretrained(str(self.source.path), local_files_only=True, trust_remote_code=False)
        except (
            OSError, LookupError, ValueError, TypeError, AttributeError, ImportError, RuntimeError,
            StrictDataclassError,
        ) as error:  # fmt: skip
            raise InvalidWeightsError(
                f"transformers cannot read the model's {CONFIG} ({type(error).__name__}): save it with save_pretrained."
            ) from None
        if config.is_encoder_decoder or hasattr(config, "vision_config") or hasattr(config, "audio_config"):
            raise self.unsupported(f"a model of the type {shown(config.model_type)} is no text encoder")
        return config

    @property
    def architecture(self) -> str:
        """The name of the class that the model was saved from; empty where it is not told."""
        named = self.settings(CONFIG).texts("architectures")
        return named[0] if named else ""

    @property
    def transformer(self) -> Settings:
        """What sentence-transformers keeps about its Transformer module."""
        return self.settings(next((name for name in _TRANSFORMER_SETTINGS if name in self.directory), ""))

    @property
    def overall(self) -> Settings:
        """What sentence-transformers keeps about the model as a whole."""
        return self.settings("config_sentence_transformers.json")

    def settings(self, path: str) -> Settings:
        """Return the file at ``path``; empty where there is none. Raises ``InvalidWeightsError`` unless it is JSON."""
        return Settings(path=path, values=self.directory.read_object(path) if path in self.directory else {})

    def module(self, module: ModelModule) -> Settings:
        """Return the settings of one part of the model."""
        return self.settings(inside(module.folder, CONFIG))

    def size(self, name: str) -> int:
        """Return a size of ``config`` by transformers' own name for it. Raises ``InvalidWeightsError``."""
        value = getattr(self.config, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidWeightsError(f"The model's {CONFIG} must hold {name}, a whole number above 0.")
        return value

    def has(self, head: Head) -> bool:
        """Tell whether transformers computes this model with this head."""
        import transformers

        return type(self.config) in getattr(transformers, head.value)

    def check_tables(self) -> None:
        """Raise ``InvalidWeightsError`` where a table of BERT's has another shape than ``config`` says.

        The platform's own forward goes by the tables; transformers compares all shapes itself.
        """
        if not computes(self.settings(CONFIG).values):
            return
        width, vocabulary = self.size("hidden_size"), self.size("vocab_size")
        positions = getattr(self.config, "max_position_embeddings", None)
        rows = {
            "embeddings.word_embeddings.weight": vocabulary,
            "embeddings.position_embeddings.weight": positions,
            "predictions.decoder.weight": vocabulary,
            "lm_head.decoder.weight": vocabulary,
        }
        for name, tensor in self.source.state_dict.items():
            expected = next((count for ending, count in rows.items() if name.endswith(ending)), None)
            if expected is not None and tuple(tensor.shape) != (expected, width):
                raise InvalidWeightsError(
                    f"The tensor {shown(name)} has the shape {tuple(tensor.shape)}, and the model's {CONFIG} says "
                    f"{(expected, width)}: they do not belong together."
                )

    @property
    def max_tokens(self) -> int:
        """The longest text, special tokens included: as sentence-transformers decides it, within the positions."""
        declared = self.transformer.whole("max_seq_length")
        if declared is None:
            declared = self.settings("tokenizer_config.json").whole("model_max_length")
        known = [limit for limit in (declared, self._positions()) if limit is not None]
        limit = min([*known, _MOST_TOKENS]) if known else _DEFAULT_TOKENS
        if limit < _LEAST_TOKENS:
            raise InvalidWeightsError(
                f"The model's files allow texts of {limit} tokens only, where {_LEAST_TOKENS} is the least of use."
            )
        return limit

    def _positions(self) -> int | None:
        found = getattr(self.config, "max_position_embeddings", None)
        # XLNet's -1: as many as there are tokens.
        if not isinstance(found, int) or found < 1:
            return None
        padding = getattr(self.config, "pad_token_id", None)
        if self.config.model_type in _BEHIND_PADDING and isinstance(padding, int):
            return found - padding - 1
        return found

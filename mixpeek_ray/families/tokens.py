"""Texts to token ids: a model's own tokenizer, with its special tokens and the reference library's truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixpeek_ray.core.errors import InputTooLongError, InvalidWeightsError, ValidationError
from mixpeek_ray.families.base import IdArray, TextInput, Truncate
from mixpeek_ray.families.weights import WeightsSource, read_config

# Any text that every vocabulary turns into at least one token.
_PROBE = "a"


@dataclass(frozen=True, kw_only=True)
class _Special:
    """Tokens that the model's format puts before, between or after the texts."""

    ids: list[int]
    type_ids: list[int]


class _Template:
    """The special tokens around ``texts`` texts, read off the tokenizer's answer to a probe."""

    def __init__(self, backend: Any, texts: int) -> None:
        probe = backend.encode(*[_PROBE] * texts)
        content = [place for place, text in enumerate(probe.sequence_ids) if text is not None]
        if len({probe.sequence_ids[place] for place in content}) != texts:
            raise InvalidWeightsError("The model's tokenizer drops plain text: its files contradict each other.")
        self.type_of: list[int] = []
        self.around: list[_Special] = []
        cursor = 0
        for text in range(texts):
            mine = [place for place in content if probe.sequence_ids[place] == text]
            self.around.append(_Special(ids=probe.ids[cursor : mine[0]], type_ids=probe.type_ids[cursor : mine[0]]))
            self.type_of.append(probe.type_ids[mine[0]])
            cursor = mine[-1] + 1
        self.around.append(_Special(ids=probe.ids[cursor:], type_ids=probe.type_ids[cursor:]))
        self.special_count = sum(len(part.ids) for part in self.around)
        # All zero means the same as none at all.
        self.has_types = any(self.type_of) or any(any(part.type_ids) for part in self.around)

    def fill(self, *contents: list[int]) -> tuple[IdArray, IdArray | None]:
        """Return the ids of the whole input, and its type ids where the model tells texts apart."""
        ids = list(self.around[0].ids)
        for content, special in zip(contents, self.around[1:], strict=True):
            ids += content
            ids += special.ids
        if not self.has_types:
            return np.array(ids, dtype=np.int64), None
        types = list(self.around[0].type_ids)
        for content, type_id, special in zip(contents, self.type_of, self.around[1:], strict=True):
            types += [type_id] * len(content)
            types += special.type_ids
        return np.array(ids, dtype=np.int64), np.array(types, dtype=np.int64)


class TextTokenizer:
    """A model's tokenizer. Safe to use from several threads at a time."""

    def __init__(self, source: WeightsSource) -> None:
        """Read the tokenizer beside the weights. Raises ``InvalidWeightsError`` when there is none that fits them."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoTokenizer

        try:
            self._outer = AutoTokenizer.from_pretrained(
                str(source.path), local_files_only=True, trust_remote_code=False
            )
            self._backend = self._outer.backend_tokenizer
        except (
            OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, StrictDataclassError,
        ) as error:  # fmt: skip
            raise InvalidWeightsError(
                f"The model's tokenizer cannot be read ({type(error).__name__}): put tokenizer.json beside its weights."
            ) from None
        # A tokenizer.json may pad every text to its training length; batches are never padded here.
        self._backend.no_padding()
        self._backend.no_truncation()
        self.vocabulary_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self._check_vocabulary(read_config(source).get("vocab_size"))
        self._single = _Template(self._backend, 1)
        self._pair = _Template(self._backend, 2)

    @property
    def mask_id(self) -> int:
        """The id of the mask token. Raises ``InvalidWeightsError`` for a vocabulary without one."""
        token_id = self._outer.mask_token_id
        if token_id is None:
            raise InvalidWeightsError("The model's tokenizer has no mask token, which this family needs.")
        return int(token_id)

    def id_of(self, token: str) -> int | None:
        """Return the id of ``token``, or None if it is no token of the vocabulary."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def encode(self, inputs: Sequence[TextInput]) -> list[list[int]]:
        """Return each input's ids, without special tokens and of any length.

        Raises ``ValidationError``, naming the input's index, for ids outside the vocabulary and text that is not
        Unicode.
        """
        texts = [
            checked(given, f"Input {index}", index=index)
            for index, given in enumerate(inputs)
            if isinstance(given, str)
        ]
        encoded = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False) if texts else ())
        return [
            next(encoded).ids if isinstance(given, str) else self._checked_ids(given, index)
            for index, given in enumerate(inputs)
        ]

    def single(
        self, content: list[int], *, index: int, limit: int, truncate: Truncate, head: int = 0
    ) -> tuple[IdArray, IdArray | None]:
        """Return ids and type ids of one text with its special tokens, at most ``limit`` in all.

        The first ``head`` tokens, a prompt's, stay when the text's start is dropped. Raises ``InputTooLongError``.
        """
        room = limit - self._single.special_count
        if len(content) > room:
            _refuse_unless_asked(truncate, index, len(content) + self._single.special_count, limit)
            stays = room if truncate is Truncate.END else min(head, room)
            content = content[:stays] + content[len(content) - (room - stays) :]
        return self._single.fill(content)

    def pair(
        self, first: list[int], second: list[int], *, index: int, limit: int, truncate: Truncate
    ) -> tuple[IdArray, IdArray | None]:
        """Return ids and type ids of a pair with its special tokens, at most ``limit`` in all.

        The longer text is cut first, then both, as the tokenizers library does. Raises ``InputTooLongError``.
        """
        room = limit - self._pair.special_count
        if len(first) + len(second) > room:
            _refuse_unless_asked(truncate, index, len(first) + len(second) + self._pair.special_count, limit)
            shares = _longest_first(len(first), len(second), room)
            first, second = (_cut(text, share, truncate) for text, share in zip((first, second), shares, strict=True))
        return self._pair.fill(first, second)

    def _check_vocabulary(self, rows: object) -> None:
        # Without a file of its own transformers makes a tokenizer that knows nothing but its special tokens.
        if self.vocabulary_size <= len(self._outer.all_special_ids):
            raise InvalidWeightsError("The model has no tokenizer: put tokenizer.json beside its weights.")
        # An id without an embedding would fail a whole batch, other callers' texts included.
        if isinstance(rows, int) and self.vocabulary_size > rows:
            raise InvalidWeightsError(
                f"The model's tokenizer knows {self.vocabulary_size} tokens and the model only {rows}: "
                "they do not belong together."
            )

    def _checked_ids(self, given: Sequence[int], index: int) -> list[int]:
        content = [int(token_id) for token_id in given]
        if content and not (min(content) >= 0 and max(content) < self.vocabulary_size):
            raise ValidationError(
                f"Input {index} holds a token id outside the model's vocabulary of {self.vocabulary_size}: "
                "send texts, or ids made by this model's tokenizer.",
                index=index,
            )
        return content


def checked(text: str, name: str, **details: Any) -> str:
    """Return ``text`` if it is Unicode; raise ``ValidationError``, which calls it ``name``, otherwise."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"{name} is not Unicode text: it holds half a surrogate pair at character {error.start}.", **details
        ) from None
    return text


def _refuse_unless_asked(truncate: Truncate, index: int, tokens: int, limit: int) -> None:
    if truncate is Truncate.NONE:
        raise InputTooLongError(
            f"Input {index} has {tokens} tokens, more than the {limit} that the model reads: shorten it, or ask for "
            "truncation.",
            index=index,
            tokens=tokens,
            limit=limit,
        )


def _cut(content: list[int], length: int, truncate: Truncate) -> list[int]:
    return content[:length] if truncate is Truncate.END else content[len(content) - length :]


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text stay: the tokenizers library's ``longest_first``."""
    short, long = min(first, second), max(first, second)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (short, long) if first <= second else (long, short)

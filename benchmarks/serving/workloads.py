"""The texts that every server and every library is given, the same in every run."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

SENTENCE = "A model platform answers many small requests at once without wasting a core."
assert len(SENTENCE.split()) == 13

_SEED = 13
_MIXED_TEXTS = 512
_MIXED_WORDS = (3, 200)
# Common English words, which MiniLM's tokenizer keeps whole: 200 of them and the special tokens are below its 256.
_WORDS = re.findall(
    "[a-z]+",
    """
    time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work government number night point home water room
    mother area money story fact month lot right study book eye job word business issue side kind head house
    service friend father power hour game line end member law car city community name president team minute idea
    kid body information back parent face others level office door health person art war history party result
    change morning reason research girl guy moment air teacher force education
    """,
)


def _mixed() -> list[str]:
    chance = random.Random(_SEED)
    return [" ".join(chance.choices(_WORDS, k=chance.randint(*_MIXED_WORDS))) for _ in range(_MIXED_TEXTS)]


WORKLOADS: Mapping[str, Sequence[str]] = {"13 words": (SENTENCE,), "3 to 200 words": _mixed()}

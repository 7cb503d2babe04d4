"""An embeddings route of a running server: how to ask it, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from benchmarks.serving.load import Load, Order, generate

_REQUEST_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one text is asked for and answered, in JSON."""

    path: str
    ask: Callable[[str], Any]
    vector: Callable[[Any], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A running server's route; it takes one text a request."""

    name: str
    port: int
    protocol: Protocol
    # Names and values.
    headers: Sequence[tuple[str, str]] = ()

    def embed(self, text: str) -> npt.NDArray[np.float64]:
        """Return the text's vector. Raises ``httpx.HTTPError`` for any answer but success."""
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}{self.protocol.path}",
            json=self.protocol.ask(text),
            headers=list(self.headers),
            timeout=_REQUEST_TIMEOUT_S,
        )
        answer.raise_for_status()
        return np.array(self.protocol.vector(answer.json()))

    def load(self, texts: Sequence[str], *, connections: int, warm_up_s: float, seconds: float) -> Load:
        """Return what a load generator sees that sends the texts over and over."""
        return generate(
            Order(
                port=self.port,
                headers=self.headers,
                calls=[(self.protocol.path, json.dumps(self.protocol.ask(text))) for text in texts],
                connections=connections,
                warm_up_s=warm_up_s,
                seconds=seconds,
            )
        )

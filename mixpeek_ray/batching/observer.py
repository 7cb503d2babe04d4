"""What may be noticed of models at work, by whoever counts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.core.records import Principal

_ANSWERED = 200
# As the access log has it for who left before the answer.
_CALLER_LEFT, _CALLER_LEFT_CODE = 499, "client_closed_request"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that has its answer, or its refusal."""

    organization_id: str
    # A built-in model's own name, or ``{namespace}/{model_id}``; None when the caller may use no model of that name.
    model: str | None
    # Texts or documents, and their tokens; no tokens without an answer.
    items: int
    tokens: int
    # From the checked request to the computed answer.
    latency_s: float
    # The HTTP status, and the code of the error; empty for an answer.
    status: int
    error_code: str
    # Computed for nobody, to see how the model would do.
    is_shadow: bool = False


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Items that a model computed together."""

    model: str
    items: int
    tokens: int
    # How long its longest-waiting request had waited for its first turn, and how many requests were left.
    waited_s: float
    waiting: int


class Observer(Protocol):
    """Is told of every request, batch and load. Called on hot paths, from several threads; must not raise."""

    def answered(self, request: Request) -> None:
        """Take note of a request that has ended."""

    def computed(self, batch: Batch) -> None:
        """Take note of a batch that has been computed."""

    def loaded(self, model: str, *, seconds: float, shared_bytes: int) -> None:
        """Take note of a model that is at hand; ``shared_bytes``: its tensors, which are views."""

    def unloaded(self, model: str, *, shared_bytes: int) -> None:
        """Take note of a model that was let go."""


class Unobserved:
    """An ``Observer`` that takes no note."""

    def answered(self, request: Request) -> None:
        """Do nothing; as does all that follows."""

    def computed(self, batch: Batch) -> None:
        """Do nothing."""

    def loaded(self, model: str, *, seconds: float, shared_bytes: int) -> None:
        """Do nothing."""

    def unloaded(self, model: str, *, shared_bytes: int) -> None:
        """Do nothing."""


@dataclass(kw_only=True)
class Observed:
    """A request under way: whoever learns which model answers, and what it read, says so here."""

    model: str | None = None
    items: int = 0
    tokens: int = 0


@contextmanager
def observed(
    observer: Observer, principal: Principal, *, items: int = 0, is_shadow: bool = False
) -> Iterator[Observed]:
    """Tell ``observer`` of the request that is answered inside the block, however it ends."""
    under_way = Observed(items=items)
    status, error_code = _ANSWERED, ""
    started_s = time.perf_counter()
    try:
        yield under_way
    except MixpeekError as error:
        status, error_code = error.status, error.code
        raise
    except asyncio.CancelledError:
        status, error_code = _CALLER_LEFT, _CALLER_LEFT_CODE
        raise
    except BaseException:
        status, error_code = MixpeekError.status, MixpeekError.code
        raise
    finally:
        observer.answered(
            Request(
                organization_id=principal.organization.organization_id,
                model=under_way.model,
                items=under_way.items,
                tokens=under_way.tokens,
                latency_s=time.perf_counter() - started_s,
                status=status,
                error_code=error_code,
                is_shadow=is_shadow,
            )
        )

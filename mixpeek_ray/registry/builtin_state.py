"""Where each built-in model's weights stand. Pure: no Ray, no I/O, and the time is told.

A model moves like this::

    absent ──started──▶ absent, under way ──loaded──▶ loaded ──dropped, unless warm or in use──▶ absent
       ▲                     │
       └───────failed────────┘     (the failure answers every call for a while, then the next one tries again)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mixpeek_ray.catalog.availability import Availability, BuiltinModel
from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.catalog.catalog import Catalog
from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.registry.handles import LoadTicket

# Callers of a site without weights hear so at once, not after another try each; a site that is mended soon recovers.
FAILURE_S = 15.0
_NOT_PROBED = "It is not known yet whether its weights can be had: ask again in a few seconds."


@dataclass(frozen=True, kw_only=True)
class _Failure:
    error: MixpeekError
    at: float


@dataclass(frozen=True, kw_only=True)
class _Probe:
    # Why the weights cannot be had; None: they can.
    problem: str | None
    at: float


@dataclass(kw_only=True)
class _Entry:
    card: ModelCard
    warm: bool
    ticket: LoadTicket | None = None
    # When somebody last resolved it or said that it is in use.
    used_at: float = 0.0
    failure: _Failure | None = None
    probe: _Probe | None = None


class BuiltinStates:
    """Every built-in model; each method is one transition or one question. ``now``: monotonic seconds."""

    def __init__(self, catalog: Catalog, *, warm: Iterable[str], idle_s: float) -> None:
        """Begin with nothing loaded. Raises ``ModelNotFoundError`` when ``warm`` names no model of the catalog."""
        self._catalog = catalog
        self._idle_s = idle_s
        kept = {catalog.find(name).name for name in warm}
        self._entries = {name: _Entry(card=card, warm=name in kept) for name, card in catalog.items()}

    def card(self, name: str) -> ModelCard:
        """Return the card with this name or alias. Raises ``ModelNotFoundError``."""
        return self._catalog.find(name)

    def use(self, card: ModelCard, now: float) -> LoadTicket | None:
        """Return where the weights are, as of now in use; None when they are absent.

        Raises what the last attempt to load them failed with, while that is recent.
        """
        entry = self._entries[card.name]
        if entry.failure is not None and now - entry.failure.at < FAILURE_S:
            # Raised again and again: without this, each time adds to its traceback.
            raise entry.failure.error.with_traceback(None)
        entry.used_at = now
        return entry.ticket

    def keep(self, names: Iterable[str], now: float) -> None:
        """Count these models as in use. Raises ``ModelNotFoundError``."""
        for name in names:
            self._entries[self._catalog.find(name).name].used_at = now

    def loaded(self, card: ModelCard, ticket: LoadTicket, now: float) -> None:
        """Take note of where the weights are."""
        entry = self._entries[card.name]
        entry.ticket, entry.failure, entry.used_at = ticket, None, now

    def failed(self, card: ModelCard, error: MixpeekError, now: float) -> None:
        """Take note of why the weights could not be loaded."""
        self._entries[card.name].failure = _Failure(error=error, at=now)

    def probed(self, card: ModelCard, problem: str | None, now: float) -> None:
        """Take note of why the weights cannot be had from where they are; None: they can."""
        self._entries[card.name].probe = _Probe(problem=problem, at=now)

    def drop_idle(self, now: float) -> tuple[str, ...]:
        """Forget where the weights are that nobody used for long, and return their models' names."""
        idle = [
            entry
            for entry in self._entries.values()
            if entry.ticket is not None and not entry.warm and now - entry.used_at >= self._idle_s
        ]
        for entry in idle:
            entry.ticket = None
        return tuple(entry.card.name for entry in idle)

    def missing_warm(self, now: float) -> tuple[ModelCard, ...]:
        """Return the warm models that are to be loaded now."""
        return tuple(
            entry.card
            for entry in self._entries.values()
            if entry.warm and entry.ticket is None and (entry.failure is None or now - entry.failure.at >= FAILURE_S)
        )

    def models(self, local: Mapping[str, str | None]) -> tuple[BuiltinModel, ...]:
        """Return every model, in the catalog's order.

        ``local``: of each model with weights on this machine's disk, why they cannot be had now, or None.
        """
        return tuple(_described(entry, local) for entry in self._entries.values())


def _described(entry: _Entry, local: Mapping[str, str | None]) -> BuiltinModel:
    if entry.ticket is not None:
        return BuiltinModel(card=entry.card, availability=Availability.LOADED)
    problem = _problem(entry, local)
    availability = Availability.AVAILABLE if problem is None else Availability.UNAVAILABLE
    return BuiltinModel(card=entry.card, availability=availability, reason=problem)


def _problem(entry: _Entry, local: Mapping[str, str | None]) -> str | None:
    """Return why the next call would fail, as far as is known: what was seen last counts."""
    name, failure, probe = entry.card.name, entry.failure, entry.probe
    if name in local:
        # Looking at a directory does not tell that its weights can be used: an attempt does.
        return local[name] or (failure.error.message if failure is not None else None)
    if failure is not None and (probe is None or failure.at >= probe.at):
        return failure.error.message
    return probe.problem if probe is not None else _NOT_PROBED

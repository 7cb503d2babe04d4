"""Where built-in models' weights stand, with the time told."""

from __future__ import annotations

import json

import pytest

from mixpeek_ray.catalog.availability import Availability
from mixpeek_ray.catalog.catalog import Catalog, parse_catalog
from mixpeek_ray.core.errors import ModelNotFoundError, WeightsUnavailableError
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.registry.builtin_state import FAILURE_S, BuiltinStates
from mixpeek_ray.registry.handles import LoadTicket

IDLE_S = 100.0


def entry(name: str, *aliases: str) -> dict[str, object]:
    return {
        "name": name,
        "aliases": aliases,
        "family": "rerank",
        "activation": "none",
        "source": {"hub": "owner/name"},
        "licence": "MIT",
        "description": "A model.",
        "max_tokens": 64,
    }


@pytest.fixture
def catalog() -> Catalog:
    models = [entry("one", "first"), entry("two")]
    return parse_catalog(json.dumps({"models": models}), file_name="test.yaml")


@pytest.fixture
def states(catalog: Catalog) -> BuiltinStates:
    return BuiltinStates(catalog, warm=(), idle_s=IDLE_S)


def ticket(content_id: str = "a") -> LoadTicket:
    return LoadTicket(content_id=content_id, kind=ModelKind.HUGGINGFACE, refs=(None, None))


def unavailable(message: str = "Not here.") -> WeightsUnavailableError:
    return WeightsUnavailableError(message, model="one")


def availability(states: BuiltinStates, **local: str | None) -> dict[str, Availability]:
    return {model.card.name: model.availability for model in states.models(local)}


def reason(states: BuiltinStates, **local: str | None) -> str | None:
    return states.models(local)[0].reason


def test_what_is_loaded_is_found_by_name_and_alias(states: BuiltinStates) -> None:
    card = states.card("first")
    assert states.use(card, 0.0) is None
    states.loaded(card, ticket(), 1.0)
    assert states.use(states.card("one"), 2.0) == ticket()
    assert states.use(states.card("two"), 2.0) is None
    assert availability(states)["one"] is Availability.LOADED


def test_unknown_names_are_no_models(catalog: Catalog, states: BuiltinStates) -> None:
    with pytest.raises(ModelNotFoundError):
        states.card("three")
    with pytest.raises(ModelNotFoundError):
        states.keep(["one", "three"], 0.0)
    with pytest.raises(ModelNotFoundError, match="three"):
        BuiltinStates(catalog, warm=["three"], idle_s=IDLE_S)


def test_a_failure_answers_for_a_while_and_then_the_next_call_tries_again(states: BuiltinStates) -> None:
    card = states.card("one")
    states.failed(card, unavailable(), 10.0)
    for moment in (10.0, 10.0 + FAILURE_S - 0.1):
        with pytest.raises(WeightsUnavailableError, match="Not here"):
            states.use(card, moment)
    assert states.use(card, 10.0 + FAILURE_S) is None
    states.loaded(card, ticket(), 30.0)
    assert states.use(card, 30.0) == ticket()


def test_a_failure_that_is_raised_often_does_not_grow(states: BuiltinStates) -> None:
    card = states.card("one")
    states.failed(card, unavailable(), 0.0)
    depths = []
    for _ in range(3):
        with pytest.raises(WeightsUnavailableError) as raised:
            states.use(card, 1.0)
        depths.append(len(raised.traceback))
    assert depths[0] == depths[-1]


def test_idle_weights_go_and_used_ones_stay(states: BuiltinStates) -> None:
    for name in ("one", "two"):
        states.loaded(states.card(name), ticket(), 0.0)
    states.keep(["first"], 60.0)
    assert states.drop_idle(IDLE_S - 1) == ()
    assert states.drop_idle(IDLE_S) == ("two",)
    assert states.use(states.card("two"), IDLE_S) is None
    assert states.use(states.card("one"), IDLE_S) == ticket()
    assert states.drop_idle(2 * IDLE_S - 1) == ()
    assert states.drop_idle(2 * IDLE_S) == ("one",)
    assert states.drop_idle(9 * IDLE_S) == ()


def test_warm_models_are_wanted_and_stay(catalog: Catalog) -> None:
    states = BuiltinStates(catalog, warm=["first"], idle_s=IDLE_S)
    card = states.card("one")
    assert states.missing_warm(0.0) == (card,)
    states.failed(card, unavailable(), 0.0)
    assert states.missing_warm(FAILURE_S - 1) == ()
    assert states.missing_warm(FAILURE_S) == (card,)
    states.loaded(card, ticket(), 20.0)
    assert states.missing_warm(50.0) == ()
    assert states.drop_idle(99 * IDLE_S) == ()


def test_what_was_learnt_last_about_weights_elsewhere_counts(states: BuiltinStates) -> None:
    card = states.card("one")
    assert "not known yet" in str(reason(states))
    states.probed(card, None, 1.0)
    assert (availability(states)["one"], reason(states)) == (Availability.AVAILABLE, None)
    states.failed(card, unavailable(), 2.0)
    assert (availability(states)["one"], reason(states)) == (Availability.UNAVAILABLE, "Not here.")
    states.probed(card, None, 3.0)
    assert availability(states)["one"] is Availability.AVAILABLE
    states.probed(card, "Gone.", 4.0)
    assert (availability(states)["one"], reason(states)) == (Availability.UNAVAILABLE, "Gone.")


def test_a_directory_counts_as_it_is_now_unless_its_weights_failed(states: BuiltinStates) -> None:
    card = states.card("one")
    states.probed(card, "The hub is away.", 1.0)
    assert availability(states, one=None)["one"] is Availability.AVAILABLE
    assert reason(states, one="No directory.") == "No directory."
    states.failed(card, unavailable("Broken."), 2.0)
    assert reason(states, one=None) == "Broken."
    states.loaded(card, ticket(), 3.0)
    assert availability(states, one="No directory.")["one"] is Availability.LOADED

"""Versions in the order of their numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from custom_models import custom_model
from hypothesis import given
from hypothesis import strategies as st

from mixpeek_ray.core import ids
from mixpeek_ray.core.records import ModelManifest
from mixpeek_ray.core.semver import latest_ids, newest_first

# Everything that an upload accepts; small numbers on purpose: they are what is mixed up when compared as text.
PARTS = st.one_of(st.integers(0, 12), st.integers(0, 999_999_999))
VERSIONS = st.tuples(PARTS, PARTS, PARTS)


def manifest(name: str, version: str) -> ModelManifest:
    found = custom_model(name).manifest
    return replace(found, version=version, model_id=ids.model_id(name, version))


@pytest.mark.parametrize(
    ("lower", "higher"),
    [("1.9.0", "1.10.0"), ("0.99.99", "1.0.0"), ("1.0.9", "1.0.10"), ("2.0.0", "10.0.0"), ("0.0.0", "0.0.1")],
)
def test_numbers_decide_and_not_their_spelling(lower, higher):
    versions = [manifest("m", lower), manifest("m", higher)]
    assert [found.version for found in newest_first(versions)] == [higher, lower]
    assert latest_ids(versions) == latest_ids(versions[::-1]) == {ids.model_id("m", higher)}


@given(st.lists(VERSIONS, min_size=1, unique=True))
def test_the_order_is_that_of_the_tuples(versions):
    made = [manifest("m", ids.check_version(".".join(map(str, parts)))) for parts in versions]
    expected = [".".join(map(str, parts)) for parts in sorted(versions, reverse=True)]
    assert [found.version for found in newest_first(made)] == expected
    assert latest_ids(made) == {ids.model_id("m", expected[0])}


def test_each_name_has_a_latest_of_its_own():
    # Names may look like ids of one another.
    versions = [manifest("a", "1.0.0"), manifest("a", "1.1.0"), manifest("a_1", "0.0.1"), manifest("b", "0.1.0")]
    assert latest_ids(versions) == {"a_1_1_0", "a_1_0_0_1", "b_0_1_0"}
    assert latest_ids([]) == frozenset()

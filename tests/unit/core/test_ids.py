"""Names, versions and the ids made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpeek_ray.core import ids
from mixpeek_ray.core.errors import InvalidNameError, InvalidVersionError

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
# Small numbers on purpose: they are what makes two pairs nearly collide.
PARTS = st.one_of(st.integers(0, 3), st.integers(0, 999_999_999))
VERSIONS = st.tuples(PARTS, PARTS, PARTS).map(lambda parts: ".".join(map(str, parts)))


@given(NAMES, VERSIONS)
def test_an_id_says_which_name_and_version_it_was_made_of(name, version):
    made = ids.model_id(ids.check_name(name), ids.check_version(version))
    *rest, major, minor, patch = made.split("_")
    assert ("_".join(rest), f"{major}.{minor}.{patch}") == (name, version)


@given(NAMES, VERSIONS, NAMES, VERSIONS)
def test_different_pairs_have_different_ids(name, version, other_name, other_version):
    same_pair = (name, version) == (other_name, other_version)
    assert (ids.model_id(name, version) == ids.model_id(other_name, other_version)) == same_pair


@pytest.mark.parametrize(
    ("name", "version", "other_name", "other_version"),
    [("a_1", "0.0.1", "a", "1.0.0"), ("a_1_0", "0.1.0", "a_1", "0.0.1"), ("a_0", "0.0.0", "a", "0.0.0")],
)
def test_pairs_that_look_alike_with_underscores_stay_apart(name, version, other_name, other_version):
    assert ids.model_id(name, version) != ids.model_id(other_name, other_version)


def test_the_products_own_example():
    assert ids.model_id("my-embedding-model", "1.0.0") == "my-embedding-model_1_0_0"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../x",
        "a/b",
        "a\0b",
        "x" * 300,
        "x" * 65,
        "a\u202eb",
        "_a",
        "-a",
        "a b",
        "a.b",
        "a\n",
        "\u0661",
        "\uff21",
        ".",
    ],
)
def test_names_that_are_none(name):
    with pytest.raises(InvalidNameError) as caught:
        ids.check_name(name)
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 700


@pytest.mark.parametrize(
    "version",
    [
        "",
        "latest",
        "1..0",
        "1.0",
        "1.0.0.0",
        "1.0.0/../",
        "01.0.0",
        "1.0.0\n",
        "-1.0.0",
        "1.0.0-rc1",
        "\u0661.0.0",
        "1.0.1e3",
    ],
)
def test_versions_that_are_none(version):
    with pytest.raises(InvalidVersionError) as caught:
        ids.check_version(version)
    assert caught.value.message.isascii()


def test_versions_sort_by_number():
    assert sorted(["1.10.0", "1.9.0", "0.99.99"], key=ids.version_key) == ["0.99.99", "1.9.0", "1.10.0"]


def test_new_ids_do_not_repeat():
    assert len({ids.new_id("ns") for _ in range(1000)}) == 1000

"""Which version an alias means at a point, and how aliases are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpeek_ray.core.aliases import (
    AliasRef,
    WeightedTarget,
    check_alias,
    choose,
    parse_reference,
    random_point,
    sticky_point,
)
from mixpeek_ray.core.errors import InvalidNameError

REF = AliasRef(namespace_id="ns_a", name="model", alias="production")
POINT_OF_USER_1 = 0.44500762983017284
WEIGHTS = st.lists(st.integers(0, 1_000_000), min_size=1, max_size=8).filter(any)
# The ends, and points that a hash or a random number could be.
POINTS = st.one_of(st.just(0.0), st.just(1 - 2**-53), st.floats(0, 1, exclude_max=True))


def targets(*weights: int) -> list[WeightedTarget]:
    return [WeightedTarget(model_id=f"m{place}", weight=weight) for place, weight in enumerate(weights)]


@given(WEIGHTS, POINTS)
def test_every_point_has_a_version_and_never_one_without_weight(weights, point):
    chosen = choose(targets(*weights), point)
    assert weights[int(chosen[1:])] > 0


@given(WEIGHTS)
def test_shares_are_the_weights(weights):
    steps = 2_000
    chosen = [choose(targets(*weights), (step + 0.5) / steps) for step in range(steps)]
    for place, weight in enumerate(weights):
        # Each boundary moves a share by at most one step.
        assert abs(chosen.count(f"m{place}") / steps - weight / sum(weights)) <= 1.001 / steps


@given(st.integers(0, 100), st.integers(0, 100), POINTS)
def test_who_met_the_canary_meets_it_still_when_its_share_grows(one, other, point):
    before, after = sorted((one, other))
    if choose(targets(before, 100 - before), point) == "m0":
        assert choose(targets(after, 100 - after), point) == "m0"


# Products of these points with sums of these weights are exact: what lies on a boundary lies there in both.
EXACT_POINTS = st.integers(0, 1023).map(lambda step: step / 1024)
THREE_WEIGHTS = st.tuples(*[st.integers(0, 100)] * 3).filter(any)


@given(THREE_WEIGHTS, THREE_WEIGHTS, st.sampled_from([0, 2]), EXACT_POINTS)
def test_of_several_versions_the_highest_and_the_lowest_keep_whom_they_have(one, other, place, point):
    before, after = sorted((one, other), key=lambda weights: weights[place] / sum(weights))
    if choose(targets(*before), point) == f"m{place}":
        assert choose(targets(*after), point) == f"m{place}"


def test_points_of_texts_are_spread_evenly_and_stay_what_they_are():
    points = [sticky_point(REF, f"user-{number}") for number in range(10_000)]
    assert all(0 <= point < 1 for point in points)
    for tenth in range(10):
        assert abs(sum(tenth <= 10 * point < tenth + 1 for point in points) - 1_000) < 150
    # Written down: a release that hashes differently would move everybody.
    assert sticky_point(REF, "user-1") == POINT_OF_USER_1
    other = AliasRef(namespace_id="ns_a", name="model", alias="staging")
    assert sticky_point(other, "user-1") != sticky_point(REF, "user-1")


def test_texts_that_join_alike_have_points_of_their_own():
    one = AliasRef(namespace_id="ns_a", name="model", alias="x")
    other = AliasRef(namespace_id="ns_a", name="modelx", alias="")
    assert sticky_point(one, "y") != sticky_point(other, "y")
    assert 0 <= sticky_point(one, "\udc80 naïve") < 1


def test_random_points_spread():
    points = [random_point() for _ in range(10_000)]
    assert all(0 <= point < 1 for point in points)
    assert abs(sum(points) / len(points) - 0.5) < 0.03


@pytest.mark.parametrize("text", ["model@production", "m@latest", "A_1-b@x", "m@_-9"])
def test_references_are_read_as_they_are_written(text):
    found = parse_reference("ns_a", text)
    assert found is not None
    assert found.reference == text


@pytest.mark.parametrize(
    "text",
    [
        "model",
        "model_1_0_0",
        "@x",
        "model@",
        "model@Prod",
        "model@-x",
        "a@b@c",
        "a b@x",
        "m@x\n",
        "m@" + "x" * 65,
        "m@ü",
    ],
)
def test_anything_else_is_no_reference(text):
    assert parse_reference("ns_a", text) is None


@pytest.mark.parametrize("alias", ["latest", "", "-a", "Prod", "a.b", "x" * 65, "a\u202e", "../x"])
def test_names_that_no_alias_may_have(alias):
    with pytest.raises(InvalidNameError) as refused:
        check_alias(alias)
    assert refused.value.message.isascii()

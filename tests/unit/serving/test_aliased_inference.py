"""Text inference by an alias: which version is asked, and what happens to one that went away meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from fake_inference import FakeInference
from local_models import CALLERS
from waiting import until

from mixpeek_ray.api.alias_resolver import AliasResolver
from mixpeek_ray.core.alias_options import Shadow
from mixpeek_ray.core.aliases import AliasRef, AliasRoute, WeightedTarget
from mixpeek_ray.core.errors import AliasNotFoundError, ModelNotDeployedError, ModelNotFoundError, ValidationError
from mixpeek_ray.core.records import Tier
from mixpeek_ray.serving.aliased_inference import AliasedInference, RerankRequest, TextRequest
from mixpeek_ray.serving.shadows import ShadowTraffic

pytestmark = pytest.mark.anyio

READER = CALLERS["sk_reader"]
REF = AliasRef(namespace_id="ns_acme", name="m", alias="production")
BY_ALIAS = "ns_acme/m@production"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Versions(FakeInference):
    """Computes for the versions that are deployed; ``targets`` is what the registry says now."""

    def __init__(self) -> None:
        super().__init__()
        self.deployed = {"ns_acme/m_1_0_0", "ns_acme/m_2_0_0"}
        self.targets = {"m_2_0_0": 1, "m_1_0_0": 1}
        self.shadow: Shadow | None = None
        self.dropped: list[str] = []
        self.by_alias = self.aliased()

    def aliased(self) -> AliasedInference:
        """Return the same as another process has it."""
        return AliasedInference(self, AliasResolver(self.ask), ShadowTraffic(dropped=self.dropped.append))

    async def ask(self, principal, ref):
        """Answer as the registry."""
        if ref != REF:
            raise AliasNotFoundError("No such alias.")
        targets = tuple(WeightedTarget(model_id=model_id, weight=weight) for model_id, weight in self.targets.items())
        return AliasRoute(targets=targets, shadow=self.shadow)

    def _enter(self, request):
        super()._enter(request)
        if request.model not in self.deployed:
            raise ModelNotDeployedError("Not deployed.", field="model")


@pytest.fixture
def versions() -> Versions:
    return Versions()


def texts(model: str = BY_ALIAS, sticky: str | None = None) -> TextRequest:
    return TextRequest(model=model, inputs=["a"], sticky=sticky)


async def test_the_answer_names_the_version_and_shares_are_the_weights(versions):
    versions.targets = {"m_2_0_0": 20, "m_1_0_0": 80}
    met = Counter([(await versions.by_alias.embed(READER, texts())).model for _ in range(2_000)])
    assert set(met) == versions.deployed
    # Ten standard deviations around 400.
    assert 220 < met["ns_acme/m_2_0_0"] < 580


async def test_whoever_met_the_canary_meets_it_still_as_it_grows(versions):
    users = [f"user-{number}" for number in range(100)]
    canary: set[str] = set()
    for weight in (0, 10, 50, 100):
        versions.targets = {"m_2_0_0": weight, "m_1_0_0": 100 - weight}
        by_alias = versions.aliased()
        answers = {user: (await by_alias.embed_sparse(READER, texts(sticky=user))).model for user in users}
        now = {user for user, model in answers.items() if model == "ns_acme/m_2_0_0"}
        assert canary <= now
        assert abs(len(now) - weight) < 20
        canary = now
    assert len(canary) == 100


async def test_a_version_that_went_away_since_is_asked_for_no_more(versions):
    versions.targets = {"m_1_0_0": 1}
    await versions.by_alias.embed(READER, texts())
    versions.targets = {"m_2_0_0": 1}
    versions.deployed = {"ns_acme/m_2_0_0"}
    computed = await versions.by_alias.embed_multi_vector(READER, texts())
    assert computed.model == "ns_acme/m_2_0_0"
    versions.deployed = set()
    with pytest.raises(ModelNotDeployedError):
        await versions.by_alias.embed(READER, texts())
    # Once for the answer, once for what it said; a version that is still meant is not asked again.
    assert len(versions.requests) == 4


async def test_other_names_pass_as_they_are(versions):
    versions.deployed |= {"dense", "ns_acme/x", "m@production"}
    for name in ("dense", "ns_acme/x", "m@production", "ns_acme/m_1_0_0"):
        assert (await versions.by_alias.embed(READER, texts(name))).model == name


async def test_an_alias_that_is_not_there_looks_like_no_model(versions):
    with pytest.raises(ModelNotFoundError) as refused:
        await versions.by_alias.rerank(READER, RerankRequest(model="ns_acme/m@x", query="q", documents=["d"]))
    assert refused.value.details == {"field": "model"}
    poor = replace(READER, organization=replace(READER.organization, tier=Tier.PRO))
    with pytest.raises(ModelNotFoundError):
        await versions.by_alias.embed(poor, texts())


async def settled(versions) -> None:
    await until(lambda: not versions.by_alias._shadows._under_way)


async def test_the_shadow_computes_a_share_of_what_was_answered(versions):
    versions.targets, versions.shadow = {"m_2_0_0": 0, "m_1_0_0": 1}, Shadow(model_id="m_2_0_0", percent=30)
    for _ in range(400):
        assert (await versions.by_alias.embed(READER, texts(sticky="same"))).model == "ns_acme/m_1_0_0"
        await settled(versions)
    mirrored = [request for request in versions.requests if request.is_shadow]
    # Six standard deviations around 120.
    assert 65 < len(mirrored) < 175
    assert {request.model for request in mirrored} == {"ns_acme/m_2_0_0"}
    assert {tuple(request.inputs) for request in mirrored} == {("a",)}
    assert versions.dropped == []


async def test_every_route_is_mirrored_and_a_failing_shadow_is_not_heard(versions):
    versions.targets, versions.shadow = {"m_1_0_0": 1}, Shadow(model_id="m_2_0_0", percent=100)
    versions.deployed = {"ns_acme/m_1_0_0"}
    for compute in (versions.by_alias.embed, versions.by_alias.embed_sparse, versions.by_alias.embed_multi_vector):
        assert (await compute(READER, texts())).model == "ns_acme/m_1_0_0"
        await settled(versions)
    await versions.by_alias.rerank(READER, RerankRequest(model=BY_ALIAS, query="q", documents=["d"]))
    await settled(versions)
    assert [request.is_shadow for request in versions.requests] == [False, True] * 4


async def test_a_refused_request_is_not_mirrored(versions):
    versions.targets, versions.shadow = {"m_1_0_0": 1}, Shadow(model_id="m_2_0_0", percent=100)
    versions.failure = ValidationError("No.")
    with pytest.raises(ValidationError):
        await versions.by_alias.embed(READER, texts())
    assert len(versions.requests) == 1

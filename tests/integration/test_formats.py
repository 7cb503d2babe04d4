"""Every format, from its archive to what two workers of a real cluster make of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save

from tests.integration.models import deploy, tar_gz, upload

GIVEN = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)


class User:
    """A worker that loads a model and uses it."""

    def load(self, model_id: str, namespace: str) -> str:
        from engine.models.loader import load_namespace_model

        self.model = load_namespace_model(model_id, namespace_id=namespace)
        return type(self.model).__name__

    def run_onnx(self, given: Any) -> Any:
        return self.model.run(None, {"given": given})[0]

    def run_module(self, given: Any) -> Any:
        with torch.no_grad():
            return self.model(torch.from_numpy(given.copy())).numpy()

    def run_state_dict(self, given: Any) -> Any:
        module = small_module()
        module.load_state_dict(self.model)
        with torch.no_grad():
            return module(torch.from_numpy(given.copy())).numpy()

    def run_transformer(self, ids: list[list[int]]) -> Any:
        self.transformer = self.model.model()
        with torch.no_grad():
            return self.transformer(torch.tensor(ids)).last_hidden_state.numpy()

    def scribble(self) -> None:
        """Write over every weight that this worker sees."""
        tensors = self.model.values() if isinstance(self.model, dict) else self.model.parameters()
        for tensor in tensors:
            tensor.data.fill_(3.0)

    def scribble_transformer(self) -> None:
        for tensor in self.model.state_dict.values():
            tensor.fill_(3)


def small_module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)).eval()


@pytest.fixture
def source() -> torch.nn.Module:
    torch.manual_seed(5)
    return small_module()


@pytest.fixture
def expected(source: torch.nn.Module) -> Any:
    with torch.no_grad():
        return source(torch.from_numpy(GIVEN)).numpy()


@pytest.fixture
def new_user(driver: Any) -> Iterator[Callable[[], Any]]:
    users = []

    def start() -> Any:
        users.append(driver.remote(User).options(num_cpus=0).remote())
        return users[-1]

    yield start
    for user in users:
        driver.kill(user)


def deployed(http: httpx.Client, namespace: str, files: dict[str, bytes], model_format: str) -> str:
    answer = upload(http, namespace, tar_gz(files), model_format=model_format)
    assert answer.status_code == 200, answer.text
    model_id = str(answer.json()["model_id"])
    deploy(http, namespace, model_id)
    return model_id


def document(http: httpx.Client, namespace: str, model_id: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/v1/namespaces/{namespace}/models/{model_id}").json()["model"]
    return found


def onnx_files(source: torch.nn.Module, *, external: bool) -> dict[str, bytes]:
    """Return the module as an ONNX model, its weights inside or in a file beside it."""
    state = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    nodes = [
        onnx.helper.make_node("Gemm", ["given", "0.weight", "0.bias"], ["hidden"], transB=1),
        onnx.helper.make_node("Relu", ["hidden"], ["positive"]),
        onnx.helper.make_node("Gemm", ["positive", "2.weight", "2.bias"], ["result"], transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [onnx.helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(array, name) for name, array in state.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    if not external:
        return {"model.onnx": model.SerializeToString()}
    data = b""
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", len(data)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        data += raw
    return {"model.onnx": model.SerializeToString(), "weights.bin": data}


@pytest.mark.parametrize("external", [False, True], ids=["one-file", "external-data"])
def test_onnx(
    external: bool,
    http: httpx.Client,
    namespace: str,
    driver: Any,
    new_user: Callable[[], Any],
    source: torch.nn.Module,
    expected: Any,
) -> None:
    model_id = deployed(http, namespace, onnx_files(source, external=external), "onnx")
    found = document(http, namespace, model_id)
    assert (found["kind"], found["parameter_count"]) == ("onnx", 64 * 128 + 128 + 128 * 8 + 8)
    assert found["input_schema"]["properties"]["given"]["x-shape"] == ["batch", 64]
    for user in (new_user(), new_user()):
        assert driver.get(user.load.remote(model_id, namespace)) == "InferenceSession"
        np.testing.assert_allclose(driver.get(user.run_onnx.remote(GIVEN)), expected, atol=1e-5)


def test_torchscript(
    http: httpx.Client, namespace: str, driver: Any, new_user: Callable[[], Any], source: torch.nn.Module, expected: Any
) -> None:
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(source), program)
    model_id = deployed(http, namespace, {"model.pt": program.getvalue()}, "pytorch")
    assert document(http, namespace, model_id)["kind"] == "torchscript"
    first, second = new_user(), new_user()
    for user in (first, second):
        driver.get(user.load.remote(model_id, namespace))
        np.testing.assert_array_equal(driver.get(user.run_module.remote(GIVEN)), expected)
    driver.get(first.scribble.remote())
    assert not np.array_equal(driver.get(first.run_module.remote(GIVEN)), expected)
    np.testing.assert_array_equal(driver.get(second.run_module.remote(GIVEN)), expected)


def test_sharded_safetensors(
    http: httpx.Client, namespace: str, driver: Any, new_user: Callable[[], Any], source: torch.nn.Module, expected: Any
) -> None:
    state = source.state_dict()
    files = {
        "m/model-00001-of-00002.safetensors": save({name: state[name] for name in ("0.weight", "0.bias")}),
        "m/model-00002-of-00002.safetensors": save({name: state[name] for name in ("2.weight", "2.bias")}),
    }
    model_id = deployed(http, namespace, files, "safetensors")
    first, second = new_user(), new_user()
    for user in (first, second):
        driver.get(user.load.remote(model_id, namespace))
    driver.get(first.scribble.remote())
    np.testing.assert_array_equal(driver.get(second.run_state_dict.remote(GIVEN)), expected)


def test_huggingface(
    http: httpx.Client, namespace: str, driver: Any, new_user: Callable[[], Any], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    source = BertModel(config).eval()
    source.save_pretrained(tmp_path)
    files = {f"my-bert/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}
    model_id = deployed(http, namespace, files, "huggingface")
    found = document(http, namespace, model_id)
    assert (found["kind"], found["architecture"]) == ("huggingface", "BertModel")
    ids = [[1, 2, 3, 4], [9, 8, 7, 6]]
    with torch.no_grad():
        expected = source(torch.tensor(ids)).last_hidden_state.numpy()
    first, second = new_user(), new_user()
    for user in (first, second):
        assert driver.get(user.load.remote(model_id, namespace)) == "HuggingFaceModel"
        np.testing.assert_array_equal(driver.get(user.run_transformer.remote(ids)), expected)
    # A view outlives the model: nothing that a registry does reaches into a worker.
    assert http.delete(f"/v1/namespaces/{namespace}/models/{model_id}").status_code == 200
    driver.get(first.scribble_transformer.remote())
    np.testing.assert_array_equal(driver.get(second.run_transformer.remote(ids)), expected)


def test_a_program_that_writes_files_is_refused(http: httpx.Client, namespace: str) -> None:
    class Writer(torch.nn.Module):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            torch.save(given, "canary")
            return given

    program = io.BytesIO()
    torch.jit.save(torch.jit.script(Writer()), program)
    answer = upload(http, namespace, tar_gz({"model.pt": program.getvalue()}))
    assert answer.status_code == 422, answer.text
    assert http.get(f"/v1/namespaces/{namespace}/models").json()["total"] == 0


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"m/config.json": b'{"auto_map": {"AutoModel": "x.Y"}}'}, "remote_code_not_allowed"),
        ({"m/config.json": b"{}", "m/modeling.py": b"import os"}, "remote_code_not_allowed"),
    ],
    ids=["auto_map", "python"],
)
def test_remote_code_is_refused(files: dict[str, bytes], code: str, http: httpx.Client, namespace: str) -> None:
    answer = upload(
        http,
        namespace,
        tar_gz({**files, "m/model.safetensors": save({"x": torch.zeros(4)})}),
        model_format="huggingface",
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code), answer.text


def test_external_data_elsewhere_is_refused(http: httpx.Client, namespace: str, source: torch.nn.Module) -> None:
    files = onnx_files(source, external=True)
    files["model.onnx"] = files["model.onnx"].replace(b"weights.bin", b"/etc/passwd")
    answer = upload(http, namespace, tar_gz(files), model_format="onnx")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unsafe_external_data"), answer.text

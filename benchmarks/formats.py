"""Every format beside its own loader: time to load, private memory, and how fast the loaded model computes.

    python -m benchmarks.formats [--blocks 10]

One node, one platform registry, no HTTP. The same network (blocks of two matrices, 34 MB each) in every format but
`huggingface`, which is a BERT of about the same size. Every figure is the median over fresh worker processes that
imported the libraries before the clock started; files come from a warm page cache, and every network computes on one
thread. "Private" is anonymous memory that loading and a first forward pass added. The first load of an ONNX model on
a node prepares its files, once for all workers: a row of its own.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["MIXPEEK_ONNX_THREADS"] = "1"

import numpy as np
import onnx
import onnxruntime
import ray
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from benchmarks.one_node import NAMESPACE, deploy, memory
from benchmarks.report import MB, Claim, conclude, median, print_table
from engine.models.loader import load_namespace_model
from mixpeek_ray.core.records import ModelFormat
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.bootstrap import ensure_registry

WIDTH, INNER = 1024, 4096
BATCH = 16
FRESH_WORKERS = 3
SETTLE_S = 4.0
FORWARDS = 7
GIVEN = np.random.default_rng(3).standard_normal((BATCH, WIDTH)).astype(np.float32)
IDS = np.random.default_rng(3).integers(0, 30_000, (2, 64))
OURS, OWN = "this platform", "own loader"


class Block(torch.nn.Module):
    """Two matrices with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, INNER)
        self.down = torch.nn.Linear(INNER, WIDTH)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given + self.down(torch.relu(self.up(given)))


def network(blocks: int, device: str = "cpu") -> torch.nn.Module:
    with torch.device(device):
        return torch.nn.Sequential(*(Block() for _ in range(blocks))).eval()


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to load a model, and what computes with what was loaded."""

    load: Callable[[str], Any]
    forward: Callable[[Any], np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One load in one fresh worker."""

    load_s: float
    private_bytes: int
    forward_s: float
    result: np.ndarray[Any, Any]


def from_state_dict(weights: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    module = network(len(weights) // 4, device="meta")
    module.load_state_dict(weights, assign=True)
    return run_module(module)


def run_module(module: Any) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = module(torch.from_numpy(GIVEN)).numpy()
    return found


def run_bert(model: Any) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = model(torch.from_numpy(IDS)).last_hidden_state.numpy()
    return found


def run_session(session: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = session.run(None, {"given": GIVEN})[0]
    return found


def open_session(path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load_ours(model_id: str) -> Any:
    return load_namespace_model(model_id, namespace_id=NAMESPACE)


# By row of the table: what the own loader is called, it, and ours.
FORMATS: dict[str, tuple[str, Contender, Contender]] = {
    "pytorch": (
        "torch.load",
        Contender(load=lambda path: torch.load(path, weights_only=True), forward=from_state_dict),
        Contender(load=load_ours, forward=from_state_dict),
    ),
    "safetensors": (
        "load_file",
        Contender(load=load_file, forward=from_state_dict),
        Contender(load=load_ours, forward=from_state_dict),
    ),
    "torchscript": (
        "torch.jit.load",
        Contender(load=torch.jit.load, forward=run_module),
        Contender(load=load_ours, forward=run_module),
    ),
    "huggingface": (
        "AutoModel.from_pretrained",
        Contender(load=transformers.AutoModel.from_pretrained, forward=run_bert),
        Contender(load=lambda model_id: load_ours(model_id).model(), forward=run_bert),
    ),
    "onnx": (
        "InferenceSession",
        Contender(load=open_session, forward=run_session),
        Contender(load=load_ours, forward=run_session),
    ),
}


class Worker:
    """A process that loads once."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        # Not part of any contender's figures: what the libraries, and the first look-up of the registry, set up.
        run_module(network(1))
        transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=12, vocab_size=10))

    def ready(self, model_id: str | None) -> None:
        """Return when the process is up, and has asked the registry for a small model if it is given one."""
        if model_id is not None:
            load_ours(model_id)

    def load(self, row: str, side: str, argument: str) -> Sample:
        contender = FORMATS[row][2 if side == OURS else 1]
        gc.collect()
        before = memory()
        start = time.perf_counter()
        loaded = contender.load(argument)
        load_s = time.perf_counter() - start
        result = contender.forward(loaded)
        private = memory()["Anonymous"] - before["Anonymous"]
        seconds = []
        for _ in range(FORWARDS):
            start = time.perf_counter()
            contender.forward(loaded)
            seconds.append(time.perf_counter() - start)
        return Sample(load_s=load_s, private_bytes=private, forward_s=median(seconds), result=result)


def write_models(folder: Path, blocks: int) -> dict[str, Path]:
    """Write the model in every format; return what is uploaded, by row."""
    torch.manual_seed(11)
    module = network(blocks)
    paths = {row: folder / row for row in FORMATS}
    for path in paths.values():
        path.mkdir()
    torch.save(module.state_dict(), paths["pytorch"] / "model.pt")
    save_file(module.state_dict(), paths["safetensors"] / "model.safetensors")
    torch.jit.script(module).save(paths["torchscript"] / "model.pt")
    onnx.save(to_onnx(module), paths["onnx"] / "model.onnx")
    config = transformers.BertConfig(num_hidden_layers=max(1, blocks), vocab_size=30_522)
    transformers.BertModel(config).eval().save_pretrained(paths["huggingface"])
    return paths


def to_onnx(module: torch.nn.Module) -> onnx.ModelProto:
    nodes, initializers, current = [], [], "given"
    for i, block in enumerate(module.children()):
        for name, tensor in block.state_dict().items():
            initializers.append(numpy_helper.from_array(tensor.numpy(), f"{i}.{name}"))
        names = {part: f"{i}.{part}" for part in ("up.weight", "up.bias", "down.weight", "down.bias")}
        nodes += [
            helper.make_node("Gemm", [current, names["up.weight"], names["up.bias"]], [f"{i}.inner"], transB=1),
            helper.make_node("Relu", [f"{i}.inner"], [f"{i}.positive"]),
            helper.make_node(
                "Gemm", [f"{i}.positive", names["down.weight"], names["down.bias"]], [f"{i}.delta"], transB=1
            ),
            helper.make_node("Add", [current, f"{i}.delta"], [f"{i}.out"]),
        ]
        current = f"{i}.out"
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", WIDTH])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def measure(row: str, side: str, argument: str, small_id: str) -> list[Sample]:
    """Load once in each of several fresh workers, one after the other, once all of them are up."""
    workers = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(FRESH_WORKERS)]
    ray.get([worker.ready.remote(small_id if side == OURS else None) for worker in workers])
    # Ray starts replacements for the processes that it just gave away, which takes the same cores.
    time.sleep(SETTLE_S)
    samples = [ray.get(worker.load.remote(row, side, argument)) for worker in workers]
    for worker in workers:
        ray.kill(worker)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=10)
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        run(Path(name), parser.parse_args().blocks)


def run(folder: Path, blocks: int) -> None:
    os.environ["MIXPEEK_SPOOL_DIR"] = str(folder / "spool")
    paths = write_models(folder, blocks)
    sizes = {row: sum(file.stat().st_size for file in path.iterdir()) for row, path in paths.items()}
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=2 * sum(sizes.values()),
        logging_level="ERROR",
        log_to_driver=False,
    )
    settings = Settings(home=folder / "home", spool_dir=folder / "spool")
    registry = ensure_registry(settings)
    small = folder / "small.pt"
    torch.save({"x": torch.zeros(4)}, small)
    small_id = deploy(registry, settings, small, "small")
    found: dict[tuple[str, str], list[Sample]] = {}
    first_s: dict[str, float] = {}
    for row, path in paths.items():
        model_format = ModelFormat.PYTORCH if row == "torchscript" else ModelFormat(row)
        model_id = deploy(registry, settings, path, row, model_format)
        own = str(path if row == "huggingface" else next(path.iterdir()))
        FORMATS[row][1].load(own)  # its file is in the page cache from here on
        first_s[row] = measure(row, OURS, model_id, small_id)[0].load_s
        found[row, OWN] = measure(row, OWN, own, small_id)
        found[row, OURS] = measure(row, OURS, model_id, small_id)
        for sample in found[row, OURS]:
            np.testing.assert_allclose(sample.result, found[row, OWN][0].result, atol=1e-4)
    ray.shutdown()
    print_results(found, sizes, first_s)


def print_results(found: dict[tuple[str, str], list[Sample]], sizes: dict[str, int], first_s: dict[str, float]) -> None:
    rows = []
    for (row, side), samples in found.items():
        name = FORMATS[row][0] if side == OWN else "load_namespace_model"
        own = found[row, OWN]
        rows.append(
            [
                row,
                f"`{name}`",
                f"{load_ms(samples):.1f} ms",
                f"{load_ms(own) / load_ms(samples):.1f}x",
                f"{private(samples) / MB:.0f} MB",
                f"{forward_s(own) / forward_s(samples):.2f}x",
            ]
        )
        if side == OURS and row == "onnx":
            rows.append([row, "the first on a node", f"{first_s[row] * 1e3:.0f} ms", "", "", ""])
    print_table(["format", "loader", "load", "of the own loader's", "private memory", "speed of a forward pass"], rows)
    onnx_ours, onnx_own = found["onnx", OURS], found["onnx", OWN]
    conclude(
        [
            Claim(
                text="onnx: private memory over its weights",
                measured=private(onnx_ours) / sizes["onnx"],
                bound=0.15,
                at_least=False,
            ),
            Claim(
                text="onnx: speed over an ordinary session's",
                measured=forward_s(onnx_own) / forward_s(onnx_ours),
                bound=0.9,
                at_least=True,
            ),
            *(
                Claim(
                    text=f"{row}: private memory over its weights",
                    measured=private(found[row, OURS]) / sizes[row],
                    bound=0.05,
                    at_least=False,
                )
                for row in ("pytorch", "safetensors", "torchscript", "huggingface")
            ),
        ]
    )


def load_ms(samples: list[Sample]) -> float:
    return median([sample.load_s for sample in samples]) * 1e3


def private(samples: list[Sample]) -> float:
    return median([sample.private_bytes for sample in samples])


def forward_s(samples: list[Sample]) -> float:
    return median([sample.forward_s for sample in samples])


if __name__ == "__main__":
    main()

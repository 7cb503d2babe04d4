"""Loading a deployed model in a fresh worker, beside torch.load, safetensors and Ray's own zero-copy tensors.

    python -m benchmarks.load [--gigabytes 1.3]

One node, one platform registry, no HTTP. Every figure is the median over fresh worker processes that imported torch
before the clock started; files are read once first, so they come from a warm page cache. Every contender starts from
what tells it where the weights are: a path, an ObjectRef, for this platform the registry's answer. What finding the
registry and asking it adds to a process's first call, and what a later call takes, are rows of their own. "Private" is
anonymous memory the load added, after every tensor was read in full.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ray's own alternative; read when a worker starts.
os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import torch
from safetensors.torch import load_file, save_file

from benchmarks.one_node import NAMESPACE, deploy, memory
from benchmarks.report import MB, Claim, conclude, median, print_table
from engine.models.loader import load_namespace_model
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.formats.packed import view
from mixpeek_ray.loading.private_view import private_view
from mixpeek_ray.registry.bootstrap import ensure_registry
from mixpeek_ray.registry.state import ModelKey

TENSORS = 660
FRESH_WORKERS = 5
SHARING_WORKERS = 8
SETTLE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One load in one fresh worker."""

    seconds: float
    private_bytes: int
    pss_bytes: int
    checksum: float


class Worker:
    """A process that loads once; kept alive until told otherwise, so that others can share with it."""

    def __init__(self) -> None:
        # Not part of any contender's time: what torch sets up for the first reading of a large tensor.
        read_all({"warm-up": torch.zeros(1 << 20)})
        self.kept: Any = None
        self.ticket: Any = None

    def ready(self) -> None:
        """Return: the process is up, with everything imported that this module imports."""

    def locate(self, model_id: str) -> None:
        """Ask the registry where a model's weights are."""
        from mixpeek_ray.loading import loader

        key = ModelKey(namespace_id=NAMESPACE, model_id=model_id)
        self.ticket = loader._ticket(loader.NamespaceModel(key=key), time.monotonic() + 60)

    def load(self, kind: str, argument: Any) -> Sample:
        if kind == LOCATED:
            self.locate(argument)
            argument = self.ticket
        elif kind == AGAIN:
            self.kept = load_whole(argument)
        gc.collect()
        before = memory()
        start = time.perf_counter()
        self.kept = LOADERS[kind](argument)
        seconds = time.perf_counter() - start
        # Reads every page: a view must stay shared also when it is used.
        checksum = read_all(self.kept)
        after = memory()
        return Sample(
            seconds=seconds,
            private_bytes=after["Anonymous"] - before["Anonymous"],
            pss_bytes=after["Pss"] - before["Pss"],
            checksum=checksum,
        )

    def pss(self) -> int:
        return memory()["Pss"]


def read_all(weights: dict[str, torch.Tensor]) -> float:
    return sum(float(tensor.sum()) for tensor in weights.values())


def load_located(ticket: Any) -> Any:
    index, data = ray.get(ticket.refs[0])
    return view(index, private_view(data))


def load_whole(model_id: str) -> Any:
    return load_namespace_model(model_id, namespace_id=NAMESPACE)


LOCATED = "this platform"
FIRST = "load_namespace_model, a process's first call"
AGAIN = "load_namespace_model, a later call"
TORCH = "torch.load"
SAFETENSORS = "safetensors.load_file"
RAY = "Ray's zero-copy flag"
LOADERS = {
    LOCATED: load_located,
    TORCH: lambda path: torch.load(path, weights_only=True),
    SAFETENSORS: load_file,
    RAY: lambda refs: ray.get(refs[0]),
    FIRST: load_whole,
    AGAIN: load_whole,
}


def make_weights(total_bytes: int) -> dict[str, torch.Tensor]:
    """Return fp32 tensors of equal size that together hold ``total_bytes``."""
    columns = 1024
    rows = total_bytes // TENSORS // 4 // columns
    return {f"layer.{i}.weight": torch.randn(rows, columns) for i in range(TENSORS)}


def measure(kind: str, argument: Any) -> list[Sample]:
    """Load once in each of several fresh workers, one after the other, once all of them are up."""
    workers = fresh_workers(FRESH_WORKERS)
    samples = [ray.get(worker.load.remote(kind, argument)) for worker in workers]
    for worker in workers:
        ray.kill(worker)
    return samples


def fresh_workers(count: int) -> list[Any]:
    """Start workers and return when they, and the machine, have come to rest."""
    workers = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(count)]
    ray.get([worker.ready.remote() for worker in workers])
    # Ray starts replacements for the processes that it just gave away, which takes the same cores.
    time.sleep(SETTLE_S)
    return workers


def sharing_pss(model_id: str) -> int:
    """Return what a node pays for several workers that all hold and have read the model, in bytes of PSS."""
    workers = fresh_workers(SHARING_WORKERS)
    before = sum(ray.get([worker.pss.remote() for worker in workers]))
    ray.get([worker.load.remote(FIRST, model_id) for worker in workers])
    after = sum(ray.get([worker.pss.remote() for worker in workers]))
    for worker in workers:
        ray.kill(worker)
    return int(after - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.3)
    total_bytes = int(parser.parse_args().gigabytes * 1e9)
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as folder:
        run(Path(folder), total_bytes)


def run(folder: Path, total_bytes: int) -> None:
    settings = Settings(home=folder / "home", spool_dir=folder)
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=int(total_bytes * 3) + (256 << 20),
        logging_level="ERROR",
        log_to_driver=False,
    )
    registry = ensure_registry(settings)
    weights = make_weights(total_bytes)
    pt, safetensors_file = folder / "model.pt", folder / "model.safetensors"
    torch.save(weights, pt)
    save_file(weights, safetensors_file)
    flagged = [ray.put(weights)]
    small = {name: tensor[: len(tensor) // 10].clone() for name, tensor in weights.items()}
    small_pt = folder / "small.pt"
    torch.save(small, small_pt)
    del weights, small

    model_id = deploy(registry, settings, pt, "large")
    small_id = deploy(registry, settings, small_pt, "small")
    arguments = {
        LOCATED: model_id,
        TORCH: str(pt),
        SAFETENSORS: str(safetensors_file),
        RAY: flagged,
        FIRST: model_id,
        AGAIN: model_id,
    }
    load_file(safetensors_file)
    samples = {kind: measure(kind, argument) for kind, argument in arguments.items()}
    small_seconds = median([sample.seconds for sample in measure(LOCATED, small_id)])
    shared = sharing_pss(model_id)
    ray.shutdown()

    assert len({sample.checksum for kind in samples.values() for sample in kind}) == 1, "weights differ"
    print_results(samples, total_bytes=total_bytes, small_seconds=small_seconds, shared=shared)


def print_results(samples: dict[str, list[Sample]], *, total_bytes: int, small_seconds: float, shared: int) -> None:
    seconds = {kind: median([sample.seconds for sample in found]) for kind, found in samples.items()}
    private = {kind: median([sample.private_bytes for sample in found]) for kind, found in samples.items()}
    ours = seconds[LOCATED]
    print_table(
        ["load", "time", "of this platform's", "private memory"],
        [
            [kind, f"{seconds[kind] * 1e3:.1f} ms", f"{seconds[kind] / ours:.1f}x", f"{private[kind] / MB:.0f} MB"]
            for kind in samples
        ],
    )
    conclude(
        [
            Claim(text="faster than torch.load", measured=seconds[TORCH] / ours, bound=500, at_least=True),
            Claim(
                text="beside safetensors.load_file",
                measured=seconds[SAFETENSORS] / ours,
                bound=1,
                at_least=True,
            ),
            Claim(
                text="faster than Ray's zero-copy flag",
                measured=seconds[RAY] / ours,
                bound=2.5,
                at_least=True,
            ),
            Claim(text="private MB a worker", measured=private[LOCATED] / MB, bound=10, at_least=False),
            Claim(
                text=f"{SHARING_WORKERS} workers' PSS over one copy",
                measured=shared / total_bytes,
                bound=1.1,
                at_least=False,
            ),
            Claim(text="time at 10x the bytes", measured=ours / small_seconds, bound=1.2, at_least=False),
        ]
    )


if __name__ == "__main__":
    main()

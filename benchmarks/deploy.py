"""Deploying a model, from the archive in the store to weights in the object store, beside `tarfile` unpacking it.

    python -m benchmarks.deploy [--gigabytes 1.0]

A platform of its own, as `mixpeek-ray up` starts it; the clock runs from the deploy route's call to its answer. The
standard library unpacks the same archive to the same disk, in turn. Both read it from a warm page cache and sync
nothing; the platform also hashes it, checks it, and copies the weights into shared memory. The first deploy starts a
worker and its sandbox, which imports torch, and fills shared memory that no process has touched: it is shown, and is
not part of the claim.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.local_platform import NAMESPACE, Platform, behind_haproxy
from benchmarks.report import MB, Claim, conclude, median, print_table
from mixpeek_ray.core.limits import MIB

RUNS = 5
TENSORS = 200
MODEL_FILE = "model.pt"
# What a plugin would load, as one hash of names and bytes.
LOAD_AND_HASH = """
import sys, ray
from benchmarks.deploy import hash_weights
from engine.models.loader import load_namespace_model
ray.init(log_to_driver=False, logging_level="ERROR")
print(hash_weights(load_namespace_model(sys.argv[1], namespace_id=sys.argv[2])))
"""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model's archive, and what is in it."""

    archive: Path
    file_bytes: int
    weights_bytes: int
    weights_hash: str


def make_model(folder: Path, total_bytes: int) -> Model:
    """Return what `tar czf` makes of a state_dict of random fp32 weights."""
    rows = total_bytes // TENSORS // 4 // 1024
    weights = {f"layer.{i}.weight": torch.randn(rows, 1024) for i in range(TENSORS)}
    torch.save(weights, folder / MODEL_FILE)
    archive = folder / "model.tar.gz"
    subprocess.run(["tar", "-C", folder, "-czf", archive, MODEL_FILE], check=True)
    file_bytes = (folder / MODEL_FILE).stat().st_size
    (folder / MODEL_FILE).unlink()
    return Model(
        archive=archive,
        file_bytes=file_bytes,
        weights_bytes=sum(tensor.nbytes for tensor in weights.values()),
        weights_hash=hash_weights(weights),
    )


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of the names and bytes of a state_dict."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def unpack_with_tarfile(model: Model, folder: Path) -> float:
    """Return the seconds that the standard library takes to unpack the archive."""
    target = folder / "tarfile"
    start = time.perf_counter()
    with tarfile.open(model.archive, "r:gz") as tar:
        tar.extractall(target, filter="data")
    seconds = time.perf_counter() - start
    assert (target / MODEL_FILE).stat().st_size == model.file_bytes
    shutil.rmtree(target)
    os.sync()
    return seconds


def deploy(platform: Platform, model_id: str) -> float:
    """Return the seconds that a deploy takes of a model that is not deployed."""
    start = time.perf_counter()
    answer = platform.request("POST", f"{platform.models_url}/{model_id}/deploy")
    seconds = time.perf_counter() - start
    assert (answer["deployment_status"], answer["cached"]) == ("deployed", False), answer
    return seconds


def undeploy(platform: Platform, model_id: str) -> None:
    platform.request("POST", f"{platform.models_url}/{model_id}/undeploy")
    os.sync()


def loaded_hash(platform: Platform, model_id: str) -> str:
    """Return the hash of the weights that a driver on the platform's cluster loads."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_HASH, model_id, NAMESPACE],
        env=os.environ | platform.ray_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    total_bytes = int(parser.parse_args().gigabytes * 1e9)
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        model = make_model(folder, total_bytes)
        # Room for the weights of an undeployed model that are not freed yet.
        object_store = {"MIXPEEK_OBJECT_STORE_BYTES": str(3 * total_bytes + 256 * MIB)}
        with behind_haproxy(folder, **object_store) as platform:
            run(platform, model, folder)


def run(platform: Platform, model: Model, folder: Path) -> None:
    model_id, _ = platform.upload(model.archive, name="bench", model_format="pytorch")
    first_s = deploy(platform, model_id)
    assert loaded_hash(platform, model_id) == model.weights_hash, "weights differ"
    tarfile_s, ours_s = [], []
    for _ in range(RUNS):
        undeploy(platform, model_id)
        tarfile_s.append(unpack_with_tarfile(model, folder))
        ours_s.append(deploy(platform, model_id))
    print_results(model.weights_bytes, tarfile_s=median(tarfile_s), ours_s=median(ours_s), first_s=first_s)


def print_results(weights_bytes: int, *, tarfile_s: float, ours_s: float, first_s: float) -> None:
    rows = {"tarfile, to disk": tarfile_s, "deploy, to the object store": ours_s, "the first deploy": first_s}
    print_table(
        [f"{weights_bytes / MB:.0f} MB of weights", "time", "speed", "of tarfile"],
        [
            [text, f"{seconds:.2f} s", f"{weights_bytes / MB / seconds:.0f} MB/s", f"{tarfile_s / seconds:.2f}x"]
            for text, seconds in rows.items()
        ],
    )
    conclude([Claim(text="deploy speed over tarfile's", measured=tarfile_s / ours_s, bound=1, at_least=True)])


if __name__ == "__main__":
    main()

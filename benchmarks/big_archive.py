"""The largest archive that the platform takes, from upload to a worker's view of it, on one machine.

    python -m benchmarks.big_archive [--gigabytes 10]

A platform of its own with an object store that the weights fit in. Random bytes, which do not compress. Watched all
along: the anonymous memory of every process of the platform, beyond what they held after a small model had taken the
same way (the object store is shared memory and not part of it), and what lies in the store's folder. The weights that
a worker loads are compared, whole, with what was packed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.local_platform import NAMESPACE, Platform, behind_haproxy
from benchmarks.report import MB, Claim, conclude, print_table
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.cli.processes import descendants
from mixpeek_ray.cli.state import read_state
from mixpeek_ray.core.limits import GIB, MIB

TENSOR_BYTES = 256 * MIB
CHUNK_BYTES = 16 * MIB
SMALL_BYTES = TENSOR_BYTES
SAMPLE_S = 0.2
POLL_S = 0.5
LOAD_AND_HASH = """
import hashlib, sys, time, ray, torch
from engine.models.loader import load_namespace_model
ray.init(log_to_driver=False, logging_level="ERROR")
start = time.perf_counter()
weights = load_namespace_model(sys.argv[1], namespace_id=sys.argv[2])
seconds = time.perf_counter() - start
digest = hashlib.sha256()
for tensor in weights.values():
    digest.update(tensor.numpy())
print(seconds, digest.hexdigest())
"""


class MemoryWatch:
    """Watches the anonymous memory of all processes of a platform."""

    def __init__(self, platform: Platform) -> None:
        state = read_state(RunPaths.of(platform.home))
        assert state is not None
        self._root_pid = state.pid
        self._before = self._anonymous()
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """The most that was held at once beyond what was held at first, in bytes."""
        return self._peak - self._before

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._peak = max(self._peak, self._anonymous())

    def _anonymous(self) -> int:
        return sum(_anonymous_bytes(process.pid) for process in descendants(self._root_pid))


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0  # it ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class _Weights(io.RawIOBase):
    """Reads a safetensors file of random tensors that is nowhere, and hashes its tensors on the way."""

    def __init__(self, total_bytes: int) -> None:
        count = max(1, total_bytes // TENSOR_BYTES)
        entries = {
            f"layer.{i:04}.weight": {
                "dtype": "U8",
                "shape": [TENSOR_BYTES],
                "data_offsets": [i * TENSOR_BYTES, (i + 1) * TENSOR_BYTES],
            }
            for i in range(count)
        }
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        self.size = 8 + len(header) + count * TENSOR_BYTES
        self.digest = hashlib.sha256()
        self._pieces = self._generate(len(header).to_bytes(8, "little") + header, count * TENSOR_BYTES)
        self._rest = memoryview(b"")

    def _generate(self, header: bytes, length: int) -> Iterator[bytes]:
        yield header
        random = np.random.default_rng(7)
        for _ in range(length // CHUNK_BYTES):
            piece = random.bytes(CHUNK_BYTES)
            self.digest.update(piece)
            yield piece

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer)  # type: ignore[arg-type]
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        taken = min(len(target), len(self._rest))
        target[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken


def make_archive(path: Path, total_bytes: int) -> str:
    """Write an archive of about that size and return the hash of its tensors."""
    weights = _Weights(total_bytes)
    member = tarfile.TarInfo("model.safetensors")
    member.size = weights.size
    with (
        gzip.open(path, "wb", compresslevel=0) as stream,
        tarfile.open(fileobj=stream, mode="w|", bufsize=MIB) as tar,
    ):
        tar.addfile(member, io.BufferedReader(weights, CHUNK_BYTES))
    return weights.digest.hexdigest()


def deploy_and_watch(platform: Platform, model_id: str) -> tuple[float, list[int]]:
    """Return the seconds that a deploy takes, and the progress that was seen meanwhile, in bytes."""
    url = f"{platform.models_url}/{model_id}"
    start, seen = time.perf_counter(), []
    platform.request("POST", f"{url}/deploy?wait=false")
    while (model := platform.request("GET", url)["model"])["deployment_status"] == "pending":
        seen.append(model["deployment_progress"]["bytes_done"])
        time.sleep(POLL_S)
    assert model["deployment_status"] == "deployed", model["failure"]
    return time.perf_counter() - start, seen


def loaded(platform: Platform, model_id: str) -> tuple[float, str]:
    """Return the seconds that loading takes in a driver on the cluster, and the hash of what it loads."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_HASH, model_id, NAMESPACE],
        env=os.environ | platform.ray_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, digest = done.stdout.split()
    return float(seconds), digest


def stored_bytes(platform: Platform) -> int:
    """Return what the files in the store take on the disk."""
    files = (path for path in (platform.home / "store").rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    total_bytes = int(parser.parse_args().gigabytes * 1e9)
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        small, large = folder / "small.tar.gz", folder / "large.tar.gz"
        make_archive(small, SMALL_BYTES)
        digest = make_archive(large, total_bytes)
        object_store = {"MIXPEEK_OBJECT_STORE_BYTES": str(total_bytes + SMALL_BYTES + GIB)}
        with behind_haproxy(folder, **object_store) as platform:
            run(platform, small, large, digest)


def run(platform: Platform, small: Path, large: Path, digest: str) -> None:
    small_id, _ = platform.upload(small, name="small", model_format="safetensors")
    deploy_and_watch(platform, small_id)
    platform.request("DELETE", f"{platform.models_url}/{small_id}")
    size = large.stat().st_size
    with MemoryWatch(platform) as watch:
        large_id, upload_s = platform.upload(large, name="large", model_format="safetensors")
        deploy_s, progress = deploy_and_watch(platform, large_id)
    stored = stored_bytes(platform)
    load_s, found = loaded(platform, large_id)
    assert found == digest, "other weights than were packed"
    assert progress == sorted(progress), progress
    print_table(
        [f"{size / MB:.0f} MB", "time", "speed"],
        [
            ["upload", f"{upload_s:.1f} s", f"{size / MB / upload_s:.0f} MB/s"],
            ["deploy", f"{deploy_s:.1f} s", f"{size / MB / deploy_s:.0f} MB/s"],
            ["load in a worker, registry look-up included", f"{load_s * 1000:.0f} ms", ""],
        ],
    )
    conclude(
        [
            Claim(text="MB of memory beyond the object store", measured=watch.growth / MB, bound=512, at_least=False),
            Claim(text="copies of the archive on disk", measured=stored / size, bound=1.01, at_least=False),
            Claim(text="steps of progress seen", measured=len(set(progress)), bound=5, at_least=True),
        ]
    )


if __name__ == "__main__":
    main()

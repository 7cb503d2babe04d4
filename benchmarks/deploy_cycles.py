"""What a thousand deployments leave behind: memory, processes, descriptors, files.

    python -m benchmarks.deploy_cycles [--cycles 1000]

A platform of its own. One cycle deploys a model, asks its endpoint once and undeploys it; every tenth also uploads a
version and deletes it, and begins an upload that it breaks off. Figures are taken after some cycles that do not count,
which start what the platform starts once, and again at the end, each time when the replica has let go. Processes are
compared by what those have in private memory that live at both times; of files, all in the store and the spool folder.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.footprint import Footprint, Process
from benchmarks.local_platform import NAMESPACE, Platform, behind_haproxy
from benchmarks.report import MB, Claim, conclude, print_table
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.cli.state import read_state
from mixpeek_ray.core.limits import MIB

WARM_UP = 50
# Rows and columns of the model's only weight: 4 MB, so that it lies in the object store.
WIDTH = 1_024
RARELY = 10
# A replica asks every 5 s which of its models are still deployed; Ray ends idle workers after a second.
SETTLE_S = 20.0
TIMEOUT_S = 60
HALF_BYTES = 4 * MIB
FOLDERS = ("home/store", "spool")
# What was counted of requests: a file for every few seconds, merged by the hour.
TRAFFIC = "/store/analytics/"


def make_archive() -> bytes:
    """Return a graph with one matrix, packed."""
    weight = np.random.default_rng(7).standard_normal((WIDTH, WIDTH), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["given", "weight"], ["result"])],
        "cycle",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["rows", WIDTH])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    content, packed = model.SerializeToString(), io.BytesIO()
    onnx.checker.check_model(model)
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("model.onnx")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@dataclass(frozen=True, kw_only=True)
class Cycles:
    """Repeats deployments of one model on a running platform."""

    platform: Platform
    http: httpx.Client
    archive: bytes

    @classmethod
    @contextmanager
    def on(cls, platform: Platform) -> Iterator[Cycles]:
        """Provide cycles of a freshly uploaded model."""
        headers = {"Authorization": platform.authorization}
        with httpx.Client(base_url=platform.url, headers=headers, timeout=TIMEOUT_S) as http:
            cycles = cls(platform=platform, http=http, archive=make_archive())
            cycles.upload("1.0.0")
            yield cycles

    def run(self, count: int) -> None:
        """Deploy, ask and undeploy, ``count`` times."""
        for number in range(count):
            self.post("/deploy")
            answer = self.http.post(f"/models/{NAMESPACE}/cycle_1_0_0", json={"inputs": [[1.0] * WIDTH]})
            assert answer.is_success, answer.text
            self.post("/undeploy")
            if number % RARELY == 0:
                self.upload("2.0.0")
                deleted = self.http.delete(f"/v1/namespaces/{NAMESPACE}/models/cycle_2_0_0")
                assert deleted.is_success, deleted.text
                self.break_off()

    def post(self, action: str) -> None:
        """Call one of the model's actions."""
        answer = self.http.post(f"/v1/namespaces/{NAMESPACE}/models/cycle_1_0_0{action}")
        assert answer.is_success, answer.text

    def upload(self, version: str) -> None:
        """Upload the archive as a version."""
        answer = self.http.post(
            f"/v1/namespaces/{NAMESPACE}/models",
            files={"file": ("model.tar.gz", self.archive, "application/gzip")},
            data={"name": "cycle", "version": version, "model_format": "onnx", "memory_gb": "0.1"},
        )
        assert answer.is_success, answer.text

    def break_off(self) -> None:
        """Send half of an upload, and go."""
        head = (
            f"POST /v1/namespaces/{NAMESPACE}/models HTTP/1.1\r\nHost: bench\r\n"
            f"Authorization: {self.platform.authorization}\r\nContent-Length: {2 * HALF_BYTES}\r\n"
            "Content-Type: multipart/form-data; boundary=B\r\n\r\n"
            '--B\r\nContent-Disposition: form-data; name="file"; filename="m.tar.gz"\r\n\r\n'
        )
        with socket.create_connection(("127.0.0.1", self.platform.port)) as connection:
            connection.sendall(head.encode() + os.urandom(HALF_BYTES))


def footprint(platform: Platform) -> Footprint:
    """Return the platform's figures once it has come to rest."""
    time.sleep(SETTLE_S)
    state = read_state(RunPaths.of(platform.home))
    assert state is not None
    folders = [platform.home.parent / name for name in FOLDERS]
    return Footprint.of(state.pid, platform.ray_environment(), folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1_000)
    count = parser.parse_args().cycles
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        with (
            behind_haproxy(folder, MIXPEEK_SPOOL_DIR=str(folder / "spool")) as platform,
            Cycles.on(platform) as cycles,
        ):
            cycles.run(WARM_UP)
            before = footprint(platform)
            begun = time.monotonic()
            cycles.run(count)
            seconds = time.monotonic() - begun
            after = footprint(platform)
    print(f"{count} cycles, {seconds / count * 1e3:.0f} ms each.\n")
    print_results(before, after, count=count, weights_bytes=WIDTH * WIDTH * 4)


def print_results(before: Footprint, after: Footprint, *, count: int, weights_bytes: int) -> None:
    pairs = before.common(after)
    grown = sorted(pairs, key=lambda pair: pair[0].anonymous_bytes - pair[1].anonymous_bytes)
    rows = [_row(old.title[:60], [old], [new]) for old, new in grown[:5]]
    rows.append(_row(f"all {len(pairs)}", [old for old, _ in pairs], [new for _, new in pairs]))
    print_table(
        ["processes that live at both times", "private memory before, after", "descriptors before, after"], rows
    )
    left = sorted(path for path in after.files - before.files if TRAFFIC not in path)
    for path in left[:10]:
        print(f"left: {path}")
    conclude(
        [
            Claim(
                text="private memory of processes, after over before",
                measured=_memory(new for _, new in pairs) / _memory(old for old, _ in pairs),
                bound=1.02,
                at_least=False,
            ),
            Claim(
                text="object store, bytes beyond before over the model's",
                measured=(after.object_store_bytes - before.object_store_bytes) / weights_bytes,
                bound=0.02,
                at_least=False,
            ),
            Claim(
                text="processes more than before",
                measured=len(after.processes) - len(before.processes),
                bound=0,
                at_least=False,
            ),
            Claim(
                # Connections between processes come and go.
                text="descriptors more than before, a cycle",
                measured=(_descriptors(new for _, new in pairs) - _descriptors(old for old, _ in pairs)) / count,
                bound=0.01,
                at_least=False,
            ),
            Claim(text="files more than before", measured=len(left), bound=0, at_least=False),
        ]
    )


def _row(name: str, before: list[Process], after: list[Process]) -> list[str]:
    memory = f"{_memory(before) / MB:.1f} MB, {_memory(after) / MB:.1f} MB"
    return [name, memory, f"{_descriptors(before)}, {_descriptors(after)}"]


def _memory(processes: Iterable[Process]) -> int:
    return sum(process.anonymous_bytes for process in processes)


def _descriptors(processes: Iterable[Process]) -> int:
    return sum(process.descriptors for process in processes)


if __name__ == "__main__":
    main()

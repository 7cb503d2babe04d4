"""Listing a namespace of fifty models while a large upload and a deploy run beside it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.http_load import Load, generate
from benchmarks.local_platform import Platform, behind_haproxy
from benchmarks.pool.models import Deployed, Models, packed
from benchmarks.report import Claim, median, print_table
from mixpeek_ray.core.limits import MAX_MODELS_PER_NAMESPACE, MIB

CONNECTIONS = 16
RUNS = 3
WARM_UP_S = 2.0
MIN_RATE, MAX_P99_S = 500, 0.1


def run(*, seconds: float, upload_mb: int, deploy_mb: int) -> list[Claim]:
    """Measure, print, and return what must hold."""
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        store = 3 * deploy_mb * MIB + 512 * MIB
        with (
            behind_haproxy(folder, MIXPEEK_OBJECT_STORE_BYTES=str(store)) as platform,
            Models.on(platform) as models,
            packed(_state_dict(folder / "small", 1)) as small,
            packed(_state_dict(folder / "uploaded", upload_mb)) as uploaded,
            packed(_state_dict(folder / "deployed", deploy_mb)) as deployed,
        ):
            for number in range(MAX_MODELS_PER_NAMESPACE):
                models.upload(small, number, model_format="pytorch")
            other = models.upload(deployed, MAX_MODELS_PER_NAMESPACE, model_format="pytorch")
            _load(platform, WARM_UP_S)
            quiet = [_load(platform, seconds) for _ in range(RUNS)]
            with _busy(platform, uploaded, other):
                busy = [_load(platform, seconds) for _ in range(RUNS)]
    found = {"nothing else": quiet, f"a {upload_mb} MB upload and a {deploy_mb} MB deploy": busy}
    print_table(
        [f"GET 50 models, {CONNECTIONS} connections, beside", "requests/s", "p99"],
        [[text, f"{_rate(loads):.0f}", f"{_p99_s(loads) * 1e3:.0f} ms"] for text, loads in found.items()],
    )
    return [
        Claim(text="listings/s while others upload and deploy", measured=_rate(busy), bound=MIN_RATE, at_least=True),
        Claim(text="listing, p99 in ms", measured=_p99_s(busy) * 1e3, bound=MAX_P99_S * 1e3, at_least=False),
    ]


def _state_dict(folder: Path, megabytes: int) -> Path:
    folder.mkdir()
    torch.save({"w": torch.randint(0, 255, (megabytes, MIB), dtype=torch.uint8)}, folder / "model.pt")
    return folder


def _load(platform: Platform, seconds: float) -> Load:
    return generate(
        platform.port,
        "/v1/namespaces/ns_bench0/models",
        connections=CONNECTIONS,
        seconds=seconds,
        authorization=platform.authorization,
        expected=f'"total":{MAX_MODELS_PER_NAMESPACE}',
    )


@contextmanager
def _busy(platform: Platform, archive: Path, other: Deployed) -> Iterator[None]:
    """Upload an archive, and deploy and undeploy a model, again and again until the block is left."""
    ended = threading.Event()

    def upload() -> None:
        number = MAX_MODELS_PER_NAMESPACE + 1
        with Models.on(platform) as models:
            while not ended.is_set():
                models.upload(archive, number, model_format="pytorch")
                number += 1

    def deploy() -> None:
        with Models.on(platform) as models:
            while not ended.is_set():
                models.deploy(other)
                models.undeploy(other)

    threads = [threading.Thread(target=work) for work in (upload, deploy)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _rate(loads: list[Load]) -> float:
    return median([load.requests_per_s for load in loads])


def _p99_s(loads: list[Load]) -> float:
    return median([load.p99_latency_s for load in loads])

"""Two hundred distinct fine-tunes of MiniLM on one node, and the same in MLServer: memory, and latency of mixed calls.

Each server is alone on the machine. Memory is what its processes' own memory, the files that they map and the machine's
shared memory grew by since it was up and had answered for one model. Every model is called once, then all of them at
random, popular ones more often (Zipf's law).
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its types are a package of their own

from benchmarks.local_platform import behind_haproxy
from benchmarks.pool import mlserver
from benchmarks.pool.counters import Counters
from benchmarks.pool.models import Deployed, Models, make_fine_tune, packed, weights_bytes
from benchmarks.pool.server import Server
from benchmarks.report import MB, Claim, print_table
from benchmarks.serving.load import Load, Order, generate
from benchmarks.serving.workloads import SENTENCE
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.cli.state import read_state
from mixpeek_ray.core.limits import GIB, MIB

NAME = "this platform"
CONNECTIONS = 8
CALLS = 5_000
WARM_UP_S = 2.0
SEED = 13
# What the machine keeps for itself and for a server beside its models.
SPARE_BYTES = 4 * GIB
# What a model may take anywhere, over its weights: more of them would not fit.
HEADROOM = 1.35
GOAL = 1.15


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One server with all models."""

    added_bytes: int
    load: Load
    # The share of calls that found their model open.
    hit_rate: float


def run(*, models: int, seconds: float) -> list[Claim]:
    """Measure, print, and return what must hold. Fewer models are taken where the machine does not hold as many."""
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        size = weights_bytes(make_fine_tune(folder / "model-0", 0))
        room = int((psutil.virtual_memory().available - SPARE_BYTES) / (HEADROOM * size))
        count = min(models, room)
        folders = [folder / "model-0", *(make_fine_tune(folder / f"model-{n}", n) for n in range(1, count))]
        with mlserver.mlserver(folder / "mlserver", folders) as server:
            theirs = _measure(server, count, seconds)
        with _platform(folder, folders, size) as server:
            ours = _measure(server, count, seconds)
    _print({mlserver.NAME: theirs, NAME: ours}, count, count * size)
    return [
        Claim(
            text=f"memory of {count} models over their weights",
            measured=ours.added_bytes / (count - 1) / size,
            bound=GOAL,
            at_least=False,
        ),
        Claim(text="calls to many models: errors", measured=ours.load.errors, bound=0, at_least=False),
    ]


def _measure(server: Server, count: int, seconds: float) -> Figures:
    server.load(0)
    server.ask(0)
    before = server.memory()
    for number in range(1, count):
        server.load(number)
        server.ask(number)
    at_first = server.counters() if server.counters is not None else None
    chance = random.Random(SEED)
    shares = [1 / (rank + 1) for rank in range(count)]
    chosen = chance.choices(range(count), weights=shares, k=CALLS)
    load = generate(
        Order(
            port=server.port,
            headers=server.headers,
            calls=[server.call(number) for number in chosen],
            connections=CONNECTIONS,
            warm_up_s=WARM_UP_S,
            seconds=seconds,
        )
    )
    added_bytes = server.memory() - before
    hit_rate = 1.0
    if server.counters is not None and at_first is not None:
        hit_rate = server.counters().hit_rate_since(at_first)
    return Figures(added_bytes=added_bytes, load=load, hit_rate=hit_rate)


@contextmanager
def _platform(folder: Path, folders: Sequence[Path], size: int) -> Iterator[Server]:
    """Run a platform; a model's folder is removed once it is uploaded."""
    deployed: dict[int, Deployed] = {}
    store = len(folders) * (size + MIB) + 512 * MIB
    with behind_haproxy(folder, MIXPEEK_OBJECT_STORE_BYTES=str(store)) as platform, Models.on(platform) as models:

        def load(number: int) -> None:
            with packed(folders[number]) as archive:
                deployed[number] = models.upload(archive, number)
            shutil.rmtree(folders[number])
            models.deploy(deployed[number])

        def call(number: int) -> tuple[str, str]:
            return deployed[number].endpoint, json.dumps({"inputs": [SENTENCE]})

        state = read_state(RunPaths.of(platform.home))
        assert state is not None
        headers = [("Authorization", platform.authorization)]
        yield Server(
            name=NAME,
            port=platform.port,
            pid=state.pid,
            headers=headers,
            call=call,
            load=load,
            counters=lambda: Counters.of(platform),
        )


def _print(found: Mapping[str, Figures], count: int, weights: int) -> None:
    columns = ["memory added", "over weights", "requests/s", "p50, p99", "found open", "errors"]
    print_table(
        [f"{count} fine-tunes, {weights / MB:.0f} MB", *columns],
        [
            [
                name,
                f"{figures.added_bytes / MB:.0f} MB",
                f"{figures.added_bytes * count / (count - 1) / weights:.2f}x",
                f"{figures.load.requests_per_s:.0f}",
                f"{figures.load.p50_s * 1e3:.0f}, {figures.load.p99_s * 1e3:.0f} ms",
                f"{figures.hit_rate:.2%}",
                str(figures.load.errors),
            ]
            for name, figures in found.items()
        ],
    )

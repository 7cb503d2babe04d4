"""A custom model's endpoint beside `/v1/embeddings` with the same weights built in, both warm."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.local_platform import behind_haproxy
from benchmarks.pool.models import MINILM, Models, packed
from benchmarks.report import Claim, median, print_table
from benchmarks.serving import ours
from benchmarks.serving.endpoint import Endpoint, Protocol
from benchmarks.serving.load import Load
from benchmarks.serving.workloads import SENTENCE

CONNECTIONS = (1, 16, 64)
WARM_UP_S = 2.0
# By default a built-in model multiplies in bfloat16 where the CPU does. A custom one computes in what was uploaded,
# here float32: what it is held to is the built-in model that does so, too.
DEFAULT, BUILT_IN, CUSTOM = "built in", "built in, float32", "custom, float32"
# How much slower the custom model may be.
BOUND = 0.9


def run(*, seconds: float, rounds: int) -> list[Claim]:
    """Measure, print, and return what must hold."""
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        catalog = ours.write_catalog(folder, MINILM)
        warm = f"{ours.MODEL_NAME},{ours.FLOAT32_NAME}"
        settings = {"MIXPEEK_MODEL_CATALOG": str(catalog), "MIXPEEK_WARM_MODELS": warm}
        with behind_haproxy(folder, **settings) as platform, Models.on(platform) as models:
            with packed(Path(shutil.copytree(MINILM, folder / "minilm"))) as archive:
                model = models.upload(archive, 0)
            models.deploy(model)
            headers = [("Authorization", platform.authorization)]
            protocols = {
                DEFAULT: ours.PROTOCOL,
                BUILT_IN: ours.protocol(ours.FLOAT32_NAME),
                CUSTOM: _protocol(model.endpoint),
            }
            endpoints = [
                Endpoint(name=name, port=platform.port, protocol=protocol, headers=headers)
                for name, protocol in protocols.items()
            ]
            _check_equal(endpoints)
            loads = _measure(endpoints, seconds=seconds, rounds=rounds)
    _print(loads)
    return _claims(loads)


def _protocol(path: str) -> Protocol:
    return Protocol(path=path, ask=lambda text: {"inputs": [text]}, vector=lambda answer: answer["outputs"][0])


def _check_equal(endpoints: Sequence[Endpoint]) -> None:
    first, *others = (endpoint.embed(SENTENCE) for endpoint in endpoints)
    for other in others:
        assert first @ other / np.linalg.norm(first) / np.linalg.norm(other) > 0.9999


Loads = Mapping[tuple[str, int], Sequence[Load]]


def _measure(endpoints: Sequence[Endpoint], *, seconds: float, rounds: int) -> Loads:
    """Return the loads by endpoint and connections, the endpoints in turn."""
    found: dict[tuple[str, int], list[Load]] = {}
    for _ in range(rounds):
        for connections in CONNECTIONS:
            for endpoint in endpoints:
                load = endpoint.load([SENTENCE], connections=connections, warm_up_s=WARM_UP_S, seconds=seconds)
                found.setdefault((endpoint.name, connections), []).append(load)
    return found


def _rate(loads: Loads, name: str, connections: int) -> float:
    return median([load.requests_per_s for load in loads[name, connections]])


def _print(loads: Loads) -> None:
    rows = []
    for connections in CONNECTIONS:
        row = [str(connections)]
        for name in (DEFAULT, BUILT_IN, CUSTOM):
            p99 = median([load.p99_s for load in loads[name, connections]])
            row.append(f"{_rate(loads, name, connections):.0f}/s, p99 {p99 * 1e3:.0f} ms")
        rows.append([*row, f"{_rate(loads, CUSTOM, connections) / _rate(loads, BUILT_IN, connections):.2f}x"])
    print_table(["connections", DEFAULT, BUILT_IN, CUSTOM, "custom over built in, float32"], rows)


def _claims(loads: Loads) -> list[Claim]:
    claims = [
        Claim(
            text=f"requests/s at {connections} over the built-in model's",
            measured=_rate(loads, CUSTOM, connections) / _rate(loads, BUILT_IN, connections),
            bound=BOUND,
            at_least=True,
        )
        for connections in CONNECTIONS
    ]
    errors = sum(load.errors for cell in loads.values() for load in cell)
    return [*claims, Claim(text="steady state: errors", measured=errors, bound=0, at_least=False)]

"""A trivial authenticated route behind HAProxy, beside the same platform behind Serve's own Python proxy.

    python -m benchmarks.ingress [--seconds 8]

Two platforms, one after the other, each with a home and ports of its own: one as `mixpeek-ray up` starts it, one as
`serve run serve_config.yaml` does. The route is GET /v1/whoami, which the gateway's replica answers from its own copy
of the keys. The load generator is `benchmarks/http_load.py`, the same for both, on the same machine.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.http_load import Load, generate
from benchmarks.local_platform import Platform, behind_haproxy, behind_python_proxy
from benchmarks.report import Claim, conclude, median, print_table

RUNS = 3
CONNECTIONS = 32
WARM_UP_S = 2.0
PATH = "/v1/whoami"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One ingress: the medians of several runs."""

    requests_per_s: float
    generator_cpu: float
    # With a single connection.
    latency_s: float


def measure(platform: Platform, *, ingress: str, seconds: float) -> Figures:
    """Return what the ingress of a running platform does; ``ingress`` is what its health must call it."""
    assert platform.request("GET", f"{platform.url}/v1/health")["meta"]["ingress"] == ingress
    expected = platform.request("GET", platform.url + PATH)["key_id"]

    def load(connections: int, seconds: float) -> Load:
        return generate(
            platform.port,
            PATH,
            connections=connections,
            seconds=seconds,
            authorization=platform.authorization,
            expected=expected,
        )

    load(CONNECTIONS, WARM_UP_S)
    full = [load(CONNECTIONS, seconds) for _ in range(RUNS)]
    single = [load(1, seconds / RUNS) for _ in range(RUNS)]
    return Figures(
        requests_per_s=median([run.requests_per_s for run in full]),
        generator_cpu=median([run.generator_cpu for run in full]),
        latency_s=median([run.median_latency_s for run in single]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name, behind_python_proxy(Path(name)) as platform:
        proxy = measure(platform, ingress="python-proxy", seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name, behind_haproxy(Path(name)) as platform:
        haproxy = measure(platform, ingress="haproxy", seconds=seconds)
    print_results(proxy=proxy, haproxy=haproxy)


def print_results(*, proxy: Figures, haproxy: Figures) -> None:
    print_table(
        ["ingress", f"{CONNECTIONS} connections", "ratio", "median latency, 1 connection", "load generator"],
        [
            [
                name,
                f"{figures.requests_per_s:.0f} requests/s",
                f"{figures.requests_per_s / proxy.requests_per_s:.1f}x",
                f"{figures.latency_s * 1e3:.1f} ms",
                f"{figures.generator_cpu:.0%} of a core",
            ]
            for name, figures in {"Serve's Python proxy": proxy, "HAProxy": haproxy}.items()
        ],
    )
    conclude(
        [
            Claim(
                text="requests/s over the Python proxy's",
                measured=haproxy.requests_per_s / proxy.requests_per_s,
                bound=4,
                at_least=True,
            ),
            Claim(text="load generator's share of a core", measured=haproxy.generator_cpu, bound=0.8, at_least=False),
        ]
    )


if __name__ == "__main__":
    main()

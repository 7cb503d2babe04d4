"""What a platform's own metrics say of its pool of models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass

import httpx

from benchmarks.local_platform import Platform

# Replicas export every 5 s, Ray's agent every 10 s.
_DELAY_S = 20.0
_LOADS, _REQUESTS = "ray_mixpeek_model_loads_total", "ray_mixpeek_requests_total"
_APPLICATION = 'application="models"'
_SAMPLE = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_PORTS = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(*(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]))
"""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Sums over all models and replicas since the platform started."""

    loads: float
    requests: float

    @classmethod
    def of(cls, platform: Platform) -> Counters:
        """Return them, once everything that has happened so far is in them."""
        time.sleep(_DELAY_S)
        found = {_LOADS: 0.0, _REQUESTS: 0.0}
        for port in _ports(platform):
            for name, tags, value in _SAMPLE.findall(httpx.get(f"http://127.0.0.1:{port}/metrics").text):
                if name in found and _APPLICATION in tags:
                    found[name] += float(value)
        return cls(loads=found[_LOADS], requests=found[_REQUESTS])

    def hit_rate_since(self, earlier: Counters) -> float:
        """Return which share of the requests since then found their model open."""
        return 1 - (self.loads - earlier.loads) / (self.requests - earlier.requests)


def _ports(platform: Platform) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", _PORTS],
        env=os.environ | platform.ray_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [int(port) for port in done.stdout.splitlines()[-1].split()]

"""A load generator: keep-alive connections that each repeat one GET as soon as it is answered.

    python -m benchmarks.http_load PORT PATH CONNECTIONS SECONDS EXPECTED < authorization

A process of its own, so that it shares no interpreter with what it measures; a raw protocol on uvloop, so that it costs
a fraction of any server written in Python. Prints a ``Load`` as JSON; fails unless every answer is a 200 whose body
contains EXPECTED.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import uvloop

from benchmarks.report import median

_START_TIMEOUT_S = 30
_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one generator saw."""

    requests_per_s: float
    median_latency_s: float
    p99_latency_s: float
    # Of one core: near 1, the generator is what was measured.
    generator_cpu: float


def generate(port: int, path: str, *, connections: int, seconds: float, authorization: str, expected: str) -> Load:
    """Run a load generator in a process of its own and return what it saw."""
    arguments = [str(port), path, str(connections), str(seconds), expected]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.http_load", *arguments],
        input=authorization,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds + _START_TIMEOUT_S,
    )
    return Load(**json.loads(done.stdout))


class _Client(asyncio.Protocol):
    """One connection; ``ended`` is set at the first answer past the deadline."""

    def __init__(self, request: bytes, expected: bytes, deadline: float) -> None:
        self._request = request
        self._expected = expected
        self._deadline = deadline
        self._buffer = b""
        self.latencies_s: list[float] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(self._buffer, 0, head_end)
        if head_end < 4 or (length and len(self._buffer) < head_end + int(length[1])):
            return
        now = time.perf_counter()
        if length is None or not self._buffer.startswith(b"HTTP/1.1 200") or self._expected not in self._buffer:
            self._fail(f"unexpected answer: {self._buffer[:500]!r}")
            return
        self.latencies_s.append(now - self._sent_at)
        self._buffer = b""
        if now < self._deadline:
            self._send()
        else:
            self.ended.set_result(None)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"connection lost: {error}")

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def _fail(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(why))


async def _run(port: int, request: bytes, expected: bytes, *, connections: int, seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    cpu_before = _cpu_s()
    start = time.perf_counter()
    connect = partial(_Client, request, expected, start + seconds)
    clients = [(await loop.create_connection(connect, "127.0.0.1", port))[1] for _ in range(connections)]
    await asyncio.gather(*(client.ended for client in clients))
    elapsed = time.perf_counter() - start
    latencies = sorted(latency for client in clients for latency in client.latencies_s)
    return Load(
        requests_per_s=len(latencies) / elapsed,
        median_latency_s=median(latencies),
        p99_latency_s=latencies[len(latencies) * 99 // 100],
        generator_cpu=(_cpu_s() - cpu_before) / elapsed,
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    port, path, connections, seconds, expected = sys.argv[1:]
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: {sys.stdin.read().strip()}\r\n\r\n"
    load = uvloop.run(
        _run(int(port), request.encode(), expected.encode(), connections=int(connections), seconds=float(seconds))
    )
    print(json.dumps(asdict(load)))


if __name__ == "__main__":
    main()

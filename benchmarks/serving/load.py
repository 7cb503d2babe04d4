"""A load generator: keep-alive connections that each send the next text as soon as the one before is answered.

    python -m benchmarks.serving.load < order

A process of its own, so that it shares no interpreter with what it measures; a raw protocol on uvloop that does not
look at vectors, so that it takes little of the processor that it shares with the server. Reads an ``Order`` as JSON,
prints a ``Load`` as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import uvloop

# What a generator may take to start and to hear its last answers, in seconds.
_SLACK_S = 60
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a generator is to do."""

    port: int
    # Names and values.
    headers: Sequence[tuple[str, str]]
    # Paths and JSON documents, sent in turn by all connections together.
    calls: Sequence[tuple[str, str]]
    connections: int
    # Before anything counts.
    warm_up_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one generator saw."""

    requests_per_s: float
    p50_s: float
    p99_s: float
    # Answers other than 200, and connections that broke.
    errors: int
    # Of one core.
    generator_cpu: float


def generate(order: Order) -> Load:
    """Run a load generator in a process of its own and return what it saw."""
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(asdict(order)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=order.warm_up_s + order.seconds + _SLACK_S,
    )
    return Load(**json.loads(done.stdout))


class _Window:
    """What is counted of a run: the answers after a last one of the warm-up and before the first one past its time.

    A server that answers in batches is so charged for whole ones. The warm-up hears an answer a connection, the window
    two, however long that takes.
    """

    def __init__(self, order: Order) -> None:
        self.start_s = time.perf_counter()
        self._order = order
        self._warm_ups = 0
        self._after_s = self._until_s = self.start_s
        self._latencies_s: list[float] = []
        self.errors = 0
        self.is_over = False

    def add(self, sent_at_s: float, *, success: bool) -> None:
        """Note an answer that has just arrived, or a connection that broke."""
        now_s = time.perf_counter()
        if now_s < self.start_s + self._order.warm_up_s or self._warm_ups < self._order.connections:
            self._warm_ups += 1
            self._after_s = now_s
            return
        enough = len(self._latencies_s) + self.errors >= 2 * self._order.connections
        self.is_over |= enough and now_s >= self._after_s + self._order.seconds
        if self.is_over:
            return
        if success:
            self._latencies_s.append(now_s - sent_at_s)
            self._until_s = now_s
        else:
            self.errors += 1

    def summary(self, *, generator_cpu: float) -> Load:
        """Return what was counted. Fails if no answer was a success."""
        assert self._latencies_s, f"no success, {self.errors} errors"
        latencies_s = sorted(self._latencies_s)
        return Load(
            requests_per_s=len(latencies_s) / (self._until_s - self._after_s),
            p50_s=statistics.median(latencies_s),
            p99_s=latencies_s[len(latencies_s) * 99 // 100],
            errors=self.errors,
            generator_cpu=generator_cpu,
        )


class _Connection(asyncio.Protocol):
    """One connection; ``ended`` is set at the first answer past the window, or when the server ends it."""

    def __init__(self, requests: Iterator[bytes], window: _Window) -> None:
        self._requests = requests
        self._window = window
        self._buffer = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_whole():
            return
        self._window.add(self._sent_at_s, success=self._buffer.startswith(b"HTTP/1.1 200"))
        self._buffer.clear()
        if self._window.is_over:
            self.ended.set_result(None)
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done():
            self._window.add(self._sent_at_s, success=False)
            self.ended.set_result(None)

    def _is_whole(self) -> bool:
        head_end = self._buffer.find(b"\r\n\r\n") + 4
        if head_end < 4:
            return False
        if length := _LENGTH.search(self._buffer, 0, head_end):
            return len(self._buffer) >= head_end + int(length[1])
        # JSON has no line ends of this kind, so only the last chunk looks like it.
        return self._buffer.endswith(_LAST_CHUNK)

    def _send(self) -> None:
        self._sent_at_s = time.perf_counter()
        self._transport.write(next(self._requests))


async def _keep_connected(order: Order, requests: Iterator[bytes], window: _Window) -> None:
    """Hold one connection, opened again when it breaks, until the window is over."""
    loop = asyncio.get_running_loop()
    while not window.is_over:
        _, connection = await loop.create_connection(lambda: _Connection(requests, window), "127.0.0.1", order.port)
        await connection.ended


async def _run(order: Order) -> Load:
    requests = itertools.cycle([_request(order, path, body) for path, body in order.calls])
    cpu_before_s, window = _cpu_s(), _Window(order)
    await asyncio.gather(*(_keep_connected(order, requests, window) for _ in range(order.connections)))
    cpu = (_cpu_s() - cpu_before_s) / (time.perf_counter() - window.start_s)
    return window.summary(generator_cpu=cpu)


def _request(order: Order, path: str, body: str) -> bytes:
    content = body.encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{order.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in order.headers),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(_run(Order(**json.load(sys.stdin)))))))

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
    path: str
    # Names and values.
    headers: Sequence[tuple[str, str]]
    # JSON documents, sent in turn by all connections together.
    bodies: Sequence[str]
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


@dataclass(frozen=True, kw_only=True)
class _Answer:
    at_s: float
    latency_s: float


class _Connection(asyncio.Protocol):
    """One connection; ``ended`` is set at the first answer past the deadline, or when the server ends it."""

    def __init__(self, requests: Iterator[bytes], deadline_s: float, answers: list[_Answer]) -> None:
        self._requests = requests
        self._deadline_s = deadline_s
        self._answers = answers
        self._buffer = bytearray()
        self.errors = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_whole():
            return
        now_s = time.perf_counter()
        if self._buffer.startswith(b"HTTP/1.1 200"):
            self._answers.append(_Answer(at_s=now_s, latency_s=now_s - self._sent_at_s))
        else:
            self.errors += 1
        self._buffer.clear()
        if now_s < self._deadline_s:
            self._send()
        else:
            self.ended.set_result(None)
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done():
            self.errors += 1
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


async def _keep_connected(order: Order, requests: Iterator[bytes], deadline_s: float, answers: list[_Answer]) -> int:
    """Hold one connection, opened again when it breaks, until the deadline; return the errors."""
    loop = asyncio.get_running_loop()
    errors = 0
    while time.perf_counter() < deadline_s:
        _, connection = await loop.create_connection(
            lambda: _Connection(requests, deadline_s, answers), "127.0.0.1", order.port
        )
        await connection.ended
        errors += connection.errors
    return errors


async def _run(order: Order) -> Load:
    requests = itertools.cycle([_request(order, body) for body in order.bodies])
    answers: list[_Answer] = []
    start_s, cpu_before_s = time.perf_counter(), _cpu_s()
    counted_from_s = start_s + order.warm_up_s
    deadline_s = counted_from_s + order.seconds
    errors = await asyncio.gather(
        *(_keep_connected(order, requests, deadline_s, answers) for _ in range(order.connections))
    )
    cpu = (_cpu_s() - cpu_before_s) / (time.perf_counter() - start_s)
    return _summary(answers, counted_from_s, deadline_s, errors=sum(errors), generator_cpu=cpu)


def _summary(
    answers: Sequence[_Answer], counted_from_s: float, deadline_s: float, *, errors: int, generator_cpu: float
) -> Load:
    # From one answer to another: a server that answers in batches is charged for whole ones.
    before = max((answer.at_s for answer in answers if answer.at_s < counted_from_s), default=counted_from_s)
    counted = [answer for answer in answers if counted_from_s <= answer.at_s <= deadline_s]
    assert counted, f"no answer in time, {errors} errors"
    latencies = sorted(answer.latency_s for answer in counted)
    return Load(
        requests_per_s=len(counted) / (counted[-1].at_s - before),
        p50_s=statistics.median(latencies),
        p99_s=latencies[len(latencies) * 99 // 100],
        errors=errors,
        generator_cpu=generator_cpu,
    )


def _request(order: Order, body: str) -> bytes:
    content = body.encode()
    lines = [
        f"POST {order.path} HTTP/1.1",
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

"""The inference application over local models, behind a real server in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from local_models import CALLERS, LocalKeys, LocalModels
from waiting import wait_for

from mixpeek_ray.api.inference_app import create_inference_app
from mixpeek_ray.batching.engine import TextEngine
from mixpeek_ray.batching.pool import ModelPool, ReadyModel
from mixpeek_ray.core.settings import Settings


@dataclass(frozen=True, kw_only=True)
class InferenceServer:
    """Where it listens, and what it has at hand."""

    http: uvicorn.Server
    pool: ModelPool
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.http.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str | None = "sk_reader") -> httpx.Client:
        """Return a client that speaks for the owner of ``key``."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def model(self, name: str) -> ReadyModel:
        """Return a model of its pool, loaded."""

        async def found() -> ReadyModel:
            async with self.pool.use(await self.pool.find(CALLERS["sk_reader"], name)) as model:
                return model

        return asyncio.run_coroutine_threadsafe(found(), self.loop).result(60)


@contextmanager
def serving(models: LocalModels, *, max_wait_s: float = 1e9, idle_timeout_s: float = 30.0) -> Iterator[InferenceServer]:
    """Serve ``models`` inside the block."""
    settings = Settings(idle_timeout_s=idle_timeout_s)
    running: list[InferenceServer] = []
    thread = threading.Thread(target=lambda: asyncio.run(_serve(models, max_wait_s, settings, running.append)))
    thread.start()
    try:
        wait_for(lambda: running and running[0].http.started)
        yield running[0]
    finally:
        for server in running:
            server.http.should_exit = True
        thread.join(60)


async def _serve(
    models: LocalModels, max_wait_s: float, settings: Settings, tell: Callable[[InferenceServer], Any]
) -> None:
    pool = ModelPool(models, max_wait_s=max_wait_s, idle_s=1e9)
    engine = TextEngine(pool)
    app = create_inference_app(LocalKeys(), engine, settings)
    http = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    tell(InferenceServer(http=http, pool=pool, loop=asyncio.get_running_loop()))
    try:
        await http.serve()
    finally:
        await pool.close()
        engine.close()

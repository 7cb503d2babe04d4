"""Ray Serve as its documentation batches a model: `serve.batch` in one replica, behind HAProxy.

python -m benchmarks.serving.servers.ray_serve_app PORT
"""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.servers.minilm import MAX_BATCH, MAX_WAIT_S, MODEL_VARIABLE, MiniLM


@serve.deployment(max_ongoing_requests=4 * MAX_BATCH, logging_config={"enable_access_log": False})
class Embed:
    """Answers ``{"input": text}`` with ``{"embedding": vector}``."""

    def __init__(self) -> None:
        self._model = MiniLM()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=MAX_WAIT_S)
    async def _embed(self, texts: list[str]) -> list[Any]:
        return list(self._model.embed(texts))

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        vector = await self._embed((await request.json())["input"])
        return {"embedding": vector.tolist()}


if __name__ == "__main__":
    variables = {name: os.environ[name] for name in (MODEL_VARIABLE, "OMP_NUM_THREADS", "PYTHONPATH")}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Embed.bind(), blocking=True)

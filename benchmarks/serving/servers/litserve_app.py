"""LitServe's server: batches in a worker process, the ZeroMQ queue that its documentation has for high throughput.

python -m benchmarks.serving.servers.litserve_app PORT
"""

from __future__ import annotations

import sys
from typing import Any

import litserve

from benchmarks.serving.servers.minilm import MAX_BATCH, MAX_WAIT_S, MiniLM


class Embed(litserve.LitAPI):
    """Answers ``{"input": text}`` with ``{"embedding": vector}``."""

    def setup(self, _: str) -> None:
        self._model = MiniLM()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["input"]

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, inputs: list[str]) -> Any:
        return self._model.embed(inputs)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    api = Embed(max_batch_size=MAX_BATCH, batch_timeout=MAX_WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)

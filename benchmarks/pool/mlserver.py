"""MLServer with many models of one runtime, loaded by its repository API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.local_platform import free_port
from benchmarks.pool.server import Server
from benchmarks.serving.environments import environment
from benchmarks.serving.peers import LOG, running_process
from benchmarks.serving.workloads import SENTENCE

NAME = "MLServer 1.7.1"
_START_TIMEOUT_S = 120
_LOAD_TIMEOUT_S = 120
_POLL_S = 0.2


@contextmanager
def mlserver(folder: Path, models: Sequence[Path]) -> Iterator[Server]:
    """Run it in ``folder``, which is made, with the models in these folders known and none loaded."""
    folder.mkdir()
    port = free_port()
    for number, model in enumerate(models):
        _write_model(folder, number, model)
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"host": "127.0.0.1", **ports, "parallel_workers": 1, "load_models_at_startup": False, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    with running_process([environment("mlserver") / "mlserver", "start", folder], folder, {}) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_until_live(url, folder / LOG)
        yield Server(name=NAME, port=port, pid=process.pid, headers=(), call=_call, load=lambda n: _load(url, n))


def _write_model(folder: Path, number: int, model: Path) -> None:
    place = folder / f"model-{number}"
    place.mkdir()
    described = {
        "name": f"model-{number}",
        "implementation": "benchmarks.serving.servers.mlserver_fine_tunes.Embed",
        "parameters": {"uri": str(model)},
    }
    (place / "model-settings.json").write_text(json.dumps(described))


def _call(number: int) -> tuple[str, str]:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [SENTENCE]}
    return f"/v2/models/model-{number}/infer", json.dumps({"inputs": [tensor]})


def _load(url: str, number: int) -> None:
    answer = httpx.post(f"{url}/v2/repository/models/model-{number}/load", timeout=_LOAD_TIMEOUT_S)
    assert answer.is_success, answer.text


def _wait_until_live(url: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            if httpx.get(f"{url}/v2/health/live", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass  # not up yet
        assert time.monotonic() < deadline_s, log.read_text(errors="replace")[-4000:]
        time.sleep(_POLL_S)

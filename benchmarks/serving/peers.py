"""The servers that people use: how each is started for throughput, as its documentation says, and asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.local_platform import free_port
from benchmarks.serving.endpoint import Endpoint, Protocol
from benchmarks.serving.environments import environment
from benchmarks.serving.servers.minilm import MAX_BATCH, MAX_WAIT_S, MODEL_VARIABLE

_REPOSITORY = Path(__file__).parents[2]
_SERVERS = "benchmarks.serving.servers"
_START_TIMEOUT_S = 120
_STOP_TIMEOUT_S = 30
_POLL_S = 0.2
_MODEL_NAME = "minilm"
LOG = "log"
# One thread for every server's model; no telemetry, nothing from the network.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "true",
    "PYTHONPATH": str(_REPOSITORY),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server is to run."""

    # With its environment's commands.
    commands: Path
    # Its own, empty.
    folder: Path
    # A Hugging Face directory.
    model: Path
    port: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """A server that has been started."""

    endpoint: Endpoint
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_it_answers(self) -> None:
        """Return once it embeds a text; fail with the end of its log if it ends or takes too long."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            said = f"{self.endpoint.name} did not start:\n{self.log.read_text(errors='replace')[-4000:]}"
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline_s, said
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        try:
            self.endpoint.embed("ready?")
        except httpx.HTTPError:
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server that can be started."""

    name: str
    # Of ``requirements``; None: this platform's own environment.
    environment: str | None
    command: Callable[[Place], Sequence[str | Path]]
    protocol: Protocol
    # Of the server's environment, names and values.
    variables: Sequence[tuple[str, str]] = ()

    @contextmanager
    def started(self, folder: Path, model: Path) -> Iterator[Started]:
        """Start the server in ``folder``, which is made; stop it when the block is left."""
        folder.mkdir()
        commands = environment(self.environment) if self.environment else Path(sys.executable).parent
        place = Place(commands=commands, folder=folder, model=model, port=free_port())
        variables = {MODEL_VARIABLE: str(model), **dict(self.variables)}
        with running_process(self.command(place), folder, variables) as process:
            endpoint = Endpoint(name=self.name, port=place.port, protocol=self.protocol)
            yield Started(endpoint=endpoint, process=process, log=folder / LOG)


@contextmanager
def running_process(
    command: Sequence[str | Path], folder: Path, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a peer's server in ``folder``, its output in the file ``LOG`` there, until the block is left."""
    # Ray's and this platform's variables must not reach another cluster.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MIXPEEK_"))}
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=inherited | _ENVIRONMENT | dict(variables),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    # What is left of its group, which is nothing where it stopped by itself.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _module(name: str) -> Callable[[Place], Sequence[str | Path]]:
    return lambda place: [place.commands / "python", "-m", f"{_SERVERS}.{name}", str(place.port)]


def _infinity(place: Place) -> Sequence[str | Path]:
    # BetterTransformer, which is its default, and torch.compile exclude each other.
    model = ["--model-id", str(place.model), "--served-model-name", _MODEL_NAME, "--batch-size", str(MAX_BATCH)]
    kind = ["--device", "cpu", "--dtype", "float32", "--no-compile"]
    server = ["--host", "127.0.0.1", "--port", str(place.port), "--log-level", "warning"]
    return [place.commands / "infinity_emb", "v2", *model, *kind, *server]


def _mlserver(place: Place) -> Sequence[str | Path]:
    model = {
        "name": _MODEL_NAME,
        "implementation": f"{_SERVERS}.mlserver_runtime.Embed",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": MAX_WAIT_S,
    }
    ports = {"http_port": place.port, "grpc_port": free_port(), "metrics_port": free_port()}
    server = {"host": "127.0.0.1", **ports, "parallel_workers": 1, "debug": False}
    (place.folder / "model-settings.json").write_text(json.dumps(model))
    (place.folder / "settings.json").write_text(json.dumps(server))
    return [place.commands / "mlserver", "start", place.folder]


def _bentoml(place: Place) -> Sequence[str | Path]:
    service = f"{_SERVERS}.bentoml_app:Embed"
    return [place.commands / "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(place.port)]


_PLAIN = Protocol(path="/", ask=lambda text: {"input": text}, vector=lambda answer: answer["embedding"])

PEERS = (
    Peer(
        name="infinity-emb 0.0.78",
        environment="infinity",
        command=_infinity,
        protocol=Protocol(
            path="/embeddings",
            ask=lambda text: {"model": _MODEL_NAME, "input": [text]},
            vector=lambda answer: answer["data"][0]["embedding"],
        ),
    ),
    Peer(
        name="LitServe 0.2.19",
        environment="litserve",
        command=_module("litserve_app"),
        protocol=Protocol(path="/predict", ask=_PLAIN.ask, vector=_PLAIN.vector),
    ),
    Peer(
        name="MLServer 1.7.1",
        environment="mlserver",
        command=_mlserver,
        protocol=Protocol(
            path=f"/v2/models/{_MODEL_NAME}/infer",
            ask=lambda text: {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]},
            vector=lambda answer: answer["outputs"][0]["data"],
        ),
    ),
    Peer(
        name="BentoML 1.4.39",
        environment="bentoml",
        command=_bentoml,
        protocol=Protocol(path="/embed", ask=lambda text: {"texts": [text]}, vector=lambda answer: answer[0]),
    ),
    Peer(
        name="Ray Serve 2.60.0",
        environment=None,
        command=_module("ray_serve_app"),
        protocol=_PLAIN,
        # What its documentation has for throughput: up to twice the requests/s of its defaults here.
        variables=[("RAY_SERVE_ENABLE_HA_PROXY", "1"), ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")],
    ),
)


@contextmanager
def running(folder: Path, model: Path) -> Iterator[Sequence[Endpoint]]:
    """Run all peers, in folders of their own below ``folder``, until the block is left."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(peer.started(folder / f"peer-{number}", model)) for number, peer in enumerate(PEERS)
        ]
        for server in servers:
            server.wait_until_it_answers()
        yield [server.endpoint for server in servers]

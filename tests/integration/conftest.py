"""One real platform for the whole session: real Ray, Serve behind HAProxy, the store on disk."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.text_models import CATALOG

# The command of the environment that the tests run in.
MIXPEEK_RAY = Path(sys.executable).with_name("mixpeek-ray")
START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 60


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], Any], *, timeout_s: float = 30.0, what: str = "condition") -> Any:
    """Return the first truthy result of ``condition``; fail when there is none in time.

    A connection that breaks counts as no result: whoever asks while something is being killed has to expect one.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.TransportError):
            result = condition()
            if result:
                return result
        assert time.monotonic() < deadline, f"{what} not met within {timeout_s:g} s"
        time.sleep(0.05)  # the pace of the polling, not a wait for anything


@dataclass
class Platform:
    """A running platform and how to talk to it."""

    home: Path
    port: int
    environment: dict[str, str] = field(repr=False)

    @classmethod
    def prepare(cls, home: Path, **settings: str) -> Platform:
        """Return a platform with a home and ports of its own, not started yet."""
        port = free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MIXPEEK_"))}
        environment |= {
            "MIXPEEK_HOME": str(home),
            "MIXPEEK_PORT": str(port),
            "MIXPEEK_DASHBOARD_PORT": str(free_port()),
            "MIXPEEK_OBJECT_STORE_BYTES": str(512 * 1024**2),
            **settings,
        }
        return cls(home=home, port=port, environment=environment)

    def start(self) -> None:
        """Start it in the background and return when it is healthy."""
        done = self.command("up", "--detach", timeout_s=START_TIMEOUT_S)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log_tail()}"

    def stop(self) -> None:
        """Stop it and everything that belongs to it."""
        done = self.command("down", timeout_s=STOP_TIMEOUT_S)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    def command(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run ``mixpeek-ray`` as its user would."""
        return subprocess.run(
            [str(MIXPEEK_RAY), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def log_tail(self) -> str:
        """Return the end of the platform's log."""
        log = self.home / "logs" / "platform.log"
        return log.read_text()[-4000:] if log.exists() else ""

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_key(self) -> str:
        """The development organisation's key."""
        return (self.home / "dev-api-key").read_text()

    @property
    def state(self) -> dict[str, Any]:
        """What the run command says about the running platform."""
        found: dict[str, Any] = json.loads((self.home / "run.json").read_text())
        return found

    def client(self, api_key: str | None = None) -> httpx.Client:
        """Return an HTTP client with a key; the caller closes it."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key or self.api_key}"},
            timeout=120,
        )

    def ray_environment(self) -> dict[str, str]:
        """Return the variables that make a process part of this platform's cluster."""
        lines = (self.home / "env").read_text().splitlines()
        words = (shlex.split(line.removeprefix("export "))[0] for line in lines)
        return dict(word.split("=", 1) for word in words)

    def python(self, code: str, *arguments: str, timeout_s: float = 120, **variables: str) -> str:
        """Run a Python program as a driver on this cluster and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=self.environment | self.ray_environment() | variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The session's platform; the tests that call its built-in models put them into its folder of models."""
    folder = tmp_path_factory.mktemp("platform")
    (folder / "models").mkdir()
    (folder / "models.yaml").write_text(CATALOG)
    running = Platform.prepare(
        folder / "home", MIXPEEK_MODEL_CATALOG=str(folder / "models.yaml"), MIXPEEK_MODELS_DIR=str(folder / "models")
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def driver(platform: Platform) -> Iterator[Any]:
    """This process as a driver on the platform's cluster: the module ``ray``, connected."""
    os.environ.update(platform.ray_environment())
    import ray

    ray.init(address=platform.state["gcs_address"], namespace="tests", log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def http(platform: Platform) -> Iterator[httpx.Client]:
    """A client with the development key."""
    with platform.client() as client:
        yield client


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A namespace that only this test uses; it is made by its first upload."""
    digest = abs(hash(request.node.nodeid)) % 10**12
    return f"ns_test{digest}"


@pytest.fixture
def whole_afterwards(http: httpx.Client) -> Iterator[None]:
    """Hand the platform on only when what a test killed is back."""
    yield
    eventually(lambda: is_whole(http), timeout_s=60, what="health OK")


def is_whole(http: httpx.Client) -> bool:
    """Tell whether the platform is healthy and HAProxy reaches the gateway itself."""
    health = http.get("/v1/health")
    if health.status_code != httpx.codes.OK or health.json()["status"] != "OK":
        return False
    # Serve's fallback proxy, which answers while HAProxy knows no replica, takes no bodies of unknown length.
    return http.post("/v1/health", content=iter([b""])).status_code == httpx.codes.METHOD_NOT_ALLOWED

"""A whole platform for one benchmark: a home and ports of its own, stopped and removed when the benchmark is over."""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]  # its types are a package of their own

import deployments

# The commands of the environment that the benchmark runs in.
_COMMANDS = Path(sys.executable).parent
_SERVE_CONFIG = Path(deployments.__file__).parent.parent / "serve_config.yaml"
_START_TIMEOUT_S = 240
_STOP_TIMEOUT_S = 90
_REQUEST_TIMEOUT_S = 900
_POLL_S = 0.2
# Below what Ray and the kernel hand out: a port from there may be gone when the platform gets round to it.
_PORTS = range(3_000, 10_000)
NAMESPACE = "ns_bench"


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A running platform."""

    home: Path
    port: int

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def models_url(self) -> str:
        """The address of the models in the benchmark's namespace."""
        return f"{self.url}/v1/namespaces/{NAMESPACE}/models"

    @property
    def authorization(self) -> str:
        """The value of the Authorization header of the development organisation."""
        return f"Bearer {(self.home / 'dev-api-key').read_text()}"

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        """Return the JSON that the API answers; fail on anything but success."""
        headers = {"Authorization": self.authorization}
        answer = httpx.request(method, url, headers=headers, timeout=_REQUEST_TIMEOUT_S, **arguments)
        assert answer.is_success, answer.text
        return answer.json()

    def upload(self, archive: Path, *, name: str, model_format: str) -> tuple[str, float]:
        """Upload an archive as version 1.0.0; return the model's id and the seconds that curl took."""
        form = {"file": f"@{archive}", "name": name, "version": "1.0.0", "model_format": model_format}
        fields = [word for key, value in form.items() for word in ("-F", f"{key}={value}")]
        seconds = curl(*fields, "-H", f"Authorization: {self.authorization}", self.models_url)
        return f"{name}_1_0_0", seconds

    def ray_environment(self) -> dict[str, str]:
        """Return the variables that make a process part of the platform's cluster."""
        words = (shlex.split(line)[1] for line in (self.home / "env").read_text().splitlines())
        return dict(word.split("=", 1) for word in words)


def curl(*arguments: str | Path) -> float:
    """Send one request with curl and return the seconds it took; fail on any answer but success."""
    done = subprocess.run(
        ["curl", "-sS", "--fail-with-body", "-w", "\n%{time_total}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    body, _, seconds = done.stdout.rpartition("\n")
    assert done.returncode == 0, f"{done.stderr}{body}"
    return float(seconds)


@contextmanager
def behind_haproxy(folder: Path, **settings: str) -> Iterator[Platform]:
    """Run a platform as `mixpeek-ray up` starts it, its home in ``folder``."""
    platform = Platform(home=folder / "home", port=free_port())
    environment = _environment(platform) | settings
    _command([_COMMANDS / "mixpeek-ray", "up", "--detach"], environment, timeout_s=_START_TIMEOUT_S)
    try:
        yield platform
    finally:
        _command([_COMMANDS / "mixpeek-ray", "down"], environment, timeout_s=_STOP_TIMEOUT_S)


@contextmanager
def behind_python_proxy(folder: Path) -> Iterator[Platform]:
    """Run the platform as `serve run serve_config.yaml` starts it on a plain Ray, on a port of its own."""
    platform = Platform(home=folder / "home", port=free_port())
    config = yaml.safe_load(_SERVE_CONFIG.read_text())
    config["http_options"]["port"] = platform.port
    config_file = folder / "serve_config.yaml"
    config_file.write_text(yaml.safe_dump(config))
    environment = _environment(platform) | {"RAY_TMPDIR": str(folder)}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            # What a shell starts in the background ignores SIGINT, and so would everything below it.
            ["env", "--default-signal=INT", _COMMANDS / "serve", "run", "--address", "local", config_file],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_healthy(platform, process, folder / "serve.log")
        yield platform
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_TIMEOUT_S)


def _environment(platform: Platform) -> dict[str, str]:
    # Another platform's variables must not reach this one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MIXPEEK_"))}
    return inherited | {
        "MIXPEEK_HOME": str(platform.home),
        "MIXPEEK_PORT": str(platform.port),
        "MIXPEEK_DASHBOARD_PORT": str(free_port()),
    }


def free_port() -> int:
    """Return a port that nothing listens on, and that nothing is given unless it asks for it."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _command(words: list[str | Path], environment: Mapping[str, str], *, timeout_s: float) -> None:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _wait_until_healthy(platform: Platform, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            if httpx.get(f"{platform.url}/v1/health", timeout=5).json()["status"] == "OK":
                return
        except (httpx.HTTPError, ValueError, KeyError):
            pass  # not up yet
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(_POLL_S)

"""The other road: plain ``serve run serve_config.yaml``, behind Serve's own proxy."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from tests.integration.conftest import START_TIMEOUT_S, Platform, eventually
from tests.integration.models import deployed

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 1024**2

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform started by Serve's command alone; only the port differs from the file as it is shipped."""
    folder = tmp_path_factory.mktemp("serve-run")
    platform = Platform.prepare(folder / "home", MIXPEEK_BUFFERED_INGRESS_MAX_UPLOAD_BYTES=str(LIMIT_BYTES))
    config = folder / "serve_config.yaml"
    shipped = (ROOT / "serve_config.yaml").read_text()
    config.write_text(shipped.replace("port: 8000", f"port: {platform.port}"))
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            # What a shell starts in the background ignores SIGINT, and so would everything below it.
            ["env", "--default-signal=INT", str(Path(sys.executable).with_name("serve")), "run", str(config)],
            cwd=ROOT,
            env=platform.environment,
            stdout=log,
            stderr=log,
        )

        def is_up() -> bool:
            assert process.poll() is None, (folder / "log").read_text()[-4000:]
            return health(platform) == "OK"

        try:
            eventually(is_up, timeout_s=START_TIMEOUT_S, what="health OK")
            yield platform
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def health(platform: Platform) -> str | None:
    try:
        return str(httpx.get(f"{platform.url}/v1/health").json()["status"])
    except (httpx.TransportError, ValueError, KeyError):
        return None


def test_it_serves_and_says_which_ingress_is_on(served: Platform) -> None:
    with served.client() as http:
        assert http.get("/v1/health").json()["meta"]["ingress"] == "python-proxy"
        deployed(http, "ns_served", {"w": torch.ones(4)})


def test_uploads_are_bounded_where_bodies_are_held_in_memory(served: Platform) -> None:
    with served.client() as http:
        answer = http.post(
            "/v1/namespaces/ns_served/models",
            files={"file": ("m.tar.gz", bytes(3 * LIMIT_BYTES))},
            data={"name": "large", "version": "1.0.0", "model_format": "pytorch"},
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "archive_too_large")


def test_serves_own_headers_hang_nothing(served: Platform) -> None:
    headers = {"x-request-disconnect-disabled": "?1", "x-request-timeout-seconds": "-1"}
    with served.client() as http:
        for _ in range(6):
            answer = http.post("/v1/namespaces", headers=headers, content=b"x" * (5 * LIMIT_BYTES))
            assert answer.status_code == 413
        assert http.get("/v1/whoami").status_code == 200

"""HAProxy's configuration, as Ray's own template renders it, after the launcher has been over it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from mixpeek_ray.cli.environment import haproxy_binary
from mixpeek_ray.cli.processes import is_alive
from mixpeek_ray.serving import haproxy_launcher
from mixpeek_ray.serving.haproxy_launcher import (
    MAX_FALLBACK_BODY_BYTES,
    MAX_FALLBACK_INFERENCE_BODY_BYTES,
    MAX_FALLBACK_INFERENCE_REQUESTS,
    harden,
    write_error_pages,
)

PUBLIC = "127.0.0.1:18000"


def backend(*replicas: str, app: str = "gateway", prefix: str = "/") -> BackendConfig:
    """Return a routed application with these replicas and Serve's fallback proxy."""
    return BackendConfig(
        name=f"http-{app}",
        path_prefix=prefix,
        app_name=app,
        servers=[ServerConfig(name=name, host="127.0.0.1", port=20_500 + i) for i, name in enumerate(replicas)],
        fallback_server=ServerConfig(name="FALLBACK", host="127.0.0.1", port=20_499),
    )


def render(folder: Path, *backends: BackendConfig) -> str:
    """Return the configuration that this Ray writes."""

    async def generate() -> str:
        file = folder / "haproxy.cfg"
        config = HAProxyConfig(
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "state"),
            metrics_socket_path=str(folder / "metrics.sock"),
            http_options=HTTPOptions(host="127.0.0.1", port=8000),
            metrics_port=20_481,
            stats_port=20_480,
            has_received_routes=True,
            has_received_servers=True,
        )
        api = HAProxyApi(cfg=config, backend_configs={b.name: b for b in backends}, config_file_path=str(file))
        api._generate_config_file_internal()
        return file.read_text()

    return asyncio.run(generate())


def section(config: str, header: str) -> list[str]:
    """Return the stripped lines below ``header``."""
    lines = config.splitlines()
    start = lines.index(header) + 1
    end = next((i for i in range(start, len(lines)) if lines[i] and not lines[i][0].isspace()), len(lines))
    return [line.strip() for line in lines[start:end]]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room for HAProxy's sockets (97 bytes)."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="mx-") as folder:
        yield Path(folder)


def test_only_the_public_port_leaves_loopback(tmp_path: Path) -> None:
    config = harden(render(tmp_path, backend("A")), public_bind="0.0.0.0:8000", error_dir=tmp_path)
    binds = [line.split()[1] for line in config.splitlines() if line.split()[:1] == ["bind"]]
    assert sorted(binds) == ["0.0.0.0:8000", "127.0.0.1:20480", "127.0.0.1:20481"]


def test_slow_headers_run_into_a_limit(tmp_path: Path) -> None:
    defaults = section(harden(render(tmp_path), public_bind=PUBLIC, error_dir=tmp_path), "defaults")
    assert "timeout http-request 10s" in defaults
    assert sum(line.startswith("timeout http-keep-alive") for line in defaults) == 1


def test_large_bodies_never_wait_in_the_fallback_proxy(tmp_path: Path) -> None:
    config = harden(render(tmp_path, backend("A", "B")), public_bind=PUBLIC, error_dir=tmp_path)
    lines = section(config, "backend http-gateway")
    deny = "http-request deny deny_status 503 if !replica_up"
    assert lines[:4] == [
        "acl replica_up srv_is_up(http-gateway/A)",
        "acl replica_up srv_is_up(http-gateway/B)",
        f"{deny} {{ req.hdr_val(content-length) gt {MAX_FALLBACK_BODY_BYTES} }}",
        f"{deny} {{ req.hdr(transfer-encoding) -m found }}",
    ]


def test_without_replicas_only_the_fallback_counts(tmp_path: Path) -> None:
    config = harden(render(tmp_path, backend()), public_bind=PUBLIC, error_dir=tmp_path)
    assert section(config, "backend http-gateway")[0] == "acl replica_up always_false"


def test_a_sleeping_family_takes_whole_requests_but_not_many(tmp_path: Path) -> None:
    asleep = backend(app="embeddings", prefix="/v1/embeddings")
    config = harden(render(tmp_path, backend("A"), asleep), public_bind=PUBLIC, error_dir=tmp_path)
    lines = section(config, "backend http-embeddings")
    deny = "http-request deny deny_status 503 if !replica_up"
    assert f"{deny} {{ req.hdr_val(content-length) gt {MAX_FALLBACK_INFERENCE_BODY_BYTES} }}" in lines
    assert lines[-1].endswith(f" backup maxconn {MAX_FALLBACK_INFERENCE_REQUESTS}")
    assert not any("maxconn" in line for line in section(config, "backend http-gateway"))


@pytest.mark.parametrize("replicas", [(), ("A",), ("A", "B")])
def test_haproxy_accepts_the_result(short_path: Path, replicas: tuple[str, ...]) -> None:
    binary = haproxy_binary()
    assert binary is not None
    write_error_pages(short_path)
    family = backend(*replicas, app="embeddings", prefix="/v1/embeddings")
    once = harden(render(short_path, backend(*replicas), family), public_bind=PUBLIC, error_dir=short_path)
    file = short_path / "haproxy.cfg"
    file.write_text(once)
    check = subprocess.run([binary, "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
    assert "never be used" not in check.stderr


def test_error_pages_are_the_envelope(tmp_path: Path) -> None:
    write_error_pages(tmp_path)
    for status, code in ((400, "bad_request"), (408, "request_timeout"), (503, "service_unavailable")):
        head, _, body = (tmp_path / f"{status}.http").read_bytes().partition(b"\r\n\r\n")
        envelope = json.loads(body)
        assert envelope["success"] is False
        assert envelope["status"] == status
        assert envelope["error"]["code"] == code
        assert f"Content-Length: {len(body)}".encode() in head
        assert (b"Retry-After: " in head) == (status == 503)


def test_a_configuration_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no `bind`"):
        harden("global\ndefaults\n", public_bind=PUBLIC, error_dir=tmp_path)


@pytest.fixture
def fake_haproxy(tmp_path: Path) -> Path:
    """A program in HAProxy's place that says how it was called, and stays."""
    program = tmp_path / "haproxy"
    program.write_text('#!/bin/sh\necho "$$ $*"\nexec sleep 600\n')
    program.chmod(0o700)
    return program


def launch(tmp_path: Path, fake_haproxy: Path) -> list[str]:
    """Return the command that starts the launcher as Serve does."""
    config = tmp_path / "haproxy.cfg"
    config.write_text(render(tmp_path, backend("A")))
    return [sys.executable, "-I", "-S", haproxy_launcher.__file__, PUBLIC, str(fake_haproxy), "-db", "-f", str(config)]


def test_the_launcher_becomes_haproxy(tmp_path: Path, fake_haproxy: Path) -> None:
    with subprocess.Popen(launch(tmp_path, fake_haproxy), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        process.kill()
    # Same process, and the configuration stays on the command line: Ray finds its HAProxy by both.
    assert said == [str(process.pid), "-db", "-f", str(tmp_path / "haproxy.cfg")]
    assert f"bind {PUBLIC}" in (tmp_path / "haproxy.cfg").read_text()


def test_haproxy_ends_with_the_process_that_started_it(tmp_path: Path, fake_haproxy: Path) -> None:
    manager = f"import subprocess; subprocess.Popen({launch(tmp_path, fake_haproxy)!r}).wait()"
    with subprocess.Popen([sys.executable, "-c", manager], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().split()[0])
        assert is_alive(pid)
        process.kill()
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)

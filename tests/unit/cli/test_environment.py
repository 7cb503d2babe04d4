"""The environment of the platform's processes."""

from __future__ import annotations

import importlib
import inspect
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private import constants

from mixpeek_ray.cli import environment
from mixpeek_ray.cli.environment import PORT_BLOCK, PortBlock, platform_environment, write_haproxy_script
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.serving import haproxy_launcher


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """Paths below a temporary folder."""
    return RunPaths(home=tmp_path / "home", scratch=tmp_path)


def build(paths: RunPaths, *, haproxy: bool = True, **inherited: str) -> dict[str, str]:
    """Return the environment with default settings."""
    return platform_environment(
        inherited, settings=Settings(), paths=paths, ports=PortBlock(first=24_576), haproxy=haproxy
    )


def test_another_clusters_variables_do_not_leak_in(paths: RunPaths) -> None:
    built = build(paths, RAY_ADDRESS="10.0.0.1:6379", RAY_AUTH_TOKEN="x", RAY_AUTH_MODE="disabled", PATH="/bin")
    assert "RAY_ADDRESS" not in built
    assert "RAY_AUTH_TOKEN" not in built
    assert built["RAY_AUTH_MODE"] == "token"
    assert built["RAY_AUTH_TOKEN_PATH"] == str(paths.token)
    # A job that says `python` means this one.
    assert built["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/bin"


def test_every_port_lies_in_the_block_and_none_twice(paths: RunPaths) -> None:
    built = build(paths)
    ports = [int(value) for name, value in built.items() if name.endswith("_PORT") and name.startswith("RAY_SERVE")]
    assert all(24_576 <= port <= 24_576 + PORT_BLOCK for port in ports)
    fixed = [int(value) for name, value in built.items() if name.endswith(("STATS_PORT", "METRICS_PORT"))]
    fixed += [int(built[f"RAY_SERVE_FALLBACK_PROXY_{kind}_PORT"]) for kind in ("HTTP", "GRPC")]
    assert len(set(fixed)) == 4
    assert max(fixed) < int(built["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
    http_end = int(built["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"])
    assert http_end <= int(built["RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT"])


def test_a_block_in_use_is_not_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    first = PortBlock.pick().first
    monkeypatch.setattr(environment, "_FIRST_PORT", first)
    monkeypatch.setattr(environment, "_LAST_PORT", first + PORT_BLOCK - 1)
    with pytest.raises(OSError, match="no free block"):
        PortBlock.pick()
    environment._reservations.pop().close()
    with socket.create_server(("127.0.0.1", first)), pytest.raises(OSError, match="no free block"):
        PortBlock.pick()
    assert PortBlock.pick().first == first


def test_serve_reads_what_is_set(paths: RunPaths) -> None:
    # A name that Serve does not know would be ignored without a word.
    names = [name for name in build(paths) if name.startswith("RAY_SERVE_")]
    source = Path(constants.__file__).read_text()
    assert [name for name in names if f'"{name}"' not in source] == []


def test_without_haproxy_serve_is_left_alone(paths: RunPaths) -> None:
    assert not [name for name in build(paths, haproxy=False) if name.startswith("RAY_SERVE")]


@pytest.mark.parametrize(("host", "bind"), [("0.0.0.0", "0.0.0.0:8000"), ("::1", "ipv6@::1:8000")])
def test_the_haproxy_script_carries_the_public_address(paths: RunPaths, host: str, bind: str) -> None:
    write_haproxy_script(paths, Settings(host=host, port=8000), "/opt/a b/haproxy")
    text = paths.haproxy_script.read_text()
    assert f"{haproxy_launcher.__file__} {bind} '/opt/a b/haproxy'" in text
    assert os.access(paths.haproxy_script, os.X_OK)
    check = subprocess.run(["sh", "-n", str(paths.haproxy_script)], check=False)
    assert check.returncode == 0


def test_the_launcher_needs_no_packages() -> None:
    code = f"import runpy, sys; runpy.run_path({haproxy_launcher.__file__!r}); print('pydantic' in sys.modules)"
    shown = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_files_named_from_where_the_user_stands_are_found_by_workers(
    paths: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(models_dir=Path("models"), model_catalog=Path("models.yaml"))
    built = platform_environment(
        {"MIXPEEK_MODELS_DIR": "models"}, settings=settings, paths=paths, ports=PortBlock(first=24_576), haproxy=False
    )
    assert built["MIXPEEK_MODELS_DIR"] == str(tmp_path / "models")
    assert built["MIXPEEK_MODEL_CATALOG"] == str(tmp_path / "models.yaml")
    assert "MIXPEEK_MODELS_DIR" not in build(paths)


def test_serve_can_import_what_traces_are_sent_with() -> None:
    module, name = environment.TRACE_EXPORTER.split(":")
    assert inspect.isfunction(exporter := getattr(importlib.import_module(module), name))
    # Serve takes no other.
    assert not inspect.signature(exporter).parameters

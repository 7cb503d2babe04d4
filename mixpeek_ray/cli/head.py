"""The head process: starts Ray and Serve, watches over Ray, and takes everything along when it ends.

The supervisor runs this file as ``python -m mixpeek_ray.cli.head <events fd> <object store bytes|-> <config>`` and
restarts it when it ends by itself: a driver does not survive the loss of its Ray, so nobody in this process tries to.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mixpeek_ray.cli.events import Failed, Progress, Ready, send
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.cli.processes import descendants, die_with_parent, is_alive
from mixpeek_ray.core.settings import Settings, get_settings

EXIT_NOT_STARTED = 3
EXIT_RAY_LOST = 4

# Without these two there is no Ray; whatever else dies, Ray or Serve brings back.
_VITAL = frozenset({"gcs_server", "raylet"})
_WATCH_PERIOD_S = 0.5
# 13 s on two idle cores; a loaded machine takes several times as long.
_START_TIMEOUT_S = 180.0
_POLL_S = 0.2
_HTTP_TIMEOUT_S = 5.0
_LOOPBACK = "127.0.0.1"


def main(argv: list[str]) -> int:
    """Run Ray and Serve until told to stop; return the exit status."""
    die_with_parent()
    events, object_store, config_file = int(argv[0]), argv[1], Path(argv[2])
    signal.signal(signal.SIGTERM, _stop)
    settings = get_settings()
    send(events, Progress(step="Starting Ray"))
    import ray

    _free_agent_port()
    paths = RunPaths.of(settings.home_path)
    context = ray.init(
        address="local",
        namespace="mixpeek",
        dashboard_host=_LOOPBACK,
        dashboard_port=settings.dashboard_port,
        include_dashboard=True,
        object_store_memory=None if object_store == "-" else int(object_store),
        log_to_driver=False,
        _temp_dir=str(paths.ray_sessions),
    )
    gcs_address: str = context.address_info["gcs_address"]
    _leave_address(gcs_address, paths.ray_sessions)
    # Ray installs a handler of its own while it starts.
    signal.signal(signal.SIGTERM, _stop)
    vital = [process.pid for process in descendants(os.getpid()) if process.name in _VITAL]
    send(events, Progress(step="Starting Serve and its HTTP ingress"))
    _deploy(config_file, settings)
    send(events, Progress(step="Starting the gateway and the model registry"))
    api_url = f"http://{_reachable(settings.host)}:{settings.port}"
    problem = _wait_until_healthy(api_url)
    if problem is not None:
        send(events, Failed(message=problem))
        return EXIT_NOT_STARTED
    send(
        events,
        Ready(
            api_url=api_url,
            dashboard_url=f"http://{context.dashboard_url}",
            gcs_address=gcs_address,
        ),
    )
    while all(is_alive(pid) for pid in vital):
        time.sleep(_WATCH_PERIOD_S)
    send(events, Failed(message="Ray's own processes ended."))
    # A regular exit would wait for the lost processes.
    os._exit(EXIT_RAY_LOST)


def _free_agent_port() -> None:
    # `ray.init` has no argument for it: Ray's agent wants port 52365, and where another cluster has it, runs without
    # its HTTP server and so without jobs. 0 lets it choose.
    from ray._private import parameter

    parameter.RayParams = functools.partial(parameter.RayParams, dashboard_agent_listen_port=0)


def _leave_address(gcs_address: str, temp_dir: Path) -> None:
    # `ray start` does this, `ray.init` does not. Without it the supervisor of a Ray job takes the address of any Ray
    # that it finds running on the machine.
    from ray._private import utils

    utils.write_ray_address(gcs_address, str(temp_dir))


def _stop(signum: int, frame: object) -> None:
    del frame
    sys.exit(128 + signum)


def _deploy(config_file: Path, settings: Settings) -> None:
    # What `serve run` does with a config file, less its Ray start and its log output.
    import yaml
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    from mixpeek_ray.serving.ingress import IngressMode, ingress_mode

    config = ServeDeploySchema.model_validate(yaml.safe_load(config_file.read_text()))
    # Behind HAProxy this is where replicas listen; HAProxy's own address is in its launcher's script.
    config.http_options.host = _LOOPBACK if ingress_mode() is IngressMode.HAPROXY else settings.host
    config.http_options.port = settings.port
    client = serve_start(http_options=config.http_options.model_dump(), proxy_location=config.proxy_location)
    client.deploy_apps(config)


def _wait_until_healthy(api_url: str) -> str | None:
    from ray import serve

    deadline = time.monotonic() + _START_TIMEOUT_S
    health: Any = None
    while time.monotonic() < deadline:
        health = _get_health(api_url)
        applications = serve.status().applications
        for name, application in applications.items():
            if application.status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                return f"The application {name!a} failed to start: {application.message.strip().splitlines()[-1]}"
        is_running = all(application.status == "RUNNING" for application in applications.values())
        if health == "OK" and is_running and _takes_uploads(api_url):
            return None
        time.sleep(_POLL_S)
    return f"The platform did not become healthy within {_START_TIMEOUT_S:.0f} s (last health: {health!a})."


def _get_health(api_url: str) -> str | None:
    try:
        with urllib.request.urlopen(f"{api_url}/v1/health", timeout=_HTTP_TIMEOUT_S) as response:  # noqa: S310
            return str(json.load(response).get("status"))
    except (OSError, ValueError, AttributeError):
        # Not up yet, or the ingress answers for it.
        return None


def _takes_uploads(api_url: str) -> bool:
    """Tell whether the ingress reaches the gateway itself.

    A health check passes through Serve's fallback proxy as well, until HAProxy has found the gateway's replica. What
    has a body of unknown length does not: the gateway refuses it on this path (405), HAProxy answers 503 for it.
    """
    request = urllib.request.Request(f"{api_url}/v1/health", data=iter([b""]), method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT_S):  # noqa: S310
            return True
    except urllib.error.HTTPError as refused:
        return refused.code != HTTPStatus.SERVICE_UNAVAILABLE
    except OSError:
        return False


def _reachable(host: str) -> str:
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        return _LOOPBACK
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

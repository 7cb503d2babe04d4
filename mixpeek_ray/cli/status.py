"""``mixpeek-ray status``: what runs in this home, and how it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import httpx

from mixpeek_ray.cli import state
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.core.settings import Settings

# `/v1/health` itself answers within 5 s whatever is broken.
_TIMEOUT_S = 6.0


@dataclass(frozen=True, kw_only=True)
class PlatformStatus:
    """``health`` is the API's own word, or ``STOPPED``, ``STARTING`` or ``UNREACHABLE``."""

    health: str
    home: str
    pid: int | None = None
    api_url: str | None = None
    dashboard_url: str | None = None

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the fields for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """Return the status as text for people."""
        if self.api_url is None:
            return f"{self.health} in {self.home}"
        return f"{self.health} at {self.api_url} (process {self.pid}, dashboard {self.dashboard_url})"


def platform_status(settings: Settings) -> PlatformStatus:
    """Return the status of the platform in this home, asking its API when there is one."""
    paths = RunPaths.of(settings.home_path)
    running = state.read_state(paths)
    if running is None:
        health = "STARTING" if state.is_locked(paths) else "STOPPED"
        return PlatformStatus(health=health, home=str(paths.home))
    try:
        answer = httpx.get(f"{running.api_url}/v1/health", timeout=_TIMEOUT_S)
        health = str(answer.json()["status"])
    except (httpx.HTTPError, ValueError, KeyError):
        health = "UNREACHABLE"
    return PlatformStatus(
        health=health,
        home=str(paths.home),
        pid=running.pid,
        api_url=running.api_url,
        dashboard_url=running.dashboard_url,
    )

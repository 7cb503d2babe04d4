"""How far Serve is with an application's first replica, for those who wait for it."""

from __future__ import annotations

import asyncio
import enum
from typing import Any

from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from mixpeek_ray.api.remembered import RememberedAnswers

# Everybody who waits asks, and Serve's controller lists the whole cluster for each answer.
_TRUST_S = 1.0
_RUNNING = "RUNNING"


class Standing(enum.Enum):
    """What there is of an application."""

    ABSENT = enum.auto()
    # No replica, or none that has a place yet.
    WAITING = enum.auto()
    # A replica has its place and is importing, or loading its model.
    STARTING = enum.auto()
    RUNNING = enum.auto()


class Standings:
    """Asks Serve's controller; used from one event loop."""

    def __init__(self) -> None:
        self._answers = RememberedAnswers[str, Standing](trust_s=_TRUST_S)

    async def of(self, application: str) -> Standing:
        """Return how far the application is."""
        try:
            return await self._answers.get(application, lambda: asyncio.to_thread(_ask, application))
        except (RayError, RayServeException):
            # The controller is being restarted, and what it looks after goes on.
            return Standing.STARTING


def _ask(application: str) -> Standing:
    # `serve.status` tells a replica that waits for a place from one that starts no more than its state does.
    details: dict[str, Any] = _get_global_client().get_serve_details()
    return standing_in(details, application)


def standing_in(details: dict[str, Any], application: str) -> Standing:
    """Return how far an application is by what Serve says of everything."""
    found = details["applications"].get(application)
    if found is None:
        return Standing.ABSENT
    replicas = [replica for deployment in found["deployments"].values() for replica in deployment["replicas"]]
    if any(replica["state"] == _RUNNING for replica in replicas):
        return Standing.RUNNING
    # Serve leaves out what it does not know.
    has_place = any(replica.get("node_id") for replica in replicas)
    return Standing.STARTING if has_place else Standing.WAITING

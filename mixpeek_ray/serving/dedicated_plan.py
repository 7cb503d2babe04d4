"""What has to be started and what taken away, so that Serve runs what the registry says. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mixpeek_ray.servables.base import ServableRef
from mixpeek_ray.serving.placement import APPLICATION_PREFIX, DedicatedModels


@dataclass(frozen=True, kw_only=True)
class Change:
    """Models whose applications are to be started, and the names of applications to delete."""

    start: tuple[ServableRef, ...] = ()
    delete: tuple[str, ...] = ()


def own_applications(applications: Collection[str]) -> frozenset[str]:
    """Return the names of those applications that were made for models."""
    return frozenset(name for name in applications if name.startswith(APPLICATION_PREFIX))


class Plan:
    """Remembers since when an application is not wanted: its last users must have heard before it goes."""

    def __init__(self, *, grace_s: float) -> None:
        """``grace_s``: how long an application stays that no deployed model needs."""
        self._grace_s = grace_s
        self._unwanted_since: dict[str, float] = {}

    def change(self, models: DedicatedModels, applications: Collection[str], now_s: float) -> Change:
        """Return what makes Serve's ``applications`` right; ``now_s`` counts from any fixed moment.

        An application that is being deleted counts as running: it is started again once it is gone.
        """
        unwanted = own_applications(applications) - models.kept
        self._unwanted_since = {name: self._unwanted_since.get(name, now_s) for name in unwanted}
        return Change(
            start=tuple(ref for name, ref in models.deployed.items() if name not in applications),
            delete=tuple(
                sorted(name for name, since in self._unwanted_since.items() if now_s - since >= self._grace_s)
            ),
        )

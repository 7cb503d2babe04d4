"""Applications for the layers below to start, which import Serve only when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixpeek_ray.servables.base import OwnApplication, ServableRef


def build_dedicated(ref: ServableRef, own: OwnApplication) -> Any:
    """Return the Serve application ``own`` of the model ``ref``, ready to deploy."""
    from deployments.dedicated import build

    return build(ref, own)

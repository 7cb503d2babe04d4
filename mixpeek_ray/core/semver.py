"""Which of a model's versions is the latest: by number, never by when it was uploaded."""

from __future__ import annotations

from collections.abc import Iterable

from mixpeek_ray.core.ids import version_key
from mixpeek_ray.core.records import ModelManifest


def newest_first(manifests: Iterable[ModelManifest]) -> list[ModelManifest]:
    """Return versions of one model, the highest first (1.10.0 before 1.9.0)."""
    return sorted(manifests, key=lambda manifest: version_key(manifest.version), reverse=True)


def latest_ids(manifests: Iterable[ModelManifest]) -> frozenset[str]:
    """Return the ids of the highest version of each name; ``manifests``: all of one namespace."""
    latest: dict[str, ModelManifest] = {}
    for manifest in manifests:
        known = latest.get(manifest.name)
        if known is None or version_key(manifest.version) > version_key(known.version):
            latest[manifest.name] = manifest
    return frozenset(manifest.model_id for manifest in latest.values())

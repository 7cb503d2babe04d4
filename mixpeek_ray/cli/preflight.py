"""What must hold on this machine before the platform starts; each check returns one sentence or None."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.core.errors import InvalidCatalogError, ModelNotFoundError
from mixpeek_ray.core.limits import GIB, MIB
from mixpeek_ray.core.settings import Settings

# One small model's upload, its unpacking and Ray's logs.
MIN_FREE_DISK_BYTES = 1 * GIB
# Ray refuses to write objects once a disk is this full.
MAX_DISK_USE = 0.95
# Below this, hardly one model fits.
MIN_OBJECT_STORE_BYTES = 512 * MIB
# Ray's own choice is this share of memory, in /dev/shm.
_RAY_MEMORY_SHARE = 0.3
# Ray wants a little more room than the store's size.
_SHM_SHARE = 0.9
_SHM = Path("/dev/shm")  # noqa: S108  # where the object store lives, not a place for files of ours


def check_port(settings: Settings) -> str | None:
    """Return why the HTTP port cannot be used, or None."""
    try:
        address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(*address[:2]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
            probe.listen()
    except OSError as error:
        return (
            f"Port {settings.port} on {settings.host!a} cannot be used ({error.strerror}): stop what uses it, or "
            f"choose another one, for example MIXPEEK_PORT={min(settings.port + 10, 65535)}."
        )
    return None


def check_disk(paths: RunPaths) -> str | None:
    """Return which disk is too full, or None."""
    for setting, folder in (("MIXPEEK_HOME", paths.home), ("Ray's sessions", paths.scratch)):
        usage = shutil.disk_usage(folder)
        if usage.free < MIN_FREE_DISK_BYTES:
            return (
                f"The disk of {setting} has {usage.free // MIB} MiB free and {MIN_FREE_DISK_BYTES // MIB} MiB are "
                f"needed: free some space below {folder}, or choose another MIXPEEK_HOME."
            )
        if 1 - usage.free / usage.total > MAX_DISK_USE:
            return (
                f"The disk of {setting} is more than {MAX_DISK_USE:.0%} full, where Ray stops writing: free some "
                f"space below {folder}."
            )
    return None


def check_models(settings: Settings) -> str | None:
    """Return what is wrong with the catalog of built-in models, or with the warm models' names, or None."""
    # The supervisor that lives on needs neither YAML nor the catalog.
    from mixpeek_ray.catalog.catalog import packaged_catalog, read_catalog

    try:
        catalog = packaged_catalog() if settings.model_catalog is None else read_catalog(settings.model_catalog)
    except InvalidCatalogError as error:
        return error.message
    for name in settings.warm_model_names:
        try:
            catalog.find(name)
        except ModelNotFoundError:
            return (
                f"MIXPEEK_WARM_MODELS names {name[:80]!a}, which the catalog has not: use names or aliases from it, "
                f"such as {next(iter(catalog))}."
            )
    return None


def plan_object_store(*, wanted_bytes: int | None, memory_bytes: int, shm_free_bytes: int) -> int | str | None:
    """Return the object store's size in bytes, None for Ray's own choice, or why there can be none."""
    room = int(shm_free_bytes * _SHM_SHARE)
    if wanted_bytes is not None and wanted_bytes <= room:
        return wanted_bytes
    if wanted_bytes is not None or room < MIN_OBJECT_STORE_BYTES:
        needed = wanted_bytes or MIN_OBJECT_STORE_BYTES
        return (
            f"{_SHM} has room for {room // MIB} MiB of weights and {needed // MIB} MiB are needed: start the "
            "container with more (docker run --shm-size=4g), or set MIXPEEK_OBJECT_STORE_BYTES to less."
        )
    return None if memory_bytes * _RAY_MEMORY_SHARE <= room else room


def object_store_plan(settings: Settings) -> int | str | None:
    """Return ``plan_object_store`` for this machine."""
    if not _SHM.is_dir():
        return settings.object_store_bytes
    return plan_object_store(
        wanted_bytes=settings.object_store_bytes,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shm_free_bytes=shutil.disk_usage(_SHM).free,
    )

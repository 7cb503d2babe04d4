"""Folders on a node's own disk that its processes share, and no other user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mixpeek_ray.core.settings import Settings


def node_folder_of(settings: Settings, name: str) -> Path:
    """Return the node's folder ``name`` (0700), made if need be: below ``spool_dir``, or the temporary folder."""
    spool = settings.spool_dir or Path(tempfile.gettempdir(), f"mixpeek-spool-{os.getuid()}")
    folder = spool / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        # Another user made a folder of that name in a place that everybody may write to.
        return Path(tempfile.mkdtemp(prefix=f"mixpeek-{name}-"))
    return folder

"""Files that only this user may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_PRIVATE_FILE = 0o600


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user may read (0600), durably, whole or not at all; an existing one is replaced."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

"""What a blob's key may look like, the same on every backend."""

from __future__ import annotations

import re

from mixpeek_ray.core.errors import ValidationError

# ASCII without a leading dot: excludes `..`, hidden files and everything a URL, a shell or a file system reads twice.
# 255 bytes is the longest file name of every POSIX file system.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}", re.ASCII)
# S3 allows 1,024 bytes for a whole key; the rest is left to the store's own prefix.
_MAX_KEY_BYTES = 768


def check_key(key: str) -> str:
    """Return ``key`` if it may name a blob; raise ``ValidationError`` otherwise."""
    if len(key) > _MAX_KEY_BYTES or not all(_PART.fullmatch(part) for part in key.split("/")):
        raise ValidationError(
            f"{key[:80]!a} cannot name a stored object: use at most {_MAX_KEY_BYTES} characters in '/'-separated parts "
            "of letters, digits, '.', '_' and '-', none beginning with '.' or '-'."
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if some key may begin with it; raise ``ValidationError`` otherwise."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix

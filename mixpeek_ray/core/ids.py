"""Names, versions and the ids made of them."""

from __future__ import annotations

import re
import secrets

from mixpeek_ray.core.errors import InvalidNameError, InvalidVersionError

# Letters, digits, `-` and `_`: safe in a URL path, an object key, a Ray actor name and a log line alike.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
# Exactly three numbers without leading zeros: what the wire contract's `^\d+\.\d+\.\d+$` means in practice, and
# what keeps `model_id` reversible (the last three `_` groups are the version).
_VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})", re.ASCII)


def is_valid_name(name: str) -> bool:
    """Tell whether ``name`` may name a model or a namespace."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return ``name`` if it may name a model; raise ``InvalidNameError`` otherwise."""
    if not is_valid_name(name):
        raise InvalidNameError(
            f"{_shown(name)} is not a model name: use 1 to 64 letters, digits, '-' or '_', "
            "beginning with a letter or digit.",
            field="name",
        )
    return name


def check_version(version: str) -> str:
    """Return ``version`` if it is MAJOR.MINOR.PATCH; raise ``InvalidVersionError`` otherwise."""
    if _VERSION.fullmatch(version) is None:
        raise InvalidVersionError(
            f"{_shown(version)} is not a version: use three numbers such as 1.0.0, without leading zeros.",
            field="version",
        )
    return version


def model_id(name: str, version: str) -> str:
    """Return the id of a checked name and version: ``my-model`` ``1.0.0`` → ``my-model_1_0_0``."""
    return f"{name}_{version.replace('.', '_')}"


def version_key(version: str) -> tuple[int, ...]:
    """Return a sort key that orders versions by number (1.10.0 after 1.9.0)."""
    return tuple(int(part) for part in version.split("."))


def new_id(prefix: str) -> str:
    """Return a fresh unguessable id such as ``ns_4f2a09c1d7e35b68`` (64 random bits)."""
    return f"{prefix}_{secrets.token_hex(8)}"


def new_upload_id() -> str:
    """Return a fresh id of a resumable upload (128 random bits: nobody comes across someone else's)."""
    return f"upl_{secrets.token_hex(16)}"


def _shown(value: str) -> str:
    # ascii() keeps control and bidirectional characters out of the answer and the log.
    return ascii(value if len(value) <= 80 else value[:77] + "...")

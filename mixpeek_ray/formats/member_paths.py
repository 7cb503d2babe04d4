"""Names of archive members: which are safe on every file system, and which collide."""

from __future__ import annotations

import re
import unicodedata

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import DuplicateEntryError, UnsafePathError

_DRIVE = re.compile(r"[A-Za-z]:")
# Control, format (bidirectional marks, zero-width characters), surrogate, line and paragraph separators: a name with
# one is not what it looks like.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

Parts = tuple[str, ...]


def parse_path(raw: bytes) -> Parts:
    """Return the components of a member's stored name; () for the archive's own root (``./``).

    Raises ``UnsafePathError`` unless the name is relative, short, NFC-normalised UTF-8 without ``..``, backslash,
    drive or invisible character.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UnsafePathError(f"The member name {raw[:80]!a} is not UTF-8.") from None
    trimmed = text.removeprefix("./").removesuffix("/")
    if trimmed in ("", ".") and text.startswith("."):
        return ()
    parts = tuple(trimmed.split("/"))
    problem = _problem(raw, trimmed, parts)
    if problem is not None:
        shown = ascii(text if len(text) <= 80 else text[:77] + "...")
        raise UnsafePathError(f"The member name {shown} {problem}: pack the files under plain relative names.")
    return parts


def _problem(raw: bytes, text: str, parts: Parts) -> str | None:
    if len(raw) > limits.MAX_PATH_BYTES or len(parts) > limits.MAX_PATH_DEPTH:
        return f"is longer than {limits.MAX_PATH_BYTES} bytes or deeper than {limits.MAX_PATH_DEPTH} folders"
    if any(len(part.encode()) > limits.MAX_PATH_PART_BYTES for part in parts):
        return f"has a part longer than {limits.MAX_PATH_PART_BYTES} bytes"
    if "\\" in text or _DRIVE.match(text) or any(part in ("", ".", "..") for part in parts):
        return "is absolute, or holds '..', an empty part, a backslash or a drive"
    if any(unicodedata.category(character) in _UNSAFE_CATEGORIES for character in text):
        return "holds a control or invisible character"
    if not unicodedata.is_normalized("NFC", text):
        return "is not in Unicode normal form C"
    return None


class PathSet:
    """The names seen so far in one archive; no two may fall together on a case-insensitive file system."""

    def __init__(self) -> None:
        # Case-folded path → the path as first spelled, for files and for every folder above them.
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}
        self._named_folders: set[str] = set()

    def add_file(self, parts: Parts) -> None:
        """Record a file; raise ``DuplicateEntryError`` when its name is taken."""
        self._add_folders(parts[:-1])
        folded = _fold(parts)
        if folded in self._files or folded in self._folders:
            _refuse(parts)
        self._files.add(folded)

    def add_folder(self, parts: Parts) -> None:
        """Record a folder; raise ``DuplicateEntryError`` when the archive names it twice or its name is taken."""
        self._add_folders(parts)
        folded = _fold(parts)
        if folded in self._named_folders:
            _refuse(parts)
        self._named_folders.add(folded)

    def _add_folders(self, parts: Parts) -> None:
        for depth in range(1, len(parts) + 1):
            path, folded = "/".join(parts[:depth]), _fold(parts[:depth])
            if folded in self._files or self._folders.setdefault(folded, path) != path:
                _refuse(parts[:depth])


def _fold(parts: Parts) -> str:
    return unicodedata.normalize("NFC", "/".join(parts).casefold())


def _refuse(parts: Parts) -> None:
    raise DuplicateEntryError(
        f"The archive names {'/'.join(parts)[:80]!a} twice (upper and lower case count as the same name)."
    )

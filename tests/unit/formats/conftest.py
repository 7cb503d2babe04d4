"""Builders of archives and weight files, good and hostile."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

BuildTgz = Callable[..., bytes]


@pytest.fixture
def build_tgz() -> Callable[..., bytes]:
    """Return a function that packs {path: content} with Python's tarfile."""

    def build(files: Mapping[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", format=tar_format, compresslevel=1) as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                # A fraction makes PAX_FORMAT write an extended header, as packing real files does.
                member.mtime = 1_700_000_000.25
                archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    return build


@pytest.fixture
def torch_file() -> Callable[..., bytes]:
    """Return a function that saves an object with ``torch.save``."""

    def save(value: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    return save


class TouchCanary:
    """Unpickling one makes the file at ``path``: proof that a pickle ran."""

    def __init__(self, path: object) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


@pytest.fixture
def touch_canary() -> type[TouchCanary]:
    """Return the class of hostile objects."""
    return TouchCanary

"""Names of archive members (hardening.md row 12)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpeek_ray.core.errors import DuplicateEntryError, UnsafePathError
from mixpeek_ray.formats.member_paths import PathSet, parse_path


@pytest.mark.parametrize(
    ("stored", "parts"),
    [
        ("model.pt", ("model.pt",)),
        ("./model.pt", ("model.pt",)),
        ("./a/b/model.pt", ("a", "b", "model.pt")),
        ("folder/", ("folder",)),
        ("./", ()),
        (".", ()),
        ("._model.pt", ("._model.pt",)),
        ("..model", ("..model",)),
        ("modèle/重み.pt", ("modèle", "重み.pt")),
    ],
)
def test_plain_names_are_split(stored: str, parts: tuple[str, ...]) -> None:
    assert parse_path(stored.encode()) == parts


@pytest.mark.parametrize(
    "stored",
    [
        "", "/", "//", "/etc/passwd", "../x", "a/../x", "a/..", "..", "a//b", "a/./b", "././a", ".//a", "a//",
        "C:\\x", "C:x", "a\\b", "\\\\server\\share", "a\nb", "a\x00b", "a\x7fb", "a\u202eb", "a\u200bb", "a\u2028b",
        "e\u0301", "x" * 256, "é" * 128, "/".join("a" * 17), "/".join(["x" * 200] * 6),
    ],
)  # fmt: skip
def test_other_names_are_refused(stored: str) -> None:
    with pytest.raises(UnsafePathError) as caught:
        parse_path(stored.encode())
    assert caught.value.message.isascii()


@pytest.mark.parametrize("stored", [b"\xff", b"a\xed\xa0\x80", b"\xc0\xae\xc0\xae/x"])
def test_only_utf8_is_read(stored: bytes) -> None:
    with pytest.raises(UnsafePathError, match="UTF-8"):
        parse_path(stored)


@given(st.binary(max_size=64) | st.text(alphabet="./\\:aA~\u0301", max_size=12).map(str.encode))
def test_whatever_is_accepted_stays_inside(stored: bytes) -> None:
    try:
        parts = parse_path(stored)
    except UnsafePathError:
        return
    assert all(part not in ("", ".", "..") and not {"/", "\\", "\0"} & set(part) for part in parts)


@pytest.mark.parametrize(
    "names",
    [["a", "a"], ["a", "A"], ["a/b", "a"], ["a", "a/b"], ["d/x", "D/y"], ["straße", "STRASSE"], ["a/", "a/"],
     ["a/", "A/"], ["a/", "a"], ["a", "a/"]],
)  # fmt: skip
def test_names_that_fall_together_are_refused(names: list[str]) -> None:
    with pytest.raises(DuplicateEntryError):
        _add_all(names)


def test_a_folder_may_be_named_before_or_after_what_it_holds() -> None:
    _add_all(["./", "a/", "a/x", "b/x", "b/", "a/y"])


def _add_all(names: list[str]) -> None:
    paths = PathSet()
    for name in names:
        add = paths.add_folder if name.endswith("/") else paths.add_file
        add(parse_path(name.encode()))

"""A strict streaming reader of the multipart form that carries an archive."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import InvalidMultipartError

FILE_PART = "file"
# RFC 2046, 5.1.1: 1 to 70 of these, the last one no space.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_HOW = "Send multipart/form-data, as 'curl -F file=@model.tar.gz -F name=... -F version=...' does."


class FileSink(Protocol):
    """Where the bytes of the file part go."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes, a view that holds good until the reader is fed again."""


@dataclass(kw_only=True)
class _Part:
    # None: the file part, whose bytes are not kept.
    text: bytearray | None
    name: str


class MultipartReader:
    """Feeds fields to ``on_field`` as each ends and file bytes to ``file`` as they arrive, in whatever order they come.

    Keeps one field (at most ``MAX_FORM_FIELD_BYTES``) in memory, never the file. Not thread-safe; blocks as long as
    ``on_field`` and ``file`` do. Every method raises ``InvalidMultipartError``.
    """

    def __init__(self, content_type: str, *, on_field: Callable[[str, str], None], file: FileSink) -> None:
        self._on_field = on_field
        self._file = file
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition: bytes | None = None
        self._part: _Part | None = None
        self._parts_seen = 0
        self._file_seen = False
        self._ended = False
        # Its scan is bytes.find: 6.7 GB/s over random bytes in 64 KiB pieces, four times the speed of SHA-256.
        self._parser = MultipartParser(
            boundary_of(content_type),
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes | bytearray) -> None:
        """Parse the next piece of the body, which must stay as it is until the views given to ``file`` are used."""
        try:
            self._parser.write(data)  # type: ignore[arg-type]  # it only searches and slices
        except FormParserError:
            raise InvalidMultipartError(f"The body is not the form its Content-Type announces. {_HOW}") from None

    def finish(self) -> None:
        """Check that the body was a whole form with a file in it."""
        if not self._ended:
            raise InvalidMultipartError(f"The form ends before its last boundary. {_HOW}")
        if not self._file_seen:
            raise InvalidMultipartError(f"The form has no part named '{FILE_PART}'. {_HOW}")

    def _begin_part(self) -> None:
        self._parts_seen += 1
        if self._parts_seen > limits.MAX_FORM_FIELDS:
            raise InvalidMultipartError(f"The form has more than {limits.MAX_FORM_FIELDS} parts.")
        self._disposition = None

    def _end_header(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header((self._disposition or b"").decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise InvalidMultipartError(f"A part of the form has no name. {_HOW}")
        name = _text(options[b"name"])
        has_file_name = b"filename" in options
        if name == FILE_PART:
            self._begin_file(has_file_name=has_file_name)
        elif has_file_name:
            raise InvalidMultipartError(f"The file must be in the part '{FILE_PART}', not {name[:80]!a}. {_HOW}")
        else:
            self._part = _Part(name=name, text=bytearray())

    def _begin_file(self, *, has_file_name: bool) -> None:
        if not has_file_name:
            raise InvalidMultipartError(
                f"The part '{FILE_PART}' is text, not a file: with curl, write -F {FILE_PART}=@model.tar.gz with the @."
            )
        if self._file_seen:
            raise InvalidMultipartError(f"The form has two parts named '{FILE_PART}': send one archive an upload.")
        self._file_seen = True
        self._part = _Part(name=FILE_PART, text=None)

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._part is None:
            return
        if self._part.text is None:
            self._file.write(memoryview(data)[start:end])
            return
        if len(self._part.text) + end - start > limits.MAX_FORM_FIELD_BYTES:
            raise InvalidMultipartError(
                f"The field {self._part.name[:80]!a} is longer than {limits.MAX_FORM_FIELD_BYTES} bytes."
            )
        self._part.text += data[start:end]

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is not None and part.text is not None:
            self._on_field(part.name, _text(bytes(part.text)))

    def _end(self) -> None:
        self._ended = True


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a Content-Type names. Raises ``InvalidMultipartError``."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or _BOUNDARY.fullmatch(boundary) is None:
        raise InvalidMultipartError(f"The Content-Type is not multipart/form-data with a boundary. {_HOW}")
    return boundary


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidMultipartError("A name or value in the form is not UTF-8 text.") from None

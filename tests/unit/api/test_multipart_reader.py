"""The form reader: any order, any chunking, and nothing that is not a form."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpeek_ray.api.multipart import MultipartReader, boundary_of
from mixpeek_ray.core.errors import InvalidMultipartError

BOUNDARY = "frontier"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
FILE = b'Content-Disposition: form-data; name="file"; filename="m.tar.gz"\r\nContent-Type: application/gzip\r\n\r\n'


class Sink:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: memoryview) -> None:
        self.data += data


def _read(*pieces: bytes, content_type: str = CONTENT_TYPE) -> tuple[dict[str, str], bytes]:
    fields: dict[str, str] = {}
    sink = Sink()
    reader = MultipartReader(content_type, on_field=fields.__setitem__, file=sink)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return fields, bytes(sink.data)


def _field(name: str, value: str = "v") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def _form(*parts: bytes) -> bytes:
    return b"".join(b"--frontier\r\n" + part + b"\r\n" for part in parts) + b"--frontier--\r\n"


# Bytes out of which near-boundaries are made.
NEARLY = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"\r\n--", b"frontie", b"\r\n--frontie", b"x", b"\0"])).map(
    b"".join
)


@given(NEARLY, st.lists(st.integers(1, 40), min_size=1), st.booleans())
def test_any_chunking_reads_the_same(archive, sizes, file_first):
    parts = [FILE + archive, _field("name", "m"), _field("version", "1.0.0")]
    body = _form(*(parts if file_first else reversed(parts)))
    pieces, at, turn = [], 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        pieces.append(body[at : at + size])
        at, turn = at + size, turn + 1
    assert _read(*pieces) == ({"name": "m", "version": "1.0.0"}, archive)


def test_what_httpx_sends():
    request = httpx.Request("POST", "http://x", data={"name": "m \u00e9"}, files={"file": ("m\u00e9.tar.gz", b"bytes")})
    assert _read(request.read(), content_type=request.headers["content-type"]) == ({"name": "m \u00e9"}, b"bytes")


def test_what_curl_sends():
    boundary = "------------------------d74496d66958873e"
    body = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file"; filename="my_model.tar.gz"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
        f"weights\r\n--{boundary}\r\n"
        f'Content-Disposition: form-data; name="name"\r\n\r\nm\r\n--{boundary}--\r\n'
    )
    content_type = f"multipart/form-data; boundary={boundary}"
    assert _read(body.encode(), content_type=content_type) == ({"name": "m"}, b"weights")


def test_a_preamble_of_line_breaks_and_an_epilogue_are_ignored():
    assert _read(b"\r\n" + _form(FILE + b"x") + b"whatever") == ({}, b"x")


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"", "last boundary"),
        (b"garbage", "not the form"),
        (b'{"name": "m"}', "not the form"),
        (_form(), "no part named 'file'"),
        (_form(_field("name")), "no part named 'file'"),
        (_form(FILE + b"a", FILE + b"b"), "two parts"),
        (_form(FILE + b"a")[:-4], "last boundary"),
        (_form(FILE + b"a").replace(b"\r\n", b"\n"), "not the form"),
        (_form(b"Content-Disposition: form-data\r\n\r\nv"), "no name"),
        (_form(b'Content-Disposition: attachment; name="a"\r\n\r\nv'), "no name"),
        (_form(b"\r\nv"), "no name"),
        (_form(b"bad header\r\n\r\nv"), "not the form"),
        (_form(b"X-Long: " + b"x" * 100_000 + b"\r\n\r\nv"), "not the form"),
        (_form(b"".join(b"X-%d: y\r\n" % i for i in range(100)) + b"\r\nv"), "not the form"),
        (_form(*[_field(f"f{i}") for i in range(1_001)], FILE), "more than 32 parts"),
        (_form(_field("name", "x" * 1_000_000), FILE), "longer than 4096 bytes"),
        (_form(_field("file", "@m.tar.gz")), "with the @"),
        (_form(FILE.replace(b'"file"', b'"model"') + b"x"), "must be in the part 'file'"),
        (_form(FILE + b"x", b'Content-Disposition: form-data; name="n"\r\n\r\n\xff'), "not UTF-8"),
    ],
)
def test_what_is_no_form(body, hint):
    with pytest.raises(InvalidMultipartError, match=hint) as caught:
        _read(body)
    assert caught.value.message.isascii()


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=x",
        "multipart/form-data; boundary=" + "x" * 71,
        'multipart/form-data; boundary="a\r\nb"',
        "multipart/form-data; boundary=\u00e9",
    ],
)
def test_content_types_without_a_usable_boundary(content_type):
    with pytest.raises(InvalidMultipartError, match="Content-Type"):
        boundary_of(content_type)


@pytest.mark.parametrize("boundary", ["x", "x" * 70, "--=_Part 1", "----WebKitFormBoundary7MA4YWxk"])
def test_boundaries(boundary):
    assert boundary_of(f'multipart/form-data; boundary="{boundary}"') == boundary.encode()


def test_a_field_is_handed_over_when_it_ends_not_when_the_form_does():
    seen: list[str] = []
    reader = MultipartReader(CONTENT_TYPE, on_field=lambda name, value: seen.append(f"{name}={value}"), file=Sink())
    reader.feed(b"--frontier\r\n" + _field("name", "m") + b"\r\n--frontier\r\n" + FILE + b"the file begins")
    assert seen == ["name=m"]

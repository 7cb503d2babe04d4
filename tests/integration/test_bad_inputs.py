"""hardening.md's bad inputs against the real platform: the answer each gets, and that nothing of it is left."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.integration.conftest import Platform, eventually
from tests.integration.models import archive_of, deployed, tar_gz, upload
from tests.integration.test_faults import stored_files


class Canary:
    """Leaves a file when it is unpickled by anything that runs what a pickle says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """Return an archive of one empty member with this name and type."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.GNU_FORMAT) as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        archive.addfile(entry, io.BytesIO(b""))
    return packed.getvalue()


def safetensors_file(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    """Return a safetensors archive with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return tar_gz({"model.safetensors": struct.pack("<Q", len(text)) + text + data})


def whole_module() -> bytes:
    return archive_of(torch.nn.Linear(2, 2))  # type: ignore[arg-type]  # that is the point


GOOD = archive_of({"w": torch.ones(2)})
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

ARCHIVES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "an empty file": (lambda: b"", "pytorch", "empty_archive"),
    "a zip": (lambda: b"PK\x03\x04" + bytes(100), "pytorch", "not_tar_gz"),
    "plain text": (lambda: b"hello", "pytorch", "not_tar_gz"),
    "a truncated archive": (lambda: GOOD[: len(GOOD) // 2], "pytorch", "corrupt_archive"),
    "a wrong checksum": (lambda: GOOD[:-8] + bytes([GOOD[-8] ^ 1]) + GOOD[-7:], "pytorch", "corrupt_archive"),
    "a second stream": (lambda: GOOD + GOOD, "pytorch", "corrupt_archive"),
    "gzip of no tar": (lambda: gzip.compress(bytes(range(256)) * 16), "pytorch", "not_tar_gz"),
    "a path upwards": (lambda: member("../x"), "pytorch", "unsafe_path"),
    "an absolute path": (lambda: member("/etc/x"), "pytorch", "unsafe_path"),
    "a drive": (lambda: member("C:\\x"), "pytorch", "unsafe_path"),
    "a symlink": (lambda: member("x", tarfile.SYMTYPE, "/etc/passwd"), "pytorch", "unsafe_entry"),
    "a hard link": (lambda: member("x", tarfile.LNKTYPE, "y"), "pytorch", "unsafe_entry"),
    "a fifo": (lambda: member("x", tarfile.FIFOTYPE), "pytorch", "unsafe_entry"),
    "a device": (lambda: member("x", tarfile.CHRTYPE), "pytorch", "unsafe_entry"),
    "no weights": (lambda: tar_gz({"readme.txt": b"hello"}), "pytorch", "format_mismatch"),
    "another format": (lambda: GOOD, "safetensors", "format_mismatch"),
    "a whole module": (whole_module, "pytorch", "unsafe_pickle"),
    "a header without end": (lambda: safetensors_file(b"{"), "safetensors", "invalid_weights"),
    "overlapping tensors": (
        lambda: safetensors_file({"a": ENTRY, "b": ENTRY}, bytes(8)),
        "safetensors",
        "invalid_weights",
    ),
    "trailing bytes": (lambda: safetensors_file({"a": ENTRY}, bytes(9)), "safetensors", "invalid_weights"),
    "a duplicate key": (
        lambda: safetensors_file(f'{{"a":{json.dumps(ENTRY)},"a":{json.dumps(ENTRY)}}}'.encode(), bytes(8)),
        "safetensors",
        "invalid_weights",
    ),
    "an unknown dtype": (
        lambda: safetensors_file({"a": ENTRY | {"dtype": "F33"}}, bytes(8)),
        "safetensors",
        "invalid_weights",
    ),
}


def refusal(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is the error envelope with this status and code; return the error."""
    body = answer.json()
    assert (answer.status_code, body["error"]["code"]) == (status, code), answer.text
    assert body["success"] is False
    assert body["status"] == status
    error: dict[str, Any] = body["error"]
    assert "/tmp" not in error["message"]
    assert "Traceback" not in answer.text
    return error


@pytest.mark.parametrize(("make", "model_format", "code"), ARCHIVES.values(), ids=ARCHIVES)
def test_a_bad_archive_is_refused_and_leaves_nothing(
    platform: Platform,
    http: httpx.Client,
    namespace: str,
    make: Callable[[], bytes],
    model_format: str,
    code: str,
) -> None:
    before = stored_files(platform)
    error = refusal(upload(http, namespace, make(), model_format=model_format), 422, code)
    assert error["details"]["validation_errors"]
    assert stored_files(platform) - before <= {f"namespaces/{namespace}/namespace.json"}
    assert http.get(f"/v1/namespaces/{namespace}/models").json()["total"] == 0


def test_a_pickle_runs_nothing(platform: Platform, http: httpx.Client, namespace: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    archive = archive_of({"w": Canary(canary)})
    refusal(upload(http, namespace, archive), 422, "unsafe_pickle")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": "../x"}, "invalid_name"),
        ({"name": "a/b"}, "invalid_name"),
        ({"name": "x" * 300}, "invalid_name"),
        ({"name": "\u202eevil"}, "invalid_name"),
        ({"version": "latest"}, "invalid_version"),
        ({"version": "1..0"}, "invalid_version"),
        ({"version": "1.0.0/../"}, "invalid_version"),
        ({"model_format": "tensorflow"}, "unsupported_format"),
        ({"memory_gb": "-1"}, "invalid_resources"),
        ({"memory_gb": "nan"}, "invalid_resources"),
        ({"memory_gb": "inf"}, "invalid_resources"),
        ({"memory_gb": "1e9"}, "invalid_resources"),
        ({"num_gpus": "0.5"}, "invalid_resources"),
        ({"num_gpus": "9"}, "invalid_resources"),
    ],
)
def test_a_bad_field_is_refused(http: httpx.Client, namespace: str, fields: dict[str, str], code: str) -> None:
    refusal(upload(http, namespace, GOOD, **fields), 422, code)  # type: ignore[arg-type]


def test_names_that_look_alike_once_joined_stay_apart(http: httpx.Client, namespace: str) -> None:
    first = upload(http, namespace, GOOD, name="a_1", version="0.0.1").json()["model_id"]
    second = upload(http, namespace, GOOD, name="a", version="1.0.0").json()["model_id"]
    assert first != second


def test_a_version_is_taken_once_and_the_same_bytes_are_the_same_version(http: httpx.Client, namespace: str) -> None:
    first = upload(http, namespace, GOOD)
    again = upload(http, namespace, GOOD)
    assert (again.status_code, again.json()["model_id"]) == (200, first.json()["model_id"])
    refusal(upload(http, namespace, archive_of({"w": torch.zeros(2)})), 409, "version_exists")


def test_the_51st_model_is_refused(http: httpx.Client, namespace: str) -> None:
    for number in range(50):
        assert upload(http, namespace, GOOD, version=f"1.0.{number}").status_code == 200
    refusal(upload(http, namespace, GOOD, version="2.0.0"), 409, "quota_exceeded")
    assert http.delete(f"/v1/namespaces/{namespace}/models/model_1_0_0").status_code == 200
    assert upload(http, namespace, GOOD, version="2.0.0").status_code == 200


def test_a_deploy_of_nothing_or_of_too_much_says_so(http: httpx.Client, namespace: str) -> None:
    upload(http, namespace, GOOD, name="anything")
    refusal(http.post(f"/v1/namespaces/{namespace}/models/nope_1_0_0/deploy"), 404, "model_not_found")
    for name, request in {"gpu": {"num_gpus": "8"}, "cpu": {"num_cpus": "64"}, "memory": {"memory_gb": "999"}}.items():
        model_id = upload(http, namespace, GOOD, name=name, **request).json()["model_id"]
        path = f"/v1/namespaces/{namespace}/models/{model_id}"
        refusal(http.post(f"{path}/deploy"), 507, "insufficient_capacity")
        assert http.get(path).json()["model"]["deployment_status"] == "not_deployed"


# Other people's namespaces, tiers and roles


@pytest.fixture(scope="module")
def keys(platform: Platform) -> dict[str, str]:
    """Keys of other organisations, made as an operator makes them."""

    def create(*arguments: str) -> str:
        done = platform.command("keys", "create", *arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return str(json.loads(done.stdout)["api_key"])

    return {
        "stranger": create("--organization", "stranger", "--tier", "enterprise", "--role", "admin"),
        "free": create("--organization", "small", "--tier", "free", "--role", "admin"),
        "reader": create("--organization", "development", "--role", "read"),
    }


def routes(namespace: str, model_id: str) -> list[tuple[str, str]]:
    models = f"/v1/namespaces/{namespace}/models"
    one = f"{models}/{model_id}"
    return [
        ("GET", models),
        ("POST", models),
        ("GET", one),
        ("DELETE", one),
        ("POST", f"{one}/deploy"),
        ("POST", f"{one}/undeploy"),
    ]


def test_a_foreign_namespace_looks_like_none_on_every_route(
    platform: Platform, http: httpx.Client, namespace: str, keys: dict[str, str]
) -> None:
    model_id = deployed(http, namespace, {"w": torch.ones(2)})
    with platform.client(keys["stranger"]) as stranger:
        for method, path in routes(namespace, model_id):
            foreign = refusal(stranger.request(method, path, content=b""), 404, "namespace_not_found")
            none = refusal(
                stranger.request(method, path.replace(namespace, "ns_of_nobody"), content=b""),
                404,
                "namespace_not_found",
            )
            assert foreign["message"].replace(namespace, "ns_of_nobody") == none["message"]
        assert stranger.get("/v1/namespaces").json()["total"] == 0
    assert http.get(f"/v1/namespaces/{namespace}/models/{model_id}").status_code == 200


def test_custom_models_need_the_enterprise_tier(platform: Platform, keys: dict[str, str]) -> None:
    with platform.client(keys["free"]) as client:
        namespace = client.post("/v1/namespaces", json={"namespace_name": "mine"}).json()["namespace_id"]
        error = refusal(upload(client, namespace, GOOD), 403, "tier_required")
    assert "Custom models require Enterprise tier" in error["message"]


def test_a_reading_key_writes_nothing(platform: Platform, keys: dict[str, str], namespace: str) -> None:
    with platform.client(keys["reader"]) as reader:
        refusal(upload(reader, namespace, GOOD), 403, "forbidden")
        assert reader.get("/v1/namespaces").status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "unauthenticated"),
        ({"Authorization": "Bearer nonsense"}, "invalid_api_key"),
        ({"Authorization": "Bearer sk_" + "A" * 43}, "invalid_api_key"),
    ],
)
def test_without_a_good_key_every_route_says_401(
    platform: Platform, namespace: str, headers: dict[str, str], code: str
) -> None:
    with httpx.Client(base_url=platform.url, headers=headers) as stranger:
        for method, path in routes(namespace, "model_1_0_0"):
            refusal(stranger.request(method, path), 401, code)


def test_a_revoked_key_is_refused_within_seconds(platform: Platform) -> None:
    created = json.loads(platform.command("keys", "create", "--role", "read", "--json").stdout)
    with platform.client(created["api_key"]) as client:
        assert client.get("/v1/whoami").status_code == 200
        assert platform.command("keys", "revoke", created["key_id"]).returncode == 0
        eventually(lambda: client.get("/v1/whoami").status_code == 401, timeout_s=5, what="the refusal")


def test_a_body_that_may_not_come_is_answered_before_it_is_read(platform: Platform, namespace: str) -> None:
    """Rows 4 and 25: neither 11 GB nor a stranger's gigabyte is read before it is refused."""
    head = (
        f"POST /v1/namespaces/{namespace}/models HTTP/1.1\r\nHost: t\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\n"
    )
    assert b"413" in first_line(platform, f"{head}Authorization: Bearer {platform.api_key}\r\n", 11 * 1024**3)
    assert b"401" in first_line(platform, head, 1024**3)


def first_line(platform: Platform, head: str, content_length: int) -> bytes:
    """Send headers that announce a body, and none of it; return the answer's first line."""
    import socket

    with socket.create_connection(("127.0.0.1", platform.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {content_length}\r\n\r\n".encode())
        return connection.makefile("rb").readline()


def test_serves_own_headers_lift_no_limit(platform: Platform, http: httpx.Client, namespace: str) -> None:
    for headers in (
        {"x-request-timeout-seconds": "-1"},
        {"x-request-timeout-seconds": "1e9"},
        {"x-request-timeout-seconds": "0.000001"},
        {"x-request-disconnect-disabled": "?1"},
    ):
        answer = http.get("/v1/whoami", headers=headers)
        assert answer.status_code == 200, (headers, answer.text)
        # A connection of its own: what is refused before its body was read ends the connection.
        with platform.client() as other:
            refused = other.post("/v1/namespaces", headers=headers, content=b"x" * (2 * 1024**2))
        assert refused.status_code == 413
    assert http.get("/v1/health").json()["status"] == "OK"


def test_unknown_paths_and_methods_get_the_envelope(http: httpx.Client, namespace: str) -> None:
    refusal(http.get("/v1/nothing/here"), 404, "not_found")
    refusal(http.put(f"/v1/namespaces/{namespace}/models"), 405, "method_not_allowed")


@pytest.mark.parametrize("sent", ["my-request-1", None])
def test_a_request_has_one_id(http: httpx.Client, sent: str | None) -> None:
    answer = http.get("/v1/whoami", headers={"X-Request-Id": sent} if sent else {})
    (answered,) = answer.headers.get_list("x-request-id")
    assert answered == (sent or answered)

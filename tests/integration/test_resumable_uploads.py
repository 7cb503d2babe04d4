"""Uploads that come in parts, over real HTTP, with processes dying between the parts; and the README's own lines."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.integration.conftest import Platform, eventually
from tests.integration.models import archive_of, deploy, tar_gz, upload
from tests.integration.processes import is_gone, kill

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = "ray::ModelRegistry"
GATEWAY = "ray::ServeReplica:gateway"
PART_BYTES = 300_000

pytestmark = pytest.mark.usefixtures("whole_afterwards")


@pytest.fixture
def archive() -> bytes:
    """Some 4 MB that do not compress, so that there are more than ten parts."""
    return archive_of({"w": torch.rand(1000, 1000)})


@pytest.fixture
def parts(archive: bytes) -> dict[int, bytes]:
    """The archive cut up, by part number."""
    starts = range(0, len(archive), PART_BYTES)
    return {number: archive[start : start + PART_BYTES] for number, start in enumerate(starts, start=1)}


def create(http: httpx.Client, namespace: str, **fields: Any) -> dict[str, Any]:
    """Open an upload; return the answer's body."""
    answer = http.post(
        f"/v1/namespaces/{namespace}/models/uploads",
        json={
            "name": "model",
            "version": "1.0.0",
            "model_format": "pytorch",
            "resource_requirements": {"memory": 100 * 1024**2},
            **fields,
        },
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def digest(data: bytes) -> dict[str, str]:
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


def send(http: httpx.Client, upload_id: str, number: int, data: bytes) -> httpx.Response:
    return http.put(f"/v1/models/uploads/{upload_id}/parts/{number}", content=data, headers=digest(data))


def send_until_kept(http: httpx.Client, upload_id: str, number: int, data: bytes) -> None:
    """Send a part as a client does that knows how to retry."""

    eventually(lambda: send(http, upload_id, number, data).status_code == 200, what=f"part {number}")


def arrived(http: httpx.Client, upload_id: str) -> dict[str, Any]:
    def found() -> Any:
        answer = http.get(f"/v1/models/uploads/{upload_id}")
        return answer.status_code == 200 and answer.json()["upload"]

    result: dict[str, Any] = eventually(found, what="the upload")
    return result


def confirm(http: httpx.Client, upload_id: str, **said: Any) -> httpx.Response:
    return http.post(f"/v1/models/uploads/{upload_id}/confirm", json=said)


def stored(platform: Platform) -> set[str]:
    """Return every blob of the store and every partial one, records of the accounts aside."""
    store = platform.home / "store"
    return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file() and "auth" not in path.parts}


def test_parts_in_any_order_and_again_make_a_model_that_deploys(
    platform: Platform, http: httpx.Client, namespace: str, archive: bytes, parts: dict[int, bytes]
) -> None:
    before = stored(platform)
    sha256 = hashlib.sha256(archive).hexdigest()
    upload_id = create(http, namespace, file_size_bytes=len(archive), sha256=sha256)["upload_id"]
    send(http, upload_id, 2, b"not the second part").raise_for_status()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: send(http, upload_id, number, parts[number]), reversed(parts)))
    assert {answer.status_code for answer in answers} == {200}
    wrong = http.put(f"/v1/models/uploads/{upload_id}/parts/1", content=parts[2], headers=digest(parts[1]))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "digest_mismatch")
    confirmed = confirm(http, upload_id, file_size_bytes=len(archive), etag=sha256)

    assert confirmed.status_code == 200, confirmed.text
    assert confirmed.json()["validation_status"] == "passed"
    assert confirmed.json()["model_id"] == "model_1_0_0"
    assert confirm(http, upload_id).json() == confirmed.json()
    deploy(http, namespace, "model_1_0_0")
    made = stored(platform) - before
    assert {name for name in made if name.startswith(("uploads", ".partial"))} == set()
    assert {name for name in made if upload_id in name} == {f"resumable/{upload_id}/upload.json"}
    same = upload(http, namespace, archive)
    assert (same.status_code, same.json()["model_id"]) == (200, "model_1_0_0")


def test_missing_parts_are_named_and_an_abort_leaves_nothing(
    platform: Platform, http: httpx.Client, namespace: str, parts: dict[int, bytes]
) -> None:
    upload_id = create(http, namespace)["upload_id"]
    send(http, upload_id, 3, parts[3]).raise_for_status()
    refused = confirm(http, upload_id)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "upload_incomplete")
    assert refused.json()["error"]["details"]["missing_parts"] == [1, 2]
    assert http.delete(f"/v1/models/uploads/{upload_id}").status_code == 200
    assert http.get(f"/v1/models/uploads/{upload_id}").status_code == 404
    assert not any(upload_id in name for name in stored(platform))


def test_a_dead_gateway_and_a_dead_registry_between_parts_lose_nothing(
    platform: Platform, http: httpx.Client, namespace: str, archive: bytes, parts: dict[int, bytes]
) -> None:
    upload_id = create(http, namespace)["upload_id"]
    half = sorted(parts)[: len(parts) // 2]
    for number in half:
        send(http, upload_id, number, parts[number]).raise_for_status()
    killed = kill(platform, GATEWAY)
    eventually(lambda: is_gone(killed), what="the gateway's end")
    assert [part["number"] for part in arrived(http, upload_id)["parts"]] == half
    killed = kill(platform, REGISTRY)
    eventually(lambda: is_gone(killed), what="the registry's end")
    known = {part["number"]: part["sha256"] for part in arrived(http, upload_id)["parts"]}
    assert known == {number: hashlib.sha256(parts[number]).hexdigest() for number in half}
    for number in parts.keys() - known.keys():
        send_until_kept(http, upload_id, number, parts[number])
    confirmed = confirm(http, upload_id, etag=hashlib.sha256(archive).hexdigest())
    assert confirmed.json()["success"] is True, confirmed.text
    deploy(http, namespace, "model_1_0_0")


def test_a_gateway_that_dies_within_a_part_leaves_nothing_of_it(
    platform: Platform, http: httpx.Client, namespace: str, parts: dict[int, bytes]
) -> None:
    created = create(http, namespace)
    upload_id = created["upload_id"]
    killed: list[int] = []

    def body() -> Iterator[bytes]:
        yield parts[1]
        killed.append(kill(platform, GATEWAY))
        eventually(lambda: is_gone(killed[0]), what="the gateway's end")
        yield parts[2]

    try:
        answer = http.put(f"/v1/models/uploads/{upload_id}/parts/1", content=body())
    except httpx.TransportError:
        pass
    else:
        assert answer.status_code >= 500
    assert arrived(http, upload_id)["parts"] == []
    send_until_kept(http, upload_id, 1, parts[1])
    assert http.delete(f"/v1/models/uploads/{upload_id}").status_code == 200


def test_a_hostile_archive_in_parts_is_refused_and_gone(platform: Platform, http: httpx.Client, namespace: str) -> None:
    hostile = tar_gz({"model.pt": b"no weights"})
    upload_id = create(http, namespace)["upload_id"]
    send(http, upload_id, 1, hostile[:10]).raise_for_status()
    send(http, upload_id, 2, hostile[10:]).raise_for_status()
    refused = confirm(http, upload_id).json()
    assert (refused["success"], refused["validation_status"]) == (False, "failed")
    assert refused["validation_errors"]
    assert http.get(f"/v1/namespaces/{namespace}/models").json()["total"] == 0
    assert not any(hashlib.sha256(hostile).hexdigest() in name for name in stored(platform))


def test_a_signed_url_takes_the_archive_without_a_key(
    platform: Platform, http: httpx.Client, namespace: str, archive: bytes
) -> None:
    created = create(http, namespace)
    assert httpx.put(created["presigned_url"] + "0", content=archive, timeout=60).status_code == 401
    assert httpx.put(created["presigned_url"], content=archive, timeout=60).status_code == 200
    assert confirm(http, created["upload_id"]).json()["validation_status"] == "passed"


def test_the_lines_of_the_readme_work_as_written(
    platform: Platform, namespace: str, archive: bytes, http: httpx.Client, tmp_path: Path
) -> None:
    section = re.search(r"^### Slow links$(.*?)^##", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL))
    (tmp_path / "my_model.tar.gz").write_bytes(archive)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("64M", "1M")],
        cwd=tmp_path,
        env=os.environ
        | {"MIXPEEK_API_URL": platform.url, "MIXPEEK_API_KEY": platform.api_key, "NAMESPACE_ID": namespace},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"validation_status":"passed"' in done.stdout
    model = http.get(f"/v1/namespaces/{namespace}/models/my-embedding-model_1_0_0").json()["model"]
    assert model["model_hash"] == hashlib.sha256(archive).hexdigest()

"""Real archives, and their way through the API."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import Any

import httpx
import torch


def archive_of(weights: Mapping[str, Any], *, filename: str = "model.pt") -> bytes:
    """Return a ``.tar.gz`` of one ``torch.save`` file."""
    file = io.BytesIO()
    torch.save(weights, file)
    return tar_gz({filename: file.getvalue()})


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    """Return a ``.tar.gz`` of the given files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def upload(
    http: httpx.Client,
    namespace: str,
    archive: bytes,
    *,
    name: str = "model",
    version: str = "1.0.0",
    model_format: str = "pytorch",
    **fields: str,
) -> httpx.Response:
    """Upload an archive; the caller looks at the answer."""
    return http.post(
        f"/v1/namespaces/{namespace}/models",
        files={"file": ("model.tar.gz", archive, "application/gzip")},
        data={"name": name, "version": version, "model_format": model_format, "memory_gb": "0.1"} | fields,
    )


def deploy(http: httpx.Client, namespace: str, model_id: str) -> None:
    """Deploy a model and expect that to work."""
    answer = http.post(f"/v1/namespaces/{namespace}/models/{model_id}/deploy")
    assert answer.status_code == 200, answer.text
    assert answer.json()["deployment_status"] == "deployed", answer.text


def deployed(
    http: httpx.Client, namespace: str, weights: Mapping[str, Any], *, name: str = "model", version: str = "1.0.0"
) -> str:
    """Upload and deploy weights; return the model's id."""
    answer = upload(http, namespace, archive_of(weights), name=name, version=version)
    assert answer.status_code == 200, answer.text
    model_id = str(answer.json()["model_id"])
    deploy(http, namespace, model_id)
    return model_id

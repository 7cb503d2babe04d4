"""What the inference routes ask of a caller, and what the process that serves them must not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mixpeek_ray.api.access import access_for
from mixpeek_ray.core import limits
from mixpeek_ray.core.records import Role

PATHS = [
    "/v1/embeddings",
    "/v1/embeddings/sparse",
    "/v1/embeddings/multi-vector",
    "/v1/embeddings/hybrid",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/inference",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_key_that_may_read_may_compute(path):
    access = access_for("POST", path)
    assert (access.needs_key, access.role, access.needs_enterprise) == (True, Role.READ, False)
    assert access.max_body_bytes == limits.MAX_INFERENCE_BODY_BYTES


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/embeddings", "/v1/embeddings/other", "/v1/rerank/"])
def test_whatever_else_lies_there_asks_for_more(path):
    access = access_for("POST", path)
    assert access.max_body_bytes == limits.MAX_JSON_BODY_BYTES
    assert access.role is Role.WRITE
    assert access.needs_key == (path != "/v2")


def test_the_gateway_documents_the_routes_without_loading_torch():
    script = (
        "import sys, mixpeek_ray.api.app, mixpeek_ray.api.inference_app; print({'torch', 'ray'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"

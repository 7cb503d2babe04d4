"""The records' own ranges."""

from __future__ import annotations

import math

import pytest

from mixpeek_ray.core.errors import InvalidResourcesError, UnsupportedFormatError
from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.records import ApiKey, ModelFormat, ResourceRequest, Role

FINE = {"num_cpus": 1.0, "num_gpus": 0.0, "memory_gb": 4.0}


def test_gigabytes_are_gib():
    request = ResourceRequest.from_gigabytes(num_cpus=0.5, num_gpus=2.0, memory_gb=1.5)
    assert request == ResourceRequest(num_cpus=0.5, num_gpus=2, memory_bytes=3 * GIB // 2)


def test_the_defaults_are_the_contracts():
    assert ResourceRequest.from_gigabytes(**FINE) == ResourceRequest()


@pytest.mark.parametrize("field", list(FINE))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e9, 1e308])
def test_numbers_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InvalidResourcesError) as caught:
        ResourceRequest.from_gigabytes(**(FINE | {field: value}))
    assert caught.value.details["field"] == field


@pytest.mark.parametrize(("field", "value"), [("num_gpus", 0.5), ("num_gpus", 9), ("num_cpus", 0), ("memory_gb", 0)])
def test_amounts_that_no_worker_can_have(field, value):
    with pytest.raises(InvalidResourcesError):
        ResourceRequest.from_gigabytes(**(FINE | {field: value}))


def test_a_request_made_directly_is_checked_too():
    with pytest.raises(InvalidResourcesError):
        ResourceRequest(memory_bytes=0)


def test_roles_include_the_ones_before_them():
    allowed = {role: [needed for needed in Role if role.allows(needed)] for role in Role}
    assert allowed == {
        Role.READ: [Role.READ],
        Role.WRITE: [Role.READ, Role.WRITE],
        Role.ADMIN: [Role.READ, Role.WRITE, Role.ADMIN],
    }


def test_an_unknown_format_is_named_in_ascii():
    with pytest.raises(UnsupportedFormatError, match="pytorch, safetensors, onnx, huggingface") as caught:
        ModelFormat.parse("pick\u202ele")
    assert caught.value.message.isascii()


def test_a_keys_digest_is_in_no_repr():
    fields = {"key_id": "k", "organization_id": "o", "name": "n", "role": Role.READ, "created_at": None}
    assert "c0ffee" not in repr(ApiKey(digest="c0ffee", **fields))

"""Which ingress is on, and what it means for uploads."""

from __future__ import annotations

import pytest
from ray.serve._private import constants

from mixpeek_ray.core.limits import MAX_ARCHIVE_BYTES
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.serving.ingress import IngressMode, ingress_mode, max_upload_bytes


@pytest.mark.parametrize(("haproxy", "mode"), [(True, IngressMode.HAPROXY), (False, IngressMode.PYTHON_PROXY)])
def test_mode_follows_serve(monkeypatch: pytest.MonkeyPatch, haproxy: bool, mode: IngressMode) -> None:
    monkeypatch.setattr(constants, "RAY_SERVE_ENABLE_HA_PROXY", haproxy)
    assert ingress_mode() is mode


def test_only_a_streaming_ingress_takes_large_uploads() -> None:
    settings = Settings(buffered_ingress_max_upload_bytes=1_000)
    assert max_upload_bytes(settings, IngressMode.HAPROXY) == MAX_ARCHIVE_BYTES
    assert max_upload_bytes(settings, IngressMode.PYTHON_PROXY) == 1_000
    unlimited = Settings(buffered_ingress_max_upload_bytes=10**15)
    assert max_upload_bytes(unlimited, IngressMode.PYTHON_PROXY) == MAX_ARCHIVE_BYTES

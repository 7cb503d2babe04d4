"""From MIXPEEK_STORE_URL to a store, or to one clear sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mixpeek_ray.core.errors import StorageUnavailableError, ValidationError
from mixpeek_ray.store.factory import open_store


def test_a_path_and_its_file_url_are_one_store(tmp_path: Path) -> None:
    folder = tmp_path / "a folder é"
    open_store(str(folder)).put("one", b"1")

    assert open_store(folder.as_uri()).read("one") == b"1"
    assert folder.is_dir()


def test_a_relative_path_is_pinned_when_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("store")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put("one", b"1")

    assert (tmp_path / "store" / "one").read_bytes() == b"1"


def test_memory_stores_are_told_apart_by_name() -> None:
    open_store("memory://test-open-store/a").put("one", b"1")

    assert open_store("memory://test-open-store/a/").exists("one")
    assert not open_store("memory://test-open-store/b").exists("one")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("bogus://bucket/x", "no such kind of store"),
        ("gs://bucket/x", "not installed"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://key:hunter2@bucket/x", "AWS_ACCESS_KEY_ID"),
        ("file://relative/x", "absolute"),
        ("file:x", "absolute"),
        ("file:", "absolute"),
    ],
)
def test_urls_that_name_no_store_are_refused(
    url: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationError, match=words) as raised:
        open_store(url)

    assert "MIXPEEK_STORE_URL" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_outage() -> None:
    with pytest.raises(StorageUnavailableError):
        open_store("/dev/null/store")


def test_a_local_platform_waits_for_no_cloud_library() -> None:
    code = (
        "import sys, mixpeek_ray.store.factory, mixpeek_ray.store.records; "
        "print({'ray', 'torch', 'fsspec', 's3fs', 'botocore'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)

    assert result.stdout == b"set()\n"

"""What is checked before the platform starts: each obstacle gives one sentence that says what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mixpeek_ray.cli import preflight
from mixpeek_ray.cli.paths import RunPaths, prepare
from mixpeek_ray.cli.preflight import check_disk, check_models, check_port, plan_object_store
from mixpeek_ray.core.limits import GIB, MIB
from mixpeek_ray.core.settings import Settings


def test_a_busy_port_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        problem = check_port(Settings(port=port))
        assert problem is not None
        assert str(port) in problem
        assert "MIXPEEK_PORT=" in problem
    assert check_port(Settings(port=port)) is None


def test_a_host_that_is_not_ours_is_named() -> None:
    problem = check_port(Settings(host="192.0.2.1"))
    assert problem is not None
    assert "192.0.2.1" in problem


@pytest.mark.parametrize(
    ("wanted", "memory", "shm_free", "plan"),
    [
        (None, 16 * GIB, 16 * GIB, None),
        (None, 16 * GIB, 2 * GIB, int(2 * GIB * 0.9)),
        (1 * GIB, 16 * GIB, 2 * GIB, 1 * GIB),
    ],
)
def test_the_object_store_fits_what_there_is(wanted: int | None, memory: int, shm_free: int, plan: int | None) -> None:
    assert plan_object_store(wanted_bytes=wanted, memory_bytes=memory, shm_free_bytes=shm_free) == plan


@pytest.mark.parametrize(("wanted", "shm_free"), [(None, 64 * MIB), (4 * GIB, 2 * GIB)])
def test_too_little_shared_memory_is_one_sentence(wanted: int | None, shm_free: int) -> None:
    problem = plan_object_store(wanted_bytes=wanted, memory_bytes=16 * GIB, shm_free_bytes=shm_free)
    assert isinstance(problem, str)
    assert "--shm-size" in problem
    assert "MIXPEEK_OBJECT_STORE_BYTES" in problem


@pytest.mark.parametrize(("total", "free", "words"), [(100 * GIB, 1 * MIB, "1 MiB free"), (1000 * GIB, 2 * GIB, "95%")])
def test_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, words: str
) -> None:
    usage = type("Usage", (), {"total": total, "free": free})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    problem = check_disk(RunPaths(home=tmp_path, scratch=tmp_path))
    assert problem is not None
    assert words in problem


def test_a_disk_with_room_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 100 * GIB, "free": 50 * GIB})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    assert check_disk(RunPaths(home=tmp_path, scratch=tmp_path)) is None


def test_the_catalog_that_comes_with_the_platform_is_fine() -> None:
    assert check_models(Settings()) is None
    assert check_models(Settings(warm_models="cross-encoder, splade")) is None


def test_an_unknown_warm_model_is_named() -> None:
    problem = check_models(Settings(warm_models="cross-encoder,none-such"))
    assert problem is not None
    assert "none-such" in problem
    assert "MIXPEEK_WARM_MODELS" in problem


def test_a_catalog_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    missing = check_models(Settings(model_catalog=tmp_path / "none.yaml"))
    assert missing is not None
    assert "none.yaml" in missing
    (tmp_path / "bad.yaml").write_text("models: [{name: one, family: poetry}]")
    problem = check_models(Settings(model_catalog=tmp_path / "bad.yaml"))
    assert problem is not None
    assert "'one'" in problem


def test_folders_are_private(tmp_path: Path) -> None:
    paths = RunPaths(home=tmp_path / "home", scratch=tmp_path / "scratch")
    paths.home.mkdir(mode=0o755)
    assert prepare(paths) is None
    assert [folder.stat().st_mode & 0o777 for folder in (paths.home, paths.scratch, paths.log.parent)] == [0o700] * 3


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    problem = prepare(RunPaths(home=tmp_path / "file" / "home", scratch=tmp_path / "scratch"))
    assert problem is not None
    assert "MIXPEEK_HOME" in problem


def test_a_planted_scratch_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "scratch").symlink_to(tmp_path / "elsewhere")
    problem = prepare(RunPaths(home=tmp_path / "home", scratch=tmp_path / "scratch"))
    assert problem is not None
    assert "not a folder of this user" in problem


def test_homes_have_scratch_folders_of_their_own_and_room_for_sockets() -> None:
    one, other = RunPaths.of(Path("/a")), RunPaths.of(Path("/b"))
    assert one.scratch != other.scratch
    node_id = "0" * 56
    # HAProxy takes 97 bytes.
    assert len(str(one.haproxy / node_id / "metrics.sock")) <= 97

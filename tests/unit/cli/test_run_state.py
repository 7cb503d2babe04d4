"""The lock, the state and the exports that other commands rely on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mixpeek_ray.cli import state
from mixpeek_ray.cli.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """Paths in an empty home."""
    return RunPaths(home=tmp_path, scratch=tmp_path / "scratch")


STATE = state.RunState(pid=7, api_url="http://a", dashboard_url="http://b", gcs_address="c:1")


def test_one_platform_a_home(paths: RunPaths) -> None:
    assert not state.is_locked(paths)
    lock = state.try_lock(paths)
    assert lock is not None
    assert state.is_locked(paths)
    assert state.try_lock(paths) is None
    os.close(lock)
    assert not state.is_locked(paths)


def test_the_holder_says_who_it_is(paths: RunPaths) -> None:
    lock = state.try_lock(paths)
    assert lock is not None
    assert state.lock_holder(paths) is None
    state.mark_holder(lock)
    assert state.lock_holder(paths) == os.getpid()
    os.close(lock)
    assert state.lock_holder(paths) is None


def test_state_counts_only_while_the_lock_is_held(paths: RunPaths) -> None:
    lock = state.try_lock(paths)
    assert lock is not None
    assert state.read_state(paths) is None
    state.write_state(paths, STATE)
    assert state.read_state(paths) == STATE
    os.close(lock)
    # What a killed platform left behind.
    assert paths.state.exists()
    assert state.read_state(paths) is None


def test_exports_survive_a_shell(paths: RunPaths) -> None:
    value = "a b'c$(touch x)\n"
    state.write_exports(paths, {"MIXPEEK_X": value})
    shown = subprocess.run(
        ["bash", "-c", f'. "{paths.exports}" && printf %s "$MIXPEEK_X"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == value


def test_secrets_are_private_and_kept(paths: RunPaths) -> None:
    state.ensure_token(paths)
    token = paths.token.read_text()
    assert len(token) == 64
    state.ensure_token(paths)
    assert paths.token.read_text() == token
    state.write_exports(paths, {})
    state.write_state(paths, STATE)
    assert {file.stat().st_mode & 0o777 for file in (paths.token, paths.exports, paths.state)} == {0o600}

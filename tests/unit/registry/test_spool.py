"""Working folders vanish with their owner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mixpeek_ray.registry.spool import work_folder

KILLED_OWNER = """
import os, signal, sys
from mixpeek_ray.registry.spool import work_folder
with work_folder(sys.argv[1]) as folder:
    (folder / "half").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with work_folder(str(tmp_path)) as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "file").write_bytes(b"x")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with work_folder(str(tmp_path)) as folder:
            (folder / "file").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_killed_owners_folder_goes_when_the_next_one_comes(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_OWNER, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with work_folder(str(tmp_path)) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_a_living_owners_folder_stays(tmp_path: Path) -> None:
    with work_folder(str(tmp_path)) as first, work_folder(str(tmp_path)) as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])

"""Files that a node's workers share: made once, whole or not at all, swept when nobody uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.loading.node_files import node_folder

# Asks for the folder `key`; says how often it built, after it was told to if `slow`; ends when told to.
WORKER = """
import sys
from mixpeek_ray.loading.node_files import node_folder

def build(folder):
    print("built", flush=True)
    if "slow" in sys.argv:
        sys.stdin.readline()
    (folder / "file").write_text("whole")

held = node_folder(sys.argv[1], build)
print((held.path / "file").read_text(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXPEEK_SPOOL_DIR", str(tmp_path))
    get_settings.cache_clear()
    yield tmp_path / "models"
    get_settings.cache_clear()


def write(text: str):
    return lambda folder: (folder / "file").write_text(text)


def worker(key: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORKER, key, *options], stdin=-1, stdout=-1, text=True)


def has_open(process: subprocess.Popen[str], path: Path) -> bool:
    files = Path(f"/proc/{process.pid}/fd").iterdir()
    with suppress(FileNotFoundError):
        return any(os.readlink(file) == str(path) for file in files)
    return False


def make_old(entry: Path) -> None:
    os.utime(entry, (time.time() - 86_400,) * 2)


def test_a_folder_is_built_once_in_a_process(spool: Path) -> None:
    held = node_folder("a", write("first"))
    assert (held.path / "file").read_text() == "first"
    assert node_folder("a", write("second")) is held
    assert (node_folder("a", write("second")).path / "file").read_text() == "first"
    assert (node_folder("b", write("second")).path / "file").read_text() == "second"


def test_of_many_processes_one_builds(spool: Path) -> None:
    workers = [worker("shared") for _ in range(4)]
    printed = "".join(process.communicate(timeout=60)[0] for process in workers)
    assert printed.count("built") == 1
    assert printed.count("whole") == 4


def test_who_waited_for_a_build_does_not_wait_for_its_users(spool: Path) -> None:
    first = worker("shared", "slow")
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == "built\n"
    second = worker("shared")
    while not has_open(second, spool / "shared"):
        assert second.poll() is None
    first.stdin.write("go\n")
    first.stdin.flush()
    assert first.stdout.readline() == "whole\n"
    assert second.communicate(timeout=60)[0] == "whole\n"
    assert first.poll() is None, "it uses the files all the while"
    first.communicate(timeout=60)


def test_a_failed_build_leaves_nothing_and_the_next_caller_builds(spool: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        node_folder("fails", fail)
    assert not list((spool / "fails").iterdir())
    assert (node_folder("fails", write("whole")).path / "file").read_text() == "whole"


def test_what_a_killed_builder_left_is_not_taken_for_the_files(spool: Path) -> None:
    (spool / "killed" / "partial-x").mkdir(parents=True)
    (spool / "killed" / "partial-x" / "file").write_text("half")
    assert (node_folder("killed", write("whole")).path / "file").read_text() == "whole"
    assert [entry.name for entry in (spool / "killed").iterdir()] == ["files"]


def test_a_folder_is_let_go_with_its_last_user(spool: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = node_folder("first", write("x"))
    also_held = node_folder("first", write("y"))
    del held
    make_old(spool / "first")
    node_folder("second", write("x"))
    assert (also_held.path / "file").read_text() == "x"
    del also_held
    assert len(os.listdir("/proc/self/fd")) == before
    node_folder("third", write("x"))
    assert (spool / "first").exists(), "it was used a moment ago"
    make_old(spool / "first")
    node_folder("fourth", write("x"))
    assert not (spool / "first").exists()


def test_folders_in_use_stay_and_abandoned_ones_go(spool: Path) -> None:
    user = worker("used")
    assert user.stdout is not None
    assert [user.stdout.readline(), user.stdout.readline()] == ["built\n", "whole\n"]
    worker("abandoned").communicate(timeout=60)
    worker("recent").communicate(timeout=60)
    make_old(spool / "used")
    make_old(spool / "abandoned")
    node_folder("new", write("x"))
    assert sorted(entry.name for entry in spool.iterdir()) == ["new", "recent", "used"]
    user.communicate(timeout=60)

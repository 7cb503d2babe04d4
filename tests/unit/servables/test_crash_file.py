"""The file that tells which model crashed a process: real processes, real signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mixpeek_ray.servables import crash_file
from mixpeek_ray.servables.crash_file import CrashFile, Suspect, abandoned_files

GUILTY, INNOCENT = "guilty", "innocent"

# A process with threads at work on innocent models, that then does what its last argument says.
PROCESS = """
import ctypes, os, signal, sys, threading
from pathlib import Path
from mixpeek_ray.servables.crash_file import CrashFile, Suspect

def suspect(name):
    return Suspect(namespace_id="ns_a", model_id=name, content="c" * 64)

def wait_on(name, begun):
    with file.working_on(suspect(name)):
        begun.set()
        forever.wait()

def do(what):
    with file.working_on(suspect("guilty")):
        exec(what)

file, forever = CrashFile(Path(sys.argv[1])), threading.Event()
file.take_reports()
for number in range(int(sys.argv[2])):
    begun = threading.Event()
    threading.Thread(target=wait_on, args=(f"innocent{number}", begun), daemon=True).start()
    begun.wait()
worker = threading.Thread(target=do, args=(sys.argv[3],), daemon=True)
worker.start()
worker.join()
exec(sys.argv[4])
"""
SEGFAULT = "ctypes.string_at(0)"


def end(folder: Path, what: str, *, threads: int = 2, afterwards: str = "os._exit(0)") -> int:
    """Return the exit status of a process that does ``what`` while it works on the guilty model."""
    arguments = [sys.executable, "-c", PROCESS, str(folder), str(threads), what, afterwards]
    return subprocess.run(arguments, stderr=subprocess.DEVNULL, timeout=60, check=False).returncode


def found(folder: Path) -> list[tuple[str, str] | None]:
    """Return the culprits and reasons of the abandoned files."""
    outcomes = []
    for file in abandoned_files(folder):
        told = file.crash()
        outcomes.append(None if told is None else (told[0].model_id, told[1].reason))
        file.leave()
    return outcomes


@pytest.mark.parametrize(
    ("what", "number", "reason"),
    [
        (SEGFAULT, signal.SIGSEGV, "Segmentation fault"),
        ("os.abort()", signal.SIGABRT, "Aborted"),
        ("signal.raise_signal(signal.SIGBUS)", signal.SIGBUS, "Bus error"),
        ("signal.raise_signal(signal.SIGILL)", signal.SIGILL, "Illegal instruction"),
        ("signal.raise_signal(signal.SIGFPE)", signal.SIGFPE, "Floating point exception"),
    ],
)
def test_the_model_whose_thread_crashed_is_known(
    tmp_path: Path, what: str, number: signal.Signals, reason: str
) -> None:
    assert end(tmp_path, what) == -number
    assert found(tmp_path) == [(GUILTY, reason)]


@pytest.mark.parametrize(
    ("what", "afterwards"),
    [
        ("pass", "os._exit(0)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ""),
        ("pass", SEGFAULT),
    ],
    ids=["a regular end", "kill -9", "a crash that is no model's"],
)
def test_other_ends_are_nobodys_fault(tmp_path: Path, what: str, afterwards: str) -> None:
    end(tmp_path, what, afterwards=afterwards)
    assert found(tmp_path) == [None]


def test_of_more_threads_than_a_report_has_the_only_one_at_work_is_known(tmp_path: Path) -> None:
    idle = "[threading.Thread(target=forever.wait, daemon=True).start() for _ in range(120)]; "
    end(tmp_path, idle + SEGFAULT, threads=0)
    assert found(tmp_path) == [(GUILTY, "Segmentation fault")]


def test_of_more_threads_than_a_report_has_nobody_is_accused_by_guess(tmp_path: Path) -> None:
    idle = "[threading.Thread(target=forever.wait, daemon=True).start() for _ in range(120)]; "
    end(tmp_path, idle + SEGFAULT, threads=1)
    assert found(tmp_path) == [None]


def test_the_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    mine = CrashFile(tmp_path)
    end(tmp_path, SEGFAULT)
    assert found(tmp_path) == [(GUILTY, "Segmentation fault")]
    assert mine.path.exists()


def test_one_looks_at_a_file_at_a_time_until_it_is_removed(tmp_path: Path) -> None:
    end(tmp_path, SEGFAULT)
    (first,) = abandoned_files(tmp_path)
    assert list(abandoned_files(tmp_path)) == []
    first.leave()
    (second,) = abandoned_files(tmp_path)
    second.remove()
    second.leave()
    assert list(tmp_path.iterdir()) == []


def test_what_came_from_one_process_has_one_name(tmp_path: Path) -> None:
    end(tmp_path, SEGFAULT)
    ids = []
    for _ in range(2):
        for file in abandoned_files(tmp_path):
            told = file.crash()
            assert told is not None
            ids.append(told[1].crash_id)
            file.leave()
    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_work_goes_on_without_a_free_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_file, "_AREA_BYTES", crash_file._SLOT_BYTES)
    file = CrashFile(tmp_path)
    work = Suspect(namespace_id="ns_a", model_id=INNOCENT, content="c" * 64)
    reached = []
    with file.working_on(work), file.working_on(work):
        reached.append(threading.get_ident())
    with file.working_on(work):
        assert file._area[:8] != bytes(8)
    assert file._area[:8] == bytes(8)
    assert reached


def test_the_longest_names_fit(tmp_path: Path) -> None:
    longest = Suspect(namespace_id="n" * 64, model_id=f"{'m' * 64}_999999999_999999999_999999999", content="c" * 64)
    file = CrashFile(tmp_path)
    with file.working_on(longest):
        slot = bytes(file._area[: crash_file._SLOT_BYTES])
    assert Suspect.decode(slot[8:]) == longest

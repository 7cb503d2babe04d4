"""What a replica tells of crashes: real processes that die, a registry that takes notes."""

from __future__ import annotations

import asyncio
import faulthandler
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixpeek_ray.core.crashes import ModelCrash
from mixpeek_ray.core.errors import StorageUnavailableError
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.servables.base import ServableRef
from mixpeek_ray.serving.crash_reports import CrashReporter
from mixpeek_ray.serving.pool_programs import ProgramCrashedError

REF = ServableRef(namespace_id="ns_a", model_id="model_1_0_0", version="1.0.0", kind=ModelKind.ONNX, content="ab" * 32)
KEY = ModelKey(namespace_id=REF.namespace_id, model_id=REF.model_id)

# A replica that dies of the model that it computes.
REPLICA = """
import ctypes, sys
from pathlib import Path
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.servables.base import ServableRef
from mixpeek_ray.serving.crash_reports import CrashReporter

reporter = CrashReporter(None, Settings(home=Path(sys.argv[1]), spool_dir=Path(sys.argv[1])))
ref = ServableRef(namespace_id="ns_a", model_id="model_1_0_0", version="1.0.0", kind=ModelKind.ONNX, content="ab" * 32)
with reporter.watch(ref):
    ctypes.string_at(0)
"""


class Registry:
    """Takes note of what it is told, and then fails as often as it should."""

    def __init__(self, *, failures: int = 0) -> None:
        self.told: list[tuple[ModelKey, str, ModelCrash]] = []
        self._failures = failures

    @property
    def report_crash(self) -> Any:
        return self

    def remote(self, key: ModelKey, content: str, crash: ModelCrash) -> Awaitable[None]:
        return self._note(key, content, crash)

    async def _note(self, key: ModelKey, content: str, crash: ModelCrash) -> None:
        self.told.append((key, content, crash))
        if len(self.told) <= self._failures:
            raise StorageUnavailableError("The store does not answer: try again.")


@pytest.fixture(autouse=True)
def _own_reports() -> Iterator[None]:
    yield
    faulthandler.disable()
    faulthandler.enable(sys.__stderr__)


def settings(folder: Path) -> Settings:
    return Settings(home=folder, spool_dir=folder)


def die(folder: Path) -> None:
    """Let a replica die of its model."""
    arguments = [sys.executable, "-c", REPLICA, str(folder)]
    assert subprocess.run(arguments, timeout=60, check=False).returncode == -11


def test_the_next_replica_tells_what_ended_the_one_before(tmp_path: Path) -> None:
    die(tmp_path)
    registry = Registry()
    reporter = CrashReporter(registry, settings(tmp_path))
    asyncio.run(reporter.report())
    ((key, content, crash),) = registry.told
    assert (key, content, crash.reason) == (KEY, REF.content, "Segmentation fault")
    asyncio.run(reporter.report())
    assert len(registry.told) == 1
    (mine,) = tmp_path.glob("crashes-*/*")
    assert mine == reporter._file.path


def test_what_the_registry_does_not_take_is_told_again_under_the_same_name(tmp_path: Path) -> None:
    die(tmp_path)
    registry = Registry(failures=1)
    reporter = CrashReporter(registry, settings(tmp_path))
    for _ in range(3):
        asyncio.run(reporter.report())
    assert len(registry.told) == 2
    assert len({crash.crash_id for _, _, crash in registry.told}) == 1


def test_another_platform_on_the_node_hears_nothing(tmp_path: Path) -> None:
    die(tmp_path)
    registry = Registry()
    other = Settings(home=tmp_path / "other", spool_dir=tmp_path)
    asyncio.run(CrashReporter(registry, other).report())
    assert registry.told == []


def test_a_program_that_crashes_its_own_process_is_told_of_too(tmp_path: Path) -> None:
    registry = Registry(failures=1)
    reporter = CrashReporter(registry, settings(tmp_path))
    with pytest.raises(ProgramCrashedError), reporter.watch(REF):
        raise ProgramCrashedError("It crashed.", reason="Aborted")
    for _ in range(3):
        asyncio.run(reporter.report())
    assert [(key, crash.reason) for key, _, crash in registry.told] == [(KEY, "Aborted")] * 2
    assert len({crash.crash_id for _, _, crash in registry.told}) == 1
